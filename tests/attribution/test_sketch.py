"""The estimate of influence without rows, against the exact influence of the oracle.

Each read of a scale from R Cauchy samples has a log with standard deviation (pi / 2) / sqrt(R). An estimate h layers
below a target is made of at most h such reads on the way down and of h totals on the way up: the standard deviation of
its log is at most sqrt(2 h) (pi / 2) / sqrt(R). Features that share their sources share these errors, so the mean over
one prompt is that of few draws: twice as much is allowed.
"""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.attribution.descent import Descent
from tcircuits.attribution.sketch import cauchy, influence_sketch, row_totals, scale
from tcircuits.attribution.targets import logit_vectors, output_targets

from .. import bridge
from ..reference import attribution as at
from ..reference import graph as gr
from ..tiers import tiered
from . import compare

CASES = [("gpt2", "clt-skip"), ("llama", "plt-jumprelu"), ("gemma2", "neurons")]


@partial(jax.jit, static_argnames=("cfg", "n_probes"))
def estimate(cfg, params, d, tokens, ids, n_probes):
    frozen = compare.frozen_of(cfg, params, d, tokens)
    p = jax.nn.softmax(frozen.logits[-1])[ids]
    outputs = output_targets(cfg, params, frozen, *logit_vectors(params, ids), jnp.full(len(ids), len(tokens) - 1), p)
    sweep = Descent(cfg, params, d, frozen, len(tokens))
    totals, _ = row_totals(sweep, jax.random.key(0), outputs, n_probes)
    return frozen, influence_sketch(cfg, params, d, frozen, outputs, n_probes=n_probes), totals


@cache
def both(family: str, name: str, n_probes: int):
    """(estimated, exact) influence, (estimated, exact) row totals of all active features; the oracle's graph."""
    case = compare.oracle(family, name).case
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    targets = at.top_logits(here.run, max_n=3, mass=1.0)
    a = at.attribute(case.cfg, case.params, case.d, case.tokens, targets)
    m, d = bridge.both(case)
    ids = jnp.asarray([t.token for t in targets])
    frozen, found, totals = estimate(m.cfg, m.params, d, jnp.asarray(case.tokens, jnp.int32), ids, n_probes)
    valid = np.asarray(frozen.valid)
    exact = gr.node_influence(a.A, a.weights)[: a.n_features]
    l1 = np.abs(a.A).sum(1)[: a.n_features]
    return np.asarray(found)[valid], exact, np.asarray(totals)[valid], l1, a


def log_errors(estimated: np.ndarray, exact: np.ndarray) -> np.ndarray:
    on = exact > 0
    assert (estimated[~on] == 0).all()
    return np.log(estimated[on] / exact[on])


@pytest.mark.parametrize("n_probes", tiered([64, 1024], [64]))
@pytest.mark.parametrize(("family", "name"), CASES)
def test_estimates_are_as_good_as_their_standard_deviation_says(family, name, n_probes, x64):
    found, exact, totals, l1, a = both(family, name, n_probes)
    one = (math.pi / 2) / math.sqrt(n_probes)
    off = log_errors(totals, l1)
    assert np.sqrt((off**2).mean()) <= 2 * one
    hops = a.n_layers - a.features[:, 0][exact > 0]
    off = log_errors(found, exact)
    for h in np.unique(hops):
        assert np.sqrt((off[hops == h] ** 2).mean()) <= 2 * math.sqrt(2 * h) * one, h


@pytest.mark.parametrize(("family", "name"), CASES)
def test_its_ranking_captures_nearly_all_that_can_be_captured(family, name, x64):
    found, exact, _, _, a = both(family, name, 64)
    on = exact > 0
    assert np.corrcoef(np.log(found[on]), np.log(exact[on]))[0, 1] > 0.95
    for share in (0.1, 0.25, 0.5):
        n = max(1, round(share * a.n_features))
        captured = exact[np.argsort(-found)[:n]].sum()
        assert captured >= 0.93 * np.sort(exact)[::-1][:n].sum()


def test_the_scale_of_cauchy_samples_is_estimated_without_bias():
    """log |C| of a standard Cauchy variable has mean 0 and standard deviation pi / 2; streams and layers differ."""
    key = jax.random.key(3)
    x = np.asarray(cauchy(key, 0, 0, (1000, 200), jnp.float32), np.float64) * 2.5
    logs = np.log(np.asarray(scale(jnp.asarray(x)), np.float64) / 2.5)
    sd = (math.pi / 2) / math.sqrt(1000)
    assert abs(logs.mean()) < 4 * sd / math.sqrt(200)
    assert logs.std() == pytest.approx(sd, rel=0.2)
    assert float(scale(jnp.zeros((5, 1)))[0]) == 0
    others = [
        cauchy(key, 0, 1, (4,), jnp.float32),
        cauchy(key, 1, 0, (4,), jnp.float32),
        cauchy(key, 0, 0, (4,), jnp.float32),
    ]
    assert len({tuple(np.asarray(o).tolist()) for o in others}) == 3

"""A wrong network is noticed: by the row identity, which needs no reference, or by the oracle's edges, or by both."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .. import bridge
from ..reference import attribution as at
from . import compare

CASES = [("gpt2", "clt-skip"), ("llama", "plt-skip"), ("gemma2", "neurons")]
TOLERANCE = 1e-11


@cache
def setting(family: str, name: str):
    """The frozen prompt, and the oracle's graph of three logits."""
    case = compare.oracle(family, name).case
    ids = np.array([3, 8, 11])
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    p = np.exp(here.run.logits[-1] - here.run.logits[-1].max())
    targets = [at.Target("logit", 5, token=int(i), weight=float(p[i] / p.sum())) for i in ids]
    a = at.attribute(case.cfg, case.params, case.d, case.tokens, targets)
    m, d = bridge.both(case)
    return a, m, d, compare.frozen_of(m.cfg, m.params, d, jnp.asarray(case.tokens, jnp.int32)), jnp.asarray(ids)


def distance(family: str, name: str, change=lambda params, d, frozen: (params, d, frozen)) -> tuple[float, float]:
    """Largest (difference of an edge from the oracle's, failure of a row to balance), both relative to the row."""
    with jax.enable_x64(True):
        a, m, d, frozen, ids = setting(family, name)
        r = compare.every_row(m.cfg, *change(m.params, d, frozen), ids, n=a.n_features)
        A, bias, value = compare.matrix(r, len(ids))
    size = compare.row_sizes(a)
    return float((np.abs(A - a.A).max(1) / size).max()), float((np.abs(A.sum(1) + bias - value) / size).max())


def held(**changes):
    """A change of frozen values."""

    def change(params, d, frozen):
        new = {k: f(getattr(frozen.hold, k)) for k, f in changes.items() if getattr(frozen.hold, k) is not None}
        return params, d, replace(frozen, hold=replace(frozen.hold, **new))

    return change


def attention(**changes):
    """A change of the attention's weights."""

    def change(params, d, frozen):
        attn = replace(params.blocks.attn, **{k: f(getattr(params.blocks.attn, k)) for k, f in changes.items()})
        return replace(params, blocks=replace(params.blocks, attn=attn)), d, frozen

    return change


def gain(name: str):
    """A norm's gain is left out."""

    def change(params, d, frozen):
        norm = replace(getattr(params.blocks, name), w=jnp.ones_like(getattr(params.blocks, name).w))
        return replace(params, blocks=replace(params.blocks, **{name: norm})), d, frozen

    return change


def final_gain(params, d, frozen):
    return replace(params, final_norm=replace(params.final_norm, w=jnp.ones_like(params.final_norm.w))), d, frozen


def of_frozen(**changes):
    def change(params, d, frozen):
        return params, d, replace(frozen, **{k: f(getattr(frozen, k)) for k, f in changes.items()})

    return change


def more(x):
    """0.1 % more."""
    return x * 1.001


MUTANTS = {
    "pattern transposed": held(pattern=lambda x: jnp.swapaxes(x, -1, -2)),
    "pattern one position late": held(pattern=lambda x: jnp.roll(x, 1, -1)),
    "pattern of the next layer": held(pattern=lambda x: jnp.roll(x, 1, 0)),
    "heads of the pattern swapped": held(pattern=lambda x: x[:, ::-1]),
    "heads of the values swapped": attention(w_v=lambda x: x[:, :, ::-1]),
    "heads of the output swapped": attention(w_o=lambda x: x[:, ::-1]),
    "no attention": attention(w_o=jnp.zeros_like),
    "gain of norm 1 dropped": gain("norm1"),
    "gain of norm 2 dropped": gain("norm2"),
    "gain of the final norm dropped": final_gain,
    "norm 1 scaled": held(norm1=more),
    "norm 2 scaled": held(norm2=more),
    "final norm scaled": held(final_norm=more),
    "pattern scaled": held(pattern=more),
    "activations scaled": of_frozen(value=more),
    "errors scaled": of_frozen(error=more),
    "constants scaled": of_frozen(constant=more),
    "gates scaled": of_frozen(factor=more),
}
WITHOUT = {  # neurons leave no error, Gemma 2 has no biases, and that cross-layer transcoder reads before the gain
    ("gemma2", "errors scaled"), ("gemma2", "constants scaled"), ("gpt2", "gain of norm 2 dropped"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_right_network_is_not_noticed(family, name):
    edges, balance = distance(family, name)
    assert edges <= TOLERANCE
    assert balance <= 1e-13


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize(("family", "name"), CASES)
def test_mutants_are_noticed(family, name, mutant):
    edges, balance = distance(family, name, MUTANTS[mutant])
    if (family, mutant) in WITHOUT:
        assert edges <= TOLERANCE
        return
    assert balance > 1e-5  # without any reference
    assert edges > 1e-5 or mutant == "constants scaled"


def test_a_post_norm_s_gain_dropped_is_noticed():
    for name in ("norm1_post", "norm2_post"):
        assert min(distance("gemma2", "neurons", gain(name))) > 1e-4


def test_a_decoder_and_a_skip_scaled_are_noticed():
    def decoder(params, d, frozen):
        return params, d, replace(frozen, decoder=more(frozen.decoder))

    def skip(params, d, frozen):
        return params, replace(d, w_skip=more(d.w_skip)), frozen

    def other_pair(params, d, frozen):
        return params, d, replace(frozen, decoder=frozen.decoder[jnp.array([0, 2, 1, 3, 4, 5])])

    for change in (decoder, skip, other_pair):
        assert min(distance("gpt2", "clt-skip", change)) > 1e-5

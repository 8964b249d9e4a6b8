"""Patched edges against two runs of plain edits; identities; bad input."""

import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.circuits.edge_effects import edge_effects
from tcircuits.circuits.running import run_circuits
from tcircuits.circuits.units import units_of
from tcircuits.types import InputError

from ..tiers import tiered
from .cases import Oracle, metric_of, random_behaviour
from .test_running import dictionary_of, reference_of, sized

pytestmark = pytest.mark.usefixtures("quick_compile")
CASES = [
    ("gpt2", ("head", "feature"), "plt-skip", "resample", "keep"),
    ("neox", ("attn", "feature"), "neurons", "mean", "keep"),
    ("llama", ("head", "feature"), "clt-relu", "resample", "ablate"),
    ("gemma2", ("feature",), "plt-relu", "zero", "clean"),
]


def pairs_of(units, feature):
    """Heads and features of the first two layers into features that are on, two in each later layer, and back."""
    on = [np.flatnonzero(f[-1])[:2] for f in feature]  # at the last position, which the logits read
    numbers = [units.starts["feature"] + slot * units.d_feature + at for slot, at in enumerate(on)]
    sources = [*([0, units.n_heads] if units.starts["feature"] else []), *numbers[0], numbers[1][0]]
    return np.array([(s, t) for s in sources for t in (*numbers[1], *numbers[2])] + [(numbers[2][0], numbers[0][0])])


def heard(oracle, units, source, clean, reference, tokens):
    """All features where the source has its reference value, and MLPs hear of it by their skips alone."""
    kind, layer, index, _ = units.where(source)
    d, values, told, found = oracle.d, {}, [f.copy() for f in clean["feature"]], []
    if kind == "feature":
        told[layer][:, index] = reference["feature"][layer][:, index]
    for i in range(oracle.model.cfg.n_layers):
        if kind != "feature" and i == layer:
            site = {"head": "z", "attn": "attn_out"}[kind]
            values[site, i] = oracle.acts(tokens, values)[0][site][i].copy()
            rows = np.s_[:, index] if kind == "head" else np.s_[:]
            values[site, i][rows] = reference[site][i][rows]
        x = jnp.asarray(oracle.acts(tokens, values)[0][d.cfg.reads][i])
        found.append(np.asarray(oracle.encode(i, i, x)))
        wrote = oracle.write(i, i, told[i], x, oracle.sums(told[: i + 1], len(tokens)))
        values[d.cfg.writes, i] = np.asarray(wrote) + clean["error"][i]
    return found


@pytest.mark.parametrize(("family", "kinds", "kind", "ablation", "errors"), tiered(CASES, CASES[:3]))
def test_an_edge_is_two_runs_of_edits(family, kinds, kind, ablation, errors, x64):
    model = sized(family, n_layers=3, **({"windows": (6, 0, 6)} if family == "gemma2" else {}))
    d, behaviour = dictionary_of(model, kind), random_behaviour(model)
    units, oracle = units_of(model.cfg, kinds, d.cfg), Oracle(model, d)
    p, moved = behaviour["report"], 0.0
    pairs = pairs_of(units, oracle.worth(p.clean[0][p.padding[0] :])["feature"])
    how = {"dictionary": d, "ablation": ablation, "errors": errors}
    found, own = edge_effects(model, behaviour, units, pairs, split="report", at_once=4, batch=2, **how)
    for i, (row, other, start) in enumerate(zip(p.clean, p.other, p.padding, strict=True)):
        tokens = row[start:]
        clean, reference = oracle.worth(tokens), reference_of(ablation, oracle, behaviour, tokens, other[start:])

        def metric(mask, feature, clean=clean, reference=reference, tokens=tokens, i=i):
            logits = oracle.masked(units, mask, tokens, reference | {"feature": feature}, clean, errors)
            return metric_of(behaviour.metric, logits, p.right[i], p.wrong[i])

        whole = metric(np.ones(units.n), reference["feature"])
        np.testing.assert_allclose(own[i], whole, rtol=0, atol=1e-9)
        for e, (source, target) in enumerate(pairs):
            feature = heard(oracle, units, source, clean, reference, tokens)
            expected = metric(np.arange(units.n) != target, feature)
            np.testing.assert_allclose(found[e, i], expected, rtol=0, atol=1e-9)
            moved = max(moved, abs(expected - whole))
    assert moved > 1e-4


def test_there_is_no_path_downwards(x64):
    model = sized("gpt2")
    d, behaviour = dictionary_of(model, "neurons"), random_behaviour(model)
    units = units_of(model.cfg, ("head", "feature"), d.cfg)
    last = units.starts["feature"] + units.d_feature
    found, own = edge_effects(model, behaviour, units, [[last, last - 3], [last, last]], dictionary=d)
    np.testing.assert_allclose(found, np.broadcast_to(own, found.shape), atol=1e-12)
    whole = run_circuits(model, behaviour, np.ones((1, units.n)), units, dictionary=d, split="attribution").model.metric
    np.testing.assert_allclose(own, whole, atol=1e-12)


def test_what_is_no_edge_is_refused(x64):
    model = sized("gpt2")
    d, behaviour = dictionary_of(model, "neurons"), random_behaviour(model)
    units = units_of(model.cfg, ("head", "feature"), d.cfg)
    for pairs, words in (
        ([], "whole numbers"),
        ([[0.0, 9.0]], "whole numbers"),
        ([[0, 1, 9]], "whole numbers"),
        ([[0, units.n]], f"numbered 0..{units.n - 1}"),
        ([[9, 1]], "head 0.1 is no feature"),
    ):
        with pytest.raises(InputError, match=words):
            edge_effects(model, behaviour, units, pairs, dictionary=d)
    with pytest.raises(InputError, match="ablation 'noise'"):
        edge_effects(model, behaviour, units, [[0, 9]], dictionary=d, ablation="noise")

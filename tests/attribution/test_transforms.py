"""The pure cores under `jit`, `vmap`, other platforms and meshes; and their rows, influence and masks at every step."""

import dataclasses
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.attribution.expand import expand
from tcircuits.attribution.frozen import freeze
from tcircuits.attribution.influence import Influence, influence, prune_masks, scores
from tcircuits.attribution.rows import Rows, effects, rows
from tcircuits.attribution.sketch import influence_sketch
from tcircuits.attribution.targets import logit_vectors, output_targets

from .. import bridge
from ..reference import attribution as at
from ..reference import builders
from ..reference import graph as gr
from ..tiers import tiered
from . import compare

CASES = [("gpt2", "clt-skip"), ("llama", "neurons")]
N_PROMPTS, LENGTH = 8, 6


@cache
def cores(cfg, n_features: int = 40):
    """Every core as a function of (params, dictionary, what the cores before it gave)."""

    def outputs(params, d, tokens, frozen):
        p, ids = jax.lax.top_k(jax.nn.softmax(frozen.logits[-1]), 3)
        return output_targets(cfg, params, frozen, *logit_vectors(params, ids), jnp.full(3, LENGTH - 1), p)

    return {
        "freeze": lambda params, d, tokens: freeze(cfg, params, d, tokens, n_slots=20),
        "outputs": outputs,
        "rows": lambda params, d, tokens, frozen, targets: rows(cfg, params, d, frozen, targets),
        "effects": lambda params, d, tokens, frozen, targets: effects(cfg, params, d, frozen, targets),
        "sketch": lambda params, d, tokens, frozen, targets: influence_sketch(cfg, params, d, frozen, targets),
        "expand": lambda params, d, tokens, frozen, targets: expand(cfg, params, d, frozen, targets, n_features)[1],
        "influence": lambda params, d, tokens, frozen, targets, r: influence(r),
        "prune_masks": lambda params, d, tokens, frozen, targets, r: prune_masks(r, 0.8, 0.98),
        "scores": lambda params, d, tokens, frozen, targets, r: scores(r),
    }


@cache
def setting(family: str, name: str):
    case = builders.make_case(family, name)
    m, d = bridge.both(case, "float32")
    tokens = np.random.default_rng(5).integers(0, m.cfg.d_vocab, (N_PROMPTS, LENGTH))
    return m, d, jnp.asarray(tokens, jnp.int32)


def run(fns, params, d, tokens) -> dict:
    """All cores in a row; each takes what its kind needs of the results before it."""
    out = {"freeze": fns["freeze"](params, d, tokens)}
    out["outputs"] = fns["outputs"](params, d, tokens, out["freeze"])
    for name in ("rows", "effects", "sketch", "expand"):
        if name in fns:
            out[name] = fns[name](params, d, tokens, out["freeze"], out["outputs"])
    for name in ("influence", "prune_masks", "scores"):
        out[name] = fns[name](params, d, tokens, out["freeze"], out["outputs"], out["expand"])
    return out


def near(got, expected, tolerance: float = 1e-6) -> None:
    """Equal integers and masks; floats within the tolerance of the largest in their array.

    Rows are measured by the largest edge, and shares of influence, which add up to one, by the largest share.
    """
    least = np.abs(expected.weight).max() if isinstance(expected, Rows) else 1e-6
    if isinstance(expected, Influence):
        least = max(np.abs(x).max() for x in (expected.columns, expected.unexpanded, expected.rows))

    def check(x, y):
        x, y = np.asarray(x), np.asarray(y)
        if y.dtype.kind in "bi":
            np.testing.assert_array_equal(x, y)
            return
        gap, size = np.abs(x.astype(np.float64) - y).max(initial=0.0), np.abs(y).max(initial=least)
        assert gap <= tolerance * size, (gap, size)

    jax.tree.map(check, got, expected)


@pytest.mark.slow  # single calls and batches are compared in the fast tier by the tests of the public names
@pytest.mark.parametrize(("family", "name"), CASES)
def test_eight_prompts_in_one_call_equal_eight_calls_and_nothing_is_traced_twice(family, name):
    m, d, tokens = setting(family, name)
    fns = {k: f for k, f in cores(m.cfg).items() if k not in ("effects", "sketch")}  # `expand` has the sketch in it
    chex.clear_trace_counter()
    once = {k: jax.jit(chex.assert_max_traces(f, n=1)) for k, f in fns.items()}
    singles = [run(once, m.params, d, t) for t in tokens]
    stacked = {k: jax.tree.map(lambda *x: np.stack(x), *[s[k] for s in singles]) for k in fns}
    chex.clear_trace_counter()
    for k, f in fns.items():
        before = {"freeze": [], "outputs": ["freeze"], "rows": ["freeze", "outputs"]}.get(k, ["freeze", "outputs"])
        before = [*before, "expand"] if k in ("influence", "prune_masks", "scores") else before
        axes = (None, None, *[0] * (1 + len(before)))
        batched = jax.jit(jax.vmap(chex.assert_max_traces(f, n=1), in_axes=axes))
        near(batched(m.params, d, tokens, *[stacked[b] for b in before]), stacked[k])
        batched(m.params, d, tokens[::-1], *[stacked[b] for b in before])
    assert {int(s["freeze"].valid.sum()) for s in singles} != {
        int(singles[0]["freeze"].valid.sum())
    } or name == "neurons"


@pytest.mark.parametrize("platform", tiered(["tpu", "cuda"], ["tpu"]))
@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_core_lowers_for(family, name, platform):
    m, d, tokens = setting(family, name)
    fns = cores(m.cfg)
    shapes = dict.fromkeys(fns)

    def lower(k, *more):
        made = jax.export.export(jax.jit(fns[k]), platforms=[platform])(m.params, d, tokens[0], *more)
        assert made.platforms == (platform,)
        assert len(made.mlir_module_serialized) > 1000
        shapes[k] = jax.eval_shape(fns[k], m.params, d, tokens[0], *more)

    lower("freeze")
    lower("outputs", shapes["freeze"])
    for k in ("rows", "effects", "sketch", "expand"):
        lower(k, shapes["freeze"], shapes["outputs"])
    for k in ("influence", "prune_masks", "scores"):
        lower(k, shapes["freeze"], shapes["outputs"], shapes["expand"])


@pytest.mark.parametrize(("family", "name"), [("gpt2", "clt-skip"), ("gemma2", "neurons")])
@pytest.mark.parametrize("part", tiered([1.0, 0.4], [0.4]))
def test_the_cores_alone_give_the_oracle_s_graph_masks_and_scores(family, name, part, x64):
    """No host step: frozen prompt, selected features, rows, influence and masks, in one program, in float64."""
    case = compare.oracle(family, name).case
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    targets = at.top_logits(here.run, max_n=3, mass=1.0)
    a = at.attribute(case.cfg, case.params, case.d, case.tokens, targets)
    m, d = bridge.both(case)
    n = round(part * a.n_features)

    @jax.jit
    def whole(params, d, tokens):
        frozen = freeze(m.cfg, params, d, tokens)
        outputs = cores(m.cfg)["outputs"](params, d, tokens, frozen)
        selection, r = expand(m.cfg, params, d, frozen, outputs, n)
        return frozen, selection, r, influence(r), prune_masks(r, 0.8, 0.98), scores(r)

    frozen, selection, r, inf, masks, score = whole(m.params, d, jnp.asarray(case.tokens, jnp.int32))
    C = frozen.index.shape[-1]
    layer, pos, slot = np.unravel_index(np.asarray(selection.flat), (m.cfg.n_layers, LENGTH, C))
    chosen = np.stack([layer, pos, np.asarray(frozen.index)[layer, pos, slot]], 1)
    number = {tuple(f): i for i, f in enumerate(a.features.tolist())}
    keep = np.array([number[tuple(f)] for f in chosen.tolist()])
    small, signed, mass = at.restrict(a, keep)
    A, bias, value = compare.matrix(r, 3)
    size = compare.row_sizes(a)[np.r_[keep, a.n_features : len(a.A)]]
    assert (np.abs(A - small.A).max(1) <= 1e-11 * size).all()
    assert (np.abs(bias - small.bias) <= 1e-11 * size).all()
    assert (np.abs(A.sum(1) + bias + signed.sum((1, 2)) - value) <= 1e-11 * size).all()
    expected = gr.prune(small.A, small.weights, compare.sizes_of(small), mass=mass)
    W = len(small.A) - 3
    strength = gr.node_influence(small.A, small.weights, mass)
    np.testing.assert_allclose(inf.columns, strength[:W], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(masks.columns, expected.node_mask[:W])
    kept = np.zeros_like(expected.edge_mask)
    node, valid = np.asarray(r.node), np.asarray(r.valid)
    kept[np.where(node >= 0, node, W + np.arange(node.shape[1]))[valid], :W] = np.asarray(masks.edges)[valid]
    np.testing.assert_array_equal(kept, expected.edge_mask)
    want = gr.scores(small.A, small.weights, compare.sizes_of(small), mass)
    for field in dataclasses.fields(score):
        assert float(getattr(score, field.name)) == pytest.approx(getattr(want, field.name), rel=1e-9)


def test_fewer_slots_than_features_are_said_and_still_balance():
    """Features beyond the slots go into the error: rows balance, and `overflow` is true."""
    m, d, tokens = setting("gpt2", "clt-skip")

    @jax.jit
    def both(params, d, tokens):
        few, all_of_them = (freeze(m.cfg, params, d, tokens, n_slots=c) for c in (3, 24))
        outputs = cores(m.cfg)["outputs"](params, d, tokens, few)
        return few, all_of_them, rows(m.cfg, params, d, few, outputs)

    few, every, r = both(m.params, d, tokens[0])
    assert bool(few.overflow)
    assert not bool(every.overflow)
    np.testing.assert_array_equal(few.n_active, every.n_active)
    assert few.index.shape[-1] == 3
    np.testing.assert_array_equal(few.index, every.index[..., :3])
    total = np.abs(r.weight).sum(-1) + np.abs(r.bias)
    assert (np.abs(r.weight.sum(-1) + r.bias - r.value) <= 1e-6 * total).all()
    assert np.abs(few.error - every.error).max() > 1e-2


SHARDED = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np
from tests import bridge
from tests.reference import builders
from tests.attribution.test_transforms import cores, near, run
from tcircuits.models import params as model_params
from tcircuits.parallel import make_mesh, shardings
from tcircuits.transcoders import dictionary
assert jax.device_count() == 8
jax.config.update("jax_disable_most_optimizations", True)
for family, name, shape in (("gpt2", "clt-skip", (1, 8)), ("llama", "neurons", (2, 4))):
    case = builders.make_case(family, name, d_mlp=32)
    m, d = bridge.both(case, "float32")
    tokens = jnp.asarray(case.tokens, jnp.int32)
    fns = {k: jax.jit(f) for k, f in cores(m.cfg).items() if k not in ("effects", "sketch")}  # within `expand`
    alone = run(fns, m.params, d, tokens)
    mesh = make_mesh(shape)
    params = jax.device_put(m.params, shardings(model_params.spec(m.cfg), mesh))
    assert len(params.embed.sharding.device_set) == 8 and not params.blocks.mlp.w_in.is_fully_replicated
    layout = dataclasses.replace(dictionary.spec(d.cfg), source=d.source)
    got = run(fns, params, jax.device_put(d, shardings(layout, mesh)), tokens)
    for part in ("freeze", "outputs", "rows", "expand", "influence", "prune_masks", "scores"):
        near(got[part], alone[part])
print("same rows on every mesh")
"""


@pytest.mark.slow
def test_rows_on_eight_devices_are_those_of_one(run_python):
    assert "same rows on every mesh" in run_python(SHARDED, devices=8).stdout

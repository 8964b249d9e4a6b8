"""Heads of an edge sum to the edge, a score to its pairs; single calls, batches and other platforms agree."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import autodiff as ad
from tcircuits.attribution import heads as hd
from tcircuits.attribution import qk
from tcircuits.attribution.frozen import freeze
from tcircuits.attribution.head_report import attention_report
from tcircuits.attribution.rows import rows
from tcircuits.attribution.select import Selection
from tcircuits.attribution.targets import feature_target, feature_vectors, logit_vectors, output_targets

from .. import bridge
from ..reference import builders
from ..reference import model as oracle
from ..tiers import tiered

EDGES = [
    ("gpt2", "plt-relu"),
    ("neox", "plt-skip"),
    ("llama", "clt-relu"),
    ("gemma2", "plt-raw"),
    ("qwen3", "neurons"),
]
QUICK_EDGES = [EDGES[0], EDGES[3], EDGES[4]]
# A feature of layer 2, or a logit. A logit's target differs by the final norm and the caps alone: two families.
TARGETS = tiered(
    [(*edge, top) for top in (2, 3) for edge in EDGES],
    [*((*edge, 2) for edge in QUICK_EDGES), (*EDGES[3], 3)],
    [(*edge, 3) for edge in EDGES if edge[0] not in ("gpt2", "gemma2")],
)
SCORES = [
    ("llama", "plt-skip"),  # rotary, GQA
    ("gpt2", "clt-skip"),  # learned positions, biases of queries and keys
    ("neox", "neurons"),  # rotary on a part of the head, parallel
    ("qwen3", "plt-relu"),  # query and key norms
    ("gemma3", "plt-raw"),  # those, post-norms, a local base in layers with a window, one key head
    ("olmo2", "plt-relu"),  # a norm over all heads, none before
    ("smollm3", "plt-topk"),  # layer 1 keeps no position
]
# The sums are taken alike in both dtypes, so float32 shows on three families what rounding does to each kind of term.
SUMS = tiered(
    [(*score, dtype) for dtype in ("float64", "float32") for score in SCORES],
    [*((*SCORES[i], "float64") for i in (0, 1, 3, 4)), (*SCORES[0], "float32")],
    [(*score, "float32") for score in SCORES if score[0] not in ("llama", "gpt2", "gemma3")],
)
POS = 5


def places(frozen):
    """(layer, position, slot) of all features below layer 2 that are on, errors and tokens of every position."""
    valid = np.asarray(frozen.valid)
    found = np.stack(np.nonzero(valid), 1)
    return found[found[:, 0] < 2].astype(np.int32)


@cache
def edges(family, name, top):
    """Loadings of all edges to one target (a feature of layer 2, or a logit), and the row of the graph."""
    case = builders.make_case(family, name)
    m, d = bridge.both(case)
    cfg, tokens = m.cfg, jnp.asarray(case.tokens, jnp.int32)
    frozen = jax.jit(lambda p, d, t: freeze(cfg, p, d, t))(m.params, d, tokens)
    L, T, C = frozen.index.shape
    slot = int(np.flatnonzero(np.asarray(frozen.valid)[2, POS])[0])
    chosen = places(frozen)

    @jax.jit
    def run(params, d, frozen):
        if top == L:
            vec, const = logit_vectors(params, jnp.array([3]))
            target = output_targets(cfg, params, frozen, vec, const, jnp.array([POS]), jnp.ones(1, vec.dtype))
        else:
            place = (jnp.array(2), jnp.array(POS), jnp.array(slot))
            target = feature_target(cfg, params, d, frozen, *place, jnp.ones((), frozen.value.dtype))
        row = rows(cfg, params, d, frozen, target, Selection(jnp.arange(L * T * C), jnp.arange(L + 1) * T * C))
        at = (target.layer[0], POS, target.vec[0, 0])

        def loads(source):
            return hd.head_loadings(cfg, params, d, frozen, at, source)

        of_features = jax.lax.map(lambda p: loads(hd.feature_source(cfg, params, d, frozen, p)), jnp.asarray(chosen))
        pairs = jnp.stack(jnp.meshgrid(jnp.arange(L), jnp.arange(T), indexing="ij"), -1).reshape(-1, 2)
        of_errors = jax.lax.map(lambda p: loads(hd.error_source(cfg, frozen, p[0], p[1])), pairs)
        of_tokens = jax.lax.map(lambda p: loads(hd.token_source(cfg, params, frozen, p)), jnp.arange(T))
        return row.weight[0, 0], of_features, of_errors, of_tokens, at[2]

    weight, *loads, vec = jax.tree.map(np.asarray, run(m.params, d, frozen))
    flat = np.ravel_multi_index(chosen.T, (L, T, C))
    parts = [weight[flat], weight[L * T * C : L * T * (C + 1)], weight[L * T * (C + 1) :]]
    return case, m, d, frozen, chosen, parts, loads, vec


@pytest.mark.parametrize(("family", "name", "top"), TARGETS)
def test_head_loadings_sum_to_the_edge(family, name, top, x64):
    *_, parts, loads, _ = edges(family, name, top)
    for edge, load in zip(parts, loads, strict=True):
        size = np.abs(edge).max()
        np.testing.assert_allclose(load.total, edge, rtol=0, atol=1e-13 * max(size, 1) * 30)
    for part in ("direct", "heads", "several"):
        assert max(np.abs(getattr(load, part)).max() for load in loads) > 0


@pytest.mark.parametrize(("family", "name"), tiered(EDGES, QUICK_EDGES))
def test_each_part_is_that_of_autodiff_with_other_patterns(family, name, x64):
    """Direct: patterns zero. One head: its pattern alone, less the direct part."""
    case, m, d, frozen, chosen, _, loads, vec = edges(family, name, 2)
    acts = ad.features_of(d, frozen)

    @jax.jit
    def grads(params, d, frozen):
        def read(out):
            return out[1][2, POS] @ vec

        def one(pattern):
            return ad.gradients(m.cfg, params, d, frozen, pattern, read)

        heads = [(1, 0), (0, 3), (1, 2)]
        direct = one(jnp.zeros_like(frozen.hold.pattern))
        return direct, jax.tree.map(lambda *x: jnp.stack(x), *[one(ad.only(frozen, [h])) for h in heads])

    direct, alone = jax.tree.map(np.asarray, grads(m.params, d, frozen))
    layer, pos, slot = chosen.T
    number = np.asarray(frozen.index)[layer, pos, slot]
    scale = np.asarray(acts)[layer, pos, number]
    expected = direct[0][layer, pos, number] * scale
    np.testing.assert_allclose(loads[0].direct, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    for i, (head_layer, head) in enumerate([(1, 0), (0, 3), (1, 2)]):
        through = alone[0][i, layer, pos, number] * scale - expected
        got = loads[0].heads[:, head_layer, head]
        np.testing.assert_allclose(got, through, rtol=0, atol=1e-12 * np.abs(expected).max())
    del case


def shown(case, layer, head, t, s):
    """The score from the NumPy oracle's queries and keys: rotated, scaled, before soft cap and mask."""
    r = oracle.run(case.cfg, case.params, case.tokens)
    q, k = r.sites["q"][layer], r.sites["k"][layer]
    if case.cfg.position == "rotary" and layer not in case.cfg.unrotated:
        freqs = oracle.rotary_frequencies(case.cfg, layer)
        q, k = oracle.rotate(q, freqs), oracle.rotate(k, freqs)
    scale = case.cfg.attn_scale or case.cfg.d_head**-0.5
    return q[t, head] @ k[s, head * case.cfg.n_kv_heads // case.cfg.n_heads] * scale


HEADS = [(2, 1, 5, 2), (1, 3, 4, 4), (0, 2, 5, 0), (2, 0, 2, 5)]


@cache
def scored(family, name, dtype):
    case = builders.make_case(family, name)
    m, d = bridge.both(case, dtype)

    @jax.jit
    def run(params, d, tokens, at):
        frozen = freeze(m.cfg, params, d, tokens)

        def one(a):
            return qk.qk_pairs(m.cfg, params, d, frozen, (a[0], a[1]), a[2], a[3], n=12, block=4000)

        sides = [qk.head_side(m.cfg, params, d, frozen, (2, 1), p, key=k).flat() for p, k in ((5, False), (2, True))]
        return jax.lax.map(one, at), sides

    found = run(m.params, d, jnp.asarray(case.tokens, jnp.int32), jnp.asarray(HEADS))
    return case, jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype.kind == "f" else x.dtype), found)


@pytest.mark.parametrize(("family", "name", "dtype"), SUMS, indirect=["dtype"])
def test_the_pairs_of_a_score_sum_to_it(family, name, dtype):
    """Within 1e-6 of the sum of |pairs| in float32 and 1e-12 in float64; and the score is the oracle's."""
    bound = {"float32": 1e-6, "float64": 1e-12}[dtype]
    case, (pairs, _) = scored(family, name, dtype)
    for i, at in enumerate(HEADS):
        if at[0] == 0 and dtype == "float32":
            continue  # one dot product is the whole sum: see the next test
        one = jax.tree.map(lambda x, i=i: x[i], pairs)
        assert abs(one.total - one.score) <= bound * one.mass, (at, one.total, one.score, one.mass)
        assert abs(one.by_query.sum() - one.score) <= bound * one.mass
        assert abs(one.by_key.sum() - one.score) <= bound * one.mass
        expected = shown(case, *at)
        assert abs(one.score - expected) <= 20 * bound * max(one.mass, abs(expected))


@pytest.mark.parametrize("family", tiered(["gpt2", "olmo2", "gemma3"], ["gemma3"]))
def test_scores_of_layer_0_balance_in_float32_models_too(family):
    """Their sources are the token and constants of one position: `attention_report` computes them in float64."""
    case = builders.make_case(family, "plt-relu")
    m, d = bridge.both(case, "float32")
    found = attention_report(m, d, case.tokens, (0, 2), 5, 4, top=9)
    assert found["gap"] < 1e-12
    assert found["score"] == pytest.approx(shown(case, 0, 2, 5, 4), rel=1e-4)
    assert len(found["pairs"]) == 9
    size = sum(abs(v) for *_, v in found["pairs"])
    assert found["rest_abs"] < 1e-9 * size, "token, constants, biases: nine pairs are all"
    assert found["by_query"][0][0] in (f"'#{case.tokens[5]}' @5", "constants below", "biases of the head")


@pytest.mark.parametrize(("family", "name"), [SCORES[0], SCORES[3]])
def test_the_listed_pairs_are_the_largest(family, name, x64):
    _, (pairs, (a, b)) = scored(family, name, "float64")
    one = jax.tree.map(lambda x: x[0], pairs)
    whole, mass = a @ b.T, float(one.mass)
    assert whole.size > 3 * 4000, "several blocks"
    order = np.argsort(-np.abs(whole), axis=None)[:12]
    np.testing.assert_allclose(np.abs(one.value), np.abs(whole.ravel()[order]), rtol=1e-12)
    np.testing.assert_allclose(whole[one.query, one.key], one.value, rtol=1e-12)
    assert len(set(zip(one.query.tolist(), one.key.tolist(), strict=True))) == 12
    assert one.rest == pytest.approx(whole.sum() - one.value.sum(), abs=1e-12 * mass)
    assert mass == pytest.approx(np.abs(whole).sum(), rel=1e-12)
    np.testing.assert_allclose(one.by_query, whole.sum(1), rtol=0, atol=1e-12 * np.abs(whole).sum())
    np.testing.assert_allclose(one.by_key, whole.sum(0), rtol=0, atol=1e-12 * np.abs(whole).sum())


@pytest.mark.parametrize(
    ("rows_", "columns", "n", "block"), [(7, 5, 3, 10), (7, 5, 35, 5), (4, 6, 100, 1000), (9, 2, 4, 1)]
)
def test_blocks_of_any_size_keep_the_same_pairs(rows_, columns, n, block):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows_, 3)).astype(np.float32), rng.normal(size=(columns, 3)).astype(np.float32)
    i, j, value, rest, mass = (np.asarray(x) for x in qk.top_pairs(jnp.asarray(a), jnp.asarray(b), n, block))
    whole = a @ b.T
    n = min(n, whole.size)
    best = np.sort(np.abs(whole).ravel())[::-1][:n]
    np.testing.assert_allclose(np.abs(value), best, rtol=1e-5)
    np.testing.assert_allclose(whole[i, j], value, rtol=1e-5)
    assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == n
    np.testing.assert_allclose([rest, mass], [whole.sum() - value.sum(), np.abs(whole).sum() - best.sum()], atol=2e-5)


def test_sums_of_several_scores_stay_apart():
    value, rest, mass = np.array([[3.0, -1.0], [0.5, 0.25]]), np.array([0.5, -2.0]), np.array([1.0, 4.0])
    places, sides = np.zeros((2, 2), int), np.zeros((2, 5))
    both = qk.QKPairs(places, places, value, rest, mass, sides, sides, np.zeros(2))
    np.testing.assert_allclose(both.total, [2.5, -1.25])
    np.testing.assert_allclose(both.mass, [5.0, 4.75])


def test_sources_have_their_places():
    shape = (2, 3, 4)
    assert qk.source_place(shape, 17) == ("feature", 1, 1, 1)
    assert qk.source_place(shape, 24 + 5) == ("error", 1, 2, -1)
    assert qk.source_place(shape, 30 + 2) == ("token", -1, 2, -1)
    assert [qk.source_place(shape, n)[0] for n in (33, 34)] == ["constant", "bias"]


def cores(cfg, length):
    """The cores of this module as functions of (params, dictionary, tokens, head, position)."""

    def loadings(params, d, tokens, head, pos):
        frozen = freeze(cfg, params, d, tokens, n_slots=8)
        place = jnp.array(2), pos, jnp.array(0)
        u, _, _ = feature_vectors(cfg, params, d, frozen, *(x[None] for x in place))
        source = hd.feature_source(cfg, params, d, frozen, (0, 1, 2))
        values = hd.head_values(cfg, params, frozen.hold, tokens)
        at = hd.head_sources(cfg, params, d, frozen.hold, values, 2, pos, u[0])
        return hd.head_loadings(cfg, params, d, frozen, (2, pos, u[0]), source), at

    def pairs(params, d, tokens, head, pos):
        frozen = freeze(cfg, params, d, tokens, n_slots=8)
        found = qk.qk_pairs(cfg, params, d, frozen, (head[0], head[1]), pos, 1, n=5)
        return found.total, found.by_query, found.by_key, found.score

    return {"loadings": loadings, "pairs": pairs}


@pytest.mark.parametrize("platform", tiered(["tpu", "cuda"], ["tpu"]))
@pytest.mark.parametrize("core", ["loadings", "pairs"])
def test_cores_lower_for(core, platform):
    case = builders.make_case("qwen3", "clt-skip")
    m, d = bridge.both(case, "float32")
    tokens = jnp.asarray(case.tokens, jnp.int32)
    made = jax.export.export(jax.jit(cores(m.cfg, 6)[core]), platforms=[platform])
    assert made(m.params, d, tokens, jnp.array([1, 2]), jnp.array(4)).platforms == (platform,)


@pytest.mark.parametrize("core", ["loadings", "pairs"])
def test_a_batch_equals_single_calls(core):
    case = builders.make_case("qwen3", "plt-skip")
    m, d = bridge.both(case, "float32")
    one = cores(m.cfg, 6)[core]
    tokens = jnp.asarray(np.stack([case.tokens, case.tokens[::-1]]), jnp.int32)
    heads, pos = jnp.array([[1, 2], [2, 0]]), jnp.array([4, 5])
    batch = jax.jit(jax.vmap(one, (None, None, 0, 0, 0)))(m.params, d, tokens, heads, pos)
    single = jax.jit(one)
    for i in range(2):
        expected = single(m.params, d, tokens[i], heads[i], pos[i])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=2e-5, atol=2e-5), batch, expected)

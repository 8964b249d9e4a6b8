"""Computational paths: the search against brute force, and the balance of every node."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.attribution.frozen import freeze
from tcircuits.models.forward import MlpHook, forward_one

from .. import bridge
from ..reference import attribution as at
from ..reference import builders, dictionary
from ..tiers import tiered
from .path_oracle import EMBED, FEATURE, HEAD, Oracle, of_graph

SMALL = {"n_layers": 2, "n_heads": 2, "length": 3, "d_feature": 8, "d_mlp": 6}
KINDS = ("plt-relu", "plt-skip", "clt-relu", "neurons")
FAMILIES = ("gpt2", "neox", "llama", "gemma2")
EVERY = [(f, k, dtype) for dtype in ("float64", "float32") for f in FAMILIES for k in KINDS]
DIAGONAL = list(zip(FAMILIES, KINDS, strict=True))
TABLE = tiered(
    EVERY,
    [*((*pair, "float64") for pair in DIAGONAL), (*DIAGONAL[0], "float32")],
    [entry for entry in EVERY if entry[2] == "float32" and entry[:2] not in DIAGONAL],
)


@cache
def small(family, name):
    """A two-layer case and its oracle, with the difference of two logits as the root."""
    groups = {"n_kv_heads": 2 if family in ("gpt2", "neox") else 1}
    windows = {"windows": (3, 0)} if family == "gemma2" else {}
    case = builders.make_case(family, name, **SMALL, **groups, **windows)
    u = case.params["embed"].T if case.params["unembed"] is None else case.params["unembed"]
    return case, Oracle(case, at.Target("direction", 2, vector=u[:, 3] - u[:, 5]))


@cache
def everything(family, name, most=6):
    return small(family, name)[1].paths(most)


def found(case, target, dtype="float64", **options):
    with jax.enable_x64(dtype == "float64"):
        return tc.find_paths(*bridge.both(case, dtype), case.tokens, target=target, **options)


def same_values(got, expected, size):
    assert got.keys() == expected.keys()
    gap = max(abs(got[p] - expected[p]) for p in expected)
    assert gap <= 1e-13 * size, gap


@pytest.mark.parametrize(("family", "name"), [("gpt2", "plt-skip"), ("neox", "plt-relu"), ("llama", "clt-relu")])
def test_unlimited_width_is_every_path_that_there_is(family, name):
    case, _ = small(family, name)
    expected = everything(family, name)
    graph = found(case, tc.Difference(3, 5), iterations=6, branches=None)
    assert len(expected) > 100
    assert {len(p) for p in expected} >= {2, 3, 4}
    assert min(expected.values()) < 0 < max(expected.values())
    same_values(of_graph(graph), expected, graph.size[0])
    assert graph.gap.max() <= 1e-13


def test_a_gemma_like_model_with_a_feature_as_the_root():
    case, _ = small("gemma2", "plt-raw")
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    layer, pos, f = (int(x) for x in here.features[-1])
    assert (layer, pos) == (1, 2)
    expected = Oracle(case, at.Target("feature", pos, layer=layer, feature=f)).paths(4)
    graph = found(case, tc.Feature(layer, pos, f), iterations=4, branches=None)
    same_values(of_graph(graph), expected, graph.size[0])
    assert graph.value[0] == pytest.approx(here.values[layer][pos, f], rel=1e-13)
    assert tuple(graph.merged.key[0]) == (FEATURE, layer, pos, f)


def greedy(expected, iterations, branches, rank):
    """The beam, from all paths: at each level the best continuations of those kept before."""
    kept, out = None, {}
    for n in range(1, iterations + 1):
        level = {p: v for p, v in expected.items() if len(p) == n + 1 and (kept is None or p[:-1] in kept)}
        kept = sorted((p for p in level if rank(p, level[p]) > 0), key=lambda p: -rank(p, level[p]))[:branches]
        out |= {p: level[p] for p in kept}
    return out


def caps(case, path):
    """The least activation of the features above the last component, the root included."""
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    return min((abs(here.values[m][t, f]) for kind, m, t, f in path[:-1] if kind == FEATURE), default=np.inf)


def test_the_beam_keeps_the_best_of_each_level_with_and_without_signs_and_cap():
    case, oracle = small("gpt2", "plt-skip")
    target = tc.Direction(9 * oracle.target.vector, position=2)  # so large that caps bind
    expected = {p: 9 * v for p, v in everything("gpt2", "plt-skip").items()}
    rules = {
        "signed": ({}, lambda p, v: abs(v)),
        "positive": ({"positive": True}, lambda p, v: v),
        "cap": ({"cap": True}, lambda p, v: min(abs(v), caps(case, p))),
    }
    results = {}
    for name, (options, rank) in rules.items():
        graph = found(case, target, iterations=4, branches=7, **options)
        results[name] = greedy(expected, 4, 7, rank)
        same_values(of_graph(graph), results[name], graph.size[0])
        assert graph.gap.max() <= 1e-13
        assert graph.wanted[0] > 7
        for chain, i in zip(of_graph(graph), range(1, len(graph.level)), strict=True):
            assert abs(graph.score[i]) == pytest.approx(rank(chain, graph.value[i]), rel=1e-12)
    assert results["signed"].keys() != results["positive"].keys()
    assert results["signed"].keys() != results["cap"].keys()


def test_no_head_leads_to_position_0_when_that_is_left_out():
    case, _ = small("llama", "clt-relu")
    expected = everything("llama", "clt-relu")
    graph = found(case, tc.Difference(3, 5), iterations=6, branches=None, bos_source=False)
    same_values(
        of_graph(graph),
        {p: v for p, v in expected.items() if not any(k == HEAD and s == 0 for k, _, s, _ in p)},
        graph.size[0],
    )
    assert graph.gap.max() <= 1e-13


@pytest.mark.parametrize(("family", "name", "dtype"), TABLE)
def test_every_node_balances(family, name, dtype):
    case = builders.make_case(family, name)
    graph = found(case, 3, dtype, iterations=4, branches=8)
    bound = 1e-13 if dtype == "float64" else 1e-6
    assert graph.gap.max() <= bound
    merged = graph.merged
    assert merged.gap.max() <= bound
    assert len(merged.key) < len(graph.level), "some paths share a component"
    assert min(np.abs(merged.kept).sum(), np.abs(merged.pruned).sum()) > 0
    assert (np.abs(merged.error).sum() > 0) == (name != "neurons")
    assert (np.abs(merged.bias).sum() > 0) == (name != "neurons" or family in ("gpt2", "neox")), "no bias anywhere"
    assert set(graph.kind.tolist()) >= {FEATURE, HEAD}


def test_parts_are_those_of_the_oracle():
    """Error and bias of the root from the forward maps, without any path."""
    case, oracle = small("gpt2", "plt-skip")
    graph = found(case, tc.Difference(3, 5), iterations=1, branches=2)
    L, D = case.cfg.n_layers, case.cfg.d_model
    nothing, t = np.zeros(D), 2
    error = oracle.reads(oracle.root, *oracle.local(t, nothing, np.zeros((L, D)), oracle.here.errors[:, t]))
    direct = [oracle.contribution((oracle.root, c)) for c in oracle.continuations(oracle.root)]
    size = graph.size[0]
    assert graph.error[0] == pytest.approx(error, abs=1e-13 * size)
    b_o = case.params["blocks"]["attn"]["b_o"]
    mlp = np.stack([dictionary.constant(case.params, case.d, m) for m in range(L)])
    norm2 = case.params["blocks"]["norm2"]["b"]
    mlp = mlp + np.einsum("ld,lde->le", norm2, case.d.arrays["w_skip"])
    bias = oracle.reads(oracle.root, *oracle.local(t, nothing, b_o, mlp))
    bias += case.params["final_norm"]["b"] @ oracle.target.vector
    assert graph.bias[0] == pytest.approx(bias, abs=1e-13 * size)
    assert graph.value[0] == pytest.approx(sum(direct) + error + bias, abs=1e-13 * size)
    assert graph.pruned[0] == pytest.approx(sum(direct) - graph.value[1:].sum(), abs=1e-13 * size)


def test_a_term_is_the_activation_times_the_input_invariant_weight():
    case = builders.make_case("llama", "plt-relu", n_layers=2, d_feature=96)
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    layer, pos, f = (int(x) for x in here.features[-1])
    graph = found(case, tc.Feature(layer, pos, f), iterations=1, branches=None)
    arrays, norm = case.d.arrays, case.params["blocks"]["norm2"]["w"][layer]
    weight = arrays["w_dec"][0] @ (norm * arrays["w_enc"][layer, f])  # one product for all prompts
    scale = here.frozen.scales["norm2"][layer][pos]
    direct = [i for i in range(1, len(graph.kind)) if graph.kind[i] == FEATURE]
    assert len(direct) > 3
    for i in direct:
        g = graph.index[i]
        term = here.values[0][pos, g] * weight[g] / scale
        assert graph.value[i] == pytest.approx(term, rel=0, abs=4e-15 * np.abs(arrays["w_dec"][0, g]).sum())


def test_merged_nodes_and_edges_are_sums_over_paths():
    case, _ = small("gpt2", "plt-skip")
    graph = found(case, tc.Difference(3, 5), iterations=4, branches=12)
    paths, m = of_graph(graph), graph.merged
    keys = [tuple(k) for k in m.key.tolist()]
    value, edges = dict.fromkeys(keys, 0.0), {}
    for p, v in paths.items():
        value[p[-1]] += v
        edges[p[-1], p[-2]] = edges.get((p[-1], p[-2]), 0.0) + v
    value[keys[0]] = graph.value[0]
    np.testing.assert_allclose(m.value, [value[k] for k in keys], rtol=1e-12)
    got = {(keys[s], keys[t]): w for s, t, w in zip(m.source, m.target, m.weight, strict=True)}
    assert got.keys() == edges.keys()
    np.testing.assert_allclose([got[e] for e in edges], list(edges.values()), rtol=1e-12)
    assert any(np.bincount(m.source)[1:] > 1), "a component on several paths"
    assert (m.key[:, 0] == EMBED).any()


def test_a_prompt_with_more_active_features_than_slots_is_frozen_again(monkeypatch):
    from tcircuits.attribution.paths import find

    case, _ = small("gpt2", "plt-skip")
    whole = found(case, tc.Difference(3, 5), iterations=2, branches=5)
    monkeypatch.setattr(find, "SLOTS", 1)
    again = found(case, tc.Difference(3, 5), iterations=2, branches=5)
    assert of_graph(again) == of_graph(whole)
    assert not again.settings["overflow"]
    np.testing.assert_array_equal(again.wanted, whole.wanted)


def gradient(model, case, frozen, pattern, vector):
    """[L, T, D]: d <final norm's output at the last position, vector> / d MLP outputs, all else of the run frozen."""
    tokens = jnp.asarray(case.tokens)
    held = forward_one(model.cfg, model.params, tokens, sites=("mlp_out",))[0].acts["mlp_out"]

    def read(added):
        hook = MlpHook("mlp_out", (), lambda layer, state, _, written: (held[layer] + added[layer], state, ()))
        hold = replace(frozen.hold, pattern=pattern)
        out = forward_one(model.cfg, model.params, tokens, hold=hold, hook=hook, sites=("final_norm",))[0]
        return out.acts["final_norm"][-1] @ vector

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(jax.grad(read))(jnp.zeros_like(held)))


def test_the_papers_equations_against_autodiff(x64):
    """Directly (7, 18); through one head and source (8, 19-24); through all heads at once (25, 26)."""
    case, oracle = small("gpt2", "plt-relu")
    graph = found(case, tc.Difference(3, 5), iterations=6, branches=None)
    paths, (model, d) = of_graph(graph), bridge.both(case)
    frozen = jax.jit(freeze, static_argnums=0)(model.cfg, model.params, d, jnp.asarray(case.tokens))
    whole, root = frozen.hold.pattern, oracle.root

    def expected(pattern):
        g = gradient(model, case, frozen, pattern, oracle.target.vector)
        rows, values = case.d.arrays["w_dec"], oracle.here.values
        return {(m, t, f): values[m][t, f] * rows[m, f] @ g[m, t] for m, t, f in oracle.here.features.tolist()}

    def through(keep):
        sums = dict.fromkeys(map(tuple, oracle.here.features.tolist()), 0.0)
        for p, v in paths.items():
            if p[-1][0] == FEATURE and all(n[0] == HEAD for n in p[1:-1]) and keep(p):
                sums[p[-1][1:]] += v
        return sums

    one = (1, 0, 2, 1)  # layer, head, destination, source
    cases = {
        "direct": (jnp.zeros_like(whole), lambda p: len(p) == 2),
        "one head": (
            jnp.zeros_like(whole).at[one].set(whole[one]),
            lambda p: len(p) == 2 or p[:-1] == (root, (HEAD, 1, 1, 0)),
        ),
        "all heads": (whole, lambda p: True),
    }
    seen = []
    for pattern, keep in cases.values():
        want, got = expected(pattern), through(keep)
        assert max(abs(want[k] - got[k]) for k in want) <= 1e-13 * graph.size[0]
        seen.append(sum(v != 0 for v in got.values()))
    assert 0 < seen[0] < seen[1] < seen[2]

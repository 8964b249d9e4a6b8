"""The public names, and what they promise each other: batches equal single calls, files repeat, summaries add up."""

import ast
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.attribution.promote import promoted
from tcircuits.attribution.summary import strongest_paths, token_shares
from tests import bridge
from tests.reference import attribution as at
from tests.reference import builders, dictionary
from tests.reference import model as oracle

pytestmark = pytest.mark.usefixtures("quick_compile")

STABLE = {
    *("load_model", "forward", "load_transcoders", "attribute", "prune", "save_graph", "load_graph", "Graph", "Model"),
    *(
        "Transcoders",
        "Output",
        "freeze",
        "rows",
        "influence",
        "prune_masks",
        "attribute_batch",
        "generate",
        "InputError",
    ),
}


def test_every_public_name_is_there():
    assert sorted(tc.__all__) == tc.__all__ == dir(tc)
    assert set(tc.__all__) >= STABLE
    for name in tc.__all__:
        value = getattr(tc, name)
        assert isinstance(value, str) or value.__doc__, f"{name} says nothing about itself"
        assert isinstance(value, str) or value.__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tc.nothing


def test_a_type_checker_sees_the_same_names():
    tree = ast.parse(Path(tc.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {(alias.name, n.module) for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert seen == {(name, home) for home, names in tc._HOME.items() for name in names}
    assert {name for name, _ in seen} == set(tc.__all__) - {"__version__"}


def case_of(family, name, length=6, **changes):
    case = builders.make_case(family, name, length=length, **changes)
    return case, *bridge.both(case, "float32")


BATCHES = [
    ("gpt2", "clt-jumprelu", 20, slice(0, 2)),
    pytest.param("llama", "neurons", 40, slice(0, 2), marks=pytest.mark.slow),
    pytest.param("gemma2", "plt-topk", 500, slice(None), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "name", "n", "which"), BATCHES)
def test_a_batch_equals_single_calls(family, name, n, which):
    case, model, d = case_of(family, name)
    prompts = [case.tokens, case.tokens[::-1], case.tokens[:4]][which]
    targets = [[3, tc.Difference(1, 2, 2)], None, tc.Direction(np.arange(12.0), position=1)][which]
    together = tc.attribute_batch(model, d, prompts, targets=targets, max_features=n)
    for prompt, wanted, got in zip(prompts, targets, together, strict=True):
        alone = tc.attribute(model, d, prompt, targets=wanted, max_features=n)
        same(got, alone)
    assert together[0].n_features == min(n, together[0].n_active)


def same(a, b):
    """Graphs that are equal, weights within 1e-6 of their row's size."""
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert (a.n_active, a.token_text) == (b.n_active, b.token_text)
    assert {**a.settings, "scores": None} == {**b.settings, "scores": None}
    assert a.settings["scores"] == pytest.approx(b.settings["scores"], rel=1e-4)
    assert [(t.label, t.kind, t.token, t.layer, t.pos) for t in a.targets] == [
        (t.label, t.kind, t.token, t.layer, t.pos) for t in b.targets
    ]
    size = np.maximum(b.row_sums()[1], 1e-6)
    nodes = b.row_nodes
    assert (np.abs(a.dense() - b.dense())[nodes] <= 1e-6 * size[:, None]).all()
    for name in ("row_value", "row_bias", "row_origin"):
        assert (np.abs(getattr(a, name) - getattr(b, name)) <= 2e-6 * size).all()
    for name in ("row_unexpanded", "row_unexpanded_abs"):
        assert (np.abs(getattr(a, name) - getattr(b, name)) <= 1e-6 * size[:, None, None]).all()
    np.testing.assert_allclose(a.target_weights, b.target_weights, rtol=1e-5)
    np.testing.assert_allclose(a.influence, b.influence, atol=1e-5)
    np.testing.assert_allclose(a.influence_unexpanded, b.influence_unexpanded, atol=1e-5)


def test_batches_that_are_refused():
    case, model, d = case_of("llama", "plt-relu")
    refusals = [
        (([case.tokens], {"targets": [tc.Feature(0, 1, 2)]}), "for feature targets call attribute"),
        (([case.tokens], {"targets": []}), "0 targets for 1 prompts"),
        (([case.tokens], {"max_features": 0}), "max_features=0; give at least 1"),
        (([case.tokens], {"max_features": None}), "needs a number for max_features"),
        (([case.tokens], {"selection": "effect"}), "takes no selection"),
        (([case.tokens], {"targets": [99]}), r"target token id 99 is outside the vocabulary 0\.\.16"),
        (([case.tokens, []], {}), "no tokens"),
        (([case.tokens] * 3, {"memory_gb": 1e-9}), "features of 3 prompts takes about .* give max_features"),
    ]
    for (prompts, options), message in refusals:
        with pytest.raises(tc.InputError, match=message):
            tc.attribute_batch(model, d, prompts, **options)
    assert tc.attribute_batch(model, d, []) == []


def test_damaged_weights_are_noticed_in_batches_too():
    case, _, _ = case_of("llama", "plt-relu")
    case.params["embed"] = case.params["embed"] * np.nan
    model, d = bridge.both(case, "float32")
    with pytest.raises(tc.InputError, match="not finite on this prompt: its weights are damaged"):
        tc.attribute_batch(model, d, [case.tokens])
    with pytest.raises(tc.InputError, match="not finite on this prompt: its weights are damaged"):
        tc.attribute(model, d, case.tokens)


@pytest.fixture(scope="module")
def small():
    """A graph of which some features are expanded, with the oracle's whole matrix."""
    case, model, d = case_of("llama", "plt-skip", length=4, d_feature=8)
    graph = tc.attribute(model, d, case.tokens, targets=[3, tc.Logit(5)], max_features=10)
    assert 10 == graph.n_features < graph.n_active
    return case, graph


def write_graph(folder):
    """Both files of a graph, from the start."""
    case, model, d = case_of("llama", "plt-skip", length=4, d_feature=8)
    graph = tc.prune(tc.attribute(model, d, case.tokens, targets=[3, tc.Logit(5)], max_features=10))
    tc.save_graph(graph, Path(folder) / "graph.npz")
    graph.to_viewer_json(Path(folder) / "graph.json")


@pytest.mark.slow
def test_two_runs_write_the_same_bytes(tmp_path, run_python, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiled as in this process
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    write_graph(tmp_path / "here")
    run_python(f"from tests.test_surface import write_graph; write_graph({str(tmp_path / 'there')!r})")
    for name in ("graph.npz", "graph.json", "graph-metadata.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def all_paths(share, last, leaves):
    """Every path from a leaf to `last`, as (product of shares, nodes from the leaf on), by walking down all edges."""
    found, stack = [], [(last, 1.0, (last,))]
    while stack:
        node, product, nodes = stack.pop()
        for source in np.flatnonzero(share[node]):
            item = (int(source), product * share[node, source], (int(source), *nodes))
            (found.append(item[1:]) if source in leaves else stack.append(item))
    return found


@pytest.mark.parametrize("pruned", [False, True])
def test_the_strongest_paths_are_those_of_all(small, pruned):
    _, g = small
    g = tc.prune(g, 0.95, 0.99) if pruned else g
    A, mass = np.abs(g.dense().astype(np.float64)), np.abs(g.unexpanded).sum((1, 2))
    whole = np.zeros(g.n_nodes)
    whole[g.row_nodes] = g.row_unexpanded_abs.sum((1, 2))
    assert (whole >= mass - 1e-5).all()
    assert whole.max() > 0, "there are leaves that take part of a row"
    share = A / np.maximum(A.sum(1) + whole, 1e-30)[:, None]
    if pruned:
        kept = np.zeros_like(share, bool)
        kept[g.row_nodes[g.edge_row], g.source] = g.edge_mask
        share = share * kept
    target = g.n_sources + int(np.argmax(g.target_weights))
    paths = all_paths(share, target, range(g.n_features + g.n_errors, g.n_sources))
    best = {}  # by last step
    for product, nodes in sorted(paths):
        best[nodes[-2]] = (product, nodes)
    expected = sorted(best.values(), reverse=True)[:5]
    got = strongest_paths(g, 5)
    assert len(paths) > 2 * len(got)
    assert [p.nodes for p in got] == [nodes for _, nodes in expected]
    np.testing.assert_allclose([p.share for p in got], [product for product, _ in expected], rtol=1e-5)
    D = g.dense()
    signs = [np.prod([np.sign(D[b, a]) for a, b in zip(p.nodes[:-1], p.nodes[1:], strict=True)]) for p in got]
    assert [p.sign for p in got] == signs
    assert any(len(p.nodes) > 2 for p in got), "not only direct ones"


def test_shares_of_tokens(small):
    _, g = small
    first = g.n_features + g.n_errors
    ends = g.influence[g.n_features :].sum() + g.influence_unexpanded.sum()
    np.testing.assert_allclose(token_shares(g), g.influence[first : first + 4] / ends)
    assert ends == pytest.approx(g.target_weights.sum(), abs=1e-5), "all influence ends in leaves"


VOCABULARY = [
    ("gpt2", "clt-relu"),
    ("gemma2", "neurons"),
    ("gemma2", "plt-raw"),
    ("relu", "some-filled"),
    ("neox", "plt-relu"),
]


@pytest.mark.parametrize(("family", "name"), VOCABULARY)
def test_what_features_promote(family, name):
    case, model, d = case_of(family, name)
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(here.features), 20, replace=False))
    features = here.features[chosen]
    values = np.array([here.values[i][p, f] for i, p, f in features])
    graph = Fake(features.astype(np.int32), values.astype(np.float32))
    found = promoted(model, d, graph, k=4)
    assert sorted(found) == list(range(20))
    for i, (layer, _, f) in enumerate(features):
        effect = effect_of(case, layer, f) * values[i]
        for side, order in zip(found[i], (np.argsort(-effect), np.argsort(effect)), strict=True):
            assert [token for token, _ in side] == [f"#{v}" for v in order[:4]]
            np.testing.assert_allclose([x for _, x in side], effect[order[:4]], atol=2e-5)


class Fake:
    """As much of a graph as `promoted` reads; no node is pruned."""

    node_mask = None

    def __init__(self, features, activations):
        self.features, self.activations, self.n_features = features, activations, len(features)


def effect_of(case, layer, f):
    """[V]: the demeaned logits of what a feature of activation 1 writes, every norm's denominator 1."""
    cfg, d, written = case.cfg, case.d, np.zeros(case.cfg.d_model)
    for out, weights in dictionary.decoders(case.params, d, layer):
        post = oracle.layer_of(case.params["blocks"]["norm2_post"], out)
        through = dictionary.writes(d, layer) == "mlp_raw" and post is not None
        written += oracle.centre(cfg, weights[f]) * post["w"] if through else weights[f]
    final = case.params["final_norm"]
    written = oracle.centre(cfg, written) * final["w"] if final is not None else written
    effect = written @ oracle.unembedding(case.params)
    return effect - effect.mean()


def test_only_kept_nodes_are_looked_up_and_no_more_tokens_than_there_are():
    case, model, d = case_of("llama", "plt-relu")
    graph = Fake(np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4]], np.int32), np.ones(3, np.float32))
    graph.node_mask = np.array([True, False, True, True])
    found = promoted(model, d, graph, k=100)
    assert sorted(found) == [0, 2]
    assert all(len(side) == case.cfg.d_vocab for sides in found.values() for side in sides)


def fails(times):
    with times.stage("write"):
        time.sleep(0.05)
        raise KeyError


def test_stages_add_up_and_compiling_is_counted_once():
    times, begin = tc.Timings(), time.perf_counter()
    salt = float(np.random.default_rng().random())  # a program that no cache knows

    @jax.jit
    def inner(x):
        return jnp.sin(x) + salt

    @jax.jit
    def outer(x):
        return jax.lax.scan(lambda c, _: (inner(c) @ c, None), x, length=3)[0]

    with times.stage("forward"):
        outer(jnp.eye(40)).block_until_ready()
    with times.stage("write"):
        time.sleep(0.05)
    with pytest.raises(KeyError):
        fails(times)
    whole = time.perf_counter() - begin
    assert times.keys() == {"forward", "write", "compile"}
    assert 0 < times["compile"] < whole - 0.1
    assert 0 <= times["forward"] < whole - 0.1
    assert 0.1 <= times["write"] < 0.2 + whole / 2
    assert sum(times.values()) <= whole
    again = tc.Timings()
    with again.stage("forward"):
        outer(jnp.eye(40)).block_until_ready()
    assert again["compile"] < times["compile"] / 5


def test_times_of_an_attribution(small):
    case, _ = small
    model, d = bridge.both(case, "float32")
    times, begin, seen = tc.Timings(), time.perf_counter(), []
    tc.attribute(
        model, d, case.tokens, targets=[3], timings=times, progress=lambda done, total: seen.append((done, total))
    )
    whole = time.perf_counter() - begin
    assert times.keys() == {"forward", "select", "attribute", "influence", "compile"}
    assert 0.5 * whole < sum(times.values()) <= whole
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert seen

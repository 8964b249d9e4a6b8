"""Compiled RASP programs: the compiler's outputs, the oracle, the known circuits, and who finds them."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rasp import compile as compiling
from experiments.rasp import known
from experiments.rasp.network import load, names, together
from experiments.rasp.oracle import Plain
from experiments.rasp.programs import PROGRAMS
from experiments.rasp_circuits import auroc, iou
from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.elimination import eliminate
from tcircuits.circuits.running import run_circuits
from tcircuits.models.forward import forward
from tcircuits.models.params import abstract
from tcircuits.tasks.gate import capability

pytestmark = pytest.mark.usefixtures("quick_compile")
NETWORKS = {net.name: net for net in together([load(name) for name in names()])}


def logits(net, tokens):
    return np.asarray(forward(net.model.cfg, net.model.params, jnp.asarray(tokens, jnp.int32)).logits, np.float64)


def test_every_program_is_there_and_small():
    assert set(names()) == set(PROGRAMS)
    assert len(PROGRAMS) >= 20
    files = list(compiling.FOLDER.iterdir())
    assert sum(f.stat().st_size for f in files) < 500_000


@pytest.mark.parametrize("name", names())
def test_forward_is_the_compilers_own_model_on_every_input(name):
    """Outputs that tracr computed with its own transformer, in float32.

    Weights go up to 100 and are summed in another order: a few roundings of 100 x 2^-24, scaled by the readout.
    """
    net = NETWORKS[name]
    matrix, bias = net.readout
    gain = np.abs(matrix).max()
    V = net.sizes.vocab
    found = logits(net, net.tokens)[..., V : V + len(bias)]
    np.testing.assert_allclose(found, net.outputs @ matrix + bias, atol=4 * 100 * 2**-24 * gain)
    shapes = abstract(net.model.cfg)
    assert jax.tree.map(jnp.shape, net.model.params) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.parametrize("name", names())
def test_the_network_answers_as_the_interpreter_does(name):
    net = NETWORKS[name]
    chosen = logits(net, net.tokens).argmax(-1) - net.sizes.vocab
    np.testing.assert_array_equal(chosen[net.asked], net.right[net.asked])
    plain = Plain(net)
    np.testing.assert_array_equal(plain.chosen(plain.run(net.tokens)[0])[net.asked], net.right[net.asked])


def test_answers_are_those_of_python():
    """Programs by one line of Python each, on every input."""
    by_hand = {
        "reverse": lambda x: x[::-1],
        "hist": lambda x: [x.count(t) for t in x],
        "parity": lambda x: [sum(x) % 2] * len(x),
        "sort": sorted,
        "has_duplicate": lambda x: [len(set(x)) < len(x)] * len(x),
        "palindrome": lambda x: [x == x[::-1]] * len(x),
        "most_frequent": lambda x: [max(x, key=lambda t: (x.count(t), -x.index(t)))] * len(x),
        "frac_prevs": lambda x: [sum(t == "a" for t in x[: i + 1]) / (i + 1) for i in range(len(x))],
        "sorted": lambda x: [x == sorted(x)] * len(x),
        "difference": lambda x: [x.count("a") - x.count("b")] * len(x),
    }
    for name, rule in by_hand.items():
        net = NETWORKS[name]
        for tokens, answers in zip(PROGRAMS[name].inputs, net.answers, strict=True):
            assert list(answers) == pytest.approx(list(rule(list(tokens)))), (name, tokens)


@pytest.mark.skipif(importlib.util.find_spec("tracr") is None, reason="needs tracr-pypi")
@pytest.mark.parametrize("name", ["reverse", "induction", "frac_prevs"])
def test_tracr_compiles_the_same_again(name):
    """Outputs, tokens and answers; the stream's dimensions are numbered by what else a process compiled before."""
    head, arrays = compiling.described(PROGRAMS[name])
    net = load(name)
    assert (tuple(head["vocab"]), tuple(head["values"])) == (net.vocab, net.values)
    assert tuple(map(tuple, head["answers"])) == net.answers
    np.testing.assert_array_equal(arrays["tokens"], net.tokens)
    np.testing.assert_allclose(arrays["outputs"], net.outputs, atol=4 * 100 * 2**-24)
    for key, a in net.weights.items():
        np.testing.assert_array_equal(np.sort(arrays[key], None), np.sort(a, None))


def test_questions_are_all_inputs_at_all_positions_and_pairs_are_not_shared():
    net = NETWORKS["induction"]
    b, seen = net.behaviour(rounds=2), set()
    for split in b.splits:
        p = b[split]
        rows = list(zip(map(bytes, p.clean.astype(np.uint8)), p.at.tolist(), strict=True))
        assert len(rows) == 2 * len(set(rows)) == 2 * net.asked.sum()
        pairs = {(c.tobytes(), o.tobytes()) for c, o in zip(p.clean, p.other, strict=True)}
        assert not seen & pairs
        seen |= pairs
    assert capability(net.model, b).exact == 1.0
    once = net.behaviour(one_place=True)["report"]
    assert len({row.tobytes() for row in once.clean}) == once.n == net.asked.any(1).sum()


@pytest.mark.parametrize("name", ["pair_balance", "induction"])
def test_the_oracle_is_the_harness_edge_by_edge(name):
    """Random sets of removed edges, NumPy against `edges.run` at all answers: logits' differences and choices."""
    net, rng = NETWORKS[name], np.random.default_rng(0)
    plain, edges, b = Plain(net), edges_of(net.model.cfg), net.behaviour()
    labels = [f"{w} -> {r}" for w, r in plain.edges]
    order = [labels.index(edges.label(u)) for u in range(edges.n)]
    assert len(labels) == edges.n
    p, V = b["report"], net.sizes.vocab
    masks = rng.uniform(size=(6, edges.n)) < np.array([0.2, 0.5, 0.9, 0.95, 0.98, 0.99])[:, None]
    runs = run_circuits(net.model, b, masks, edges, batch=512)
    reference = plain.run(p.other)[1]
    matrix, bias = net.readout
    for mask, metric in zip(masks, runs.circuits.metric, strict=True):
        removed = frozenset(plain.edges[order[u]] for u in np.flatnonzero(~mask))
        outputs, _ = plain.run(p.clean, removed, reference)
        found = (outputs @ matrix + bias)[np.arange(p.n), p.at]
        right = found[np.arange(p.n), p.right[:, 0] - V]
        wrong = np.stack([row[w[w >= 0] - V].mean() for row, w in zip(found, p.wrong, strict=True)])
        np.testing.assert_allclose(metric, right - wrong, atol=2e-5 * np.abs(matrix).max())


def test_reverse_and_the_share_of_earlier_tokens_have_their_published_circuits():
    """Under resampling `reverse` needs two edges of its 77; the compiler gives `frac_prevs` a chain of three."""
    found = known.read()
    assert found["reverse"]["resample"]["circuits"] == [["embed -> head 3.0 v", "head 3.0 -> logits"]]
    chain = ["embed -> mlp 0", "mlp 0 -> head 1.0 v", "head 1.0 -> logits"]
    assert found["frac_prevs"]["resample"]["circuits"] == [chain]


@pytest.mark.parametrize("name", ["reverse", "hist", "pair_balance", "prev_token"])
def test_the_known_circuits_are_found_again(name):
    net = load(name)
    kept = {a: {k: v for k, v in f.items() if k != "seconds"} for a, f in known.read()[name].items()}
    made = {a: {k: v for k, v in f.items() if k != "seconds"} for a, f in known.known(net).items()}
    assert made == kept


def test_where_two_edges_stand_in_for_each_other_both_circuits_are_known():
    """One of them or the other: neither is true alone, and keeping the true ones is not enough."""
    q = known.Questions(Plain(load("shuffle_dyck")), "mean")
    (first, second) = ([tuple(e.split(" -> ")) for e in c] for c in known.read()["shuffle_dyck"]["mean"]["circuits"])
    both = set(first) & set(second)
    assert q.kept(first)
    assert q.kept(second)
    assert not q.kept(both)
    assert not any(q.matters(e) for e in set(first) ^ set(second))


def test_known_circuits_lie_within_the_compilers_structure():
    for name, by_ablation in known.read().items():
        plain = Plain(NETWORKS[name])
        hears = {f"{w} -> {r}" for w, r in plain.edges if plain.shares_dimension((w, r)).any()}
        for ablation, f in by_ablation.items():
            assert all(set(c) <= hears for c in f["circuits"]), (name, ablation)
            assert f["structural"] == len(hears)


@pytest.mark.parametrize(("name", "ablation"), [("reverse", "resample"), ("frac_prevs", "zero"), ("hist", "mean")])
def test_elimination_finds_them(name, ablation):
    net = NETWORKS[name]
    found = eliminate(net.model, net.behaviour(), edges_of(net.model.cfg), ablation=ablation)
    assert set(found.labels()) == set(known.read()[name][ablation]["circuits"][0])


def test_overlap_and_area_by_hand():
    true = np.array([True, True, False, False])
    assert iou(np.array([True, False, True, False]), true) == pytest.approx(1 / 3)
    assert iou(np.zeros(4, bool), np.zeros(4, bool)) == 1.0
    assert auroc(np.array([3.0, 1.0, 1.0, 0.0]), true) == pytest.approx((2 + 1 + 0.5) / 4)
    assert auroc(np.zeros(4), np.zeros(4, bool)) is None

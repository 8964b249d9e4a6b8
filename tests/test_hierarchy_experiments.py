"""What the experiments on hierarchies plant and measure: worlds by enumeration, small runs that need no model."""

import json

import numpy as np
import pytest

from experiments import circuit_baselines, common, membership, transfer
from experiments import group_search_synthetic as planted
from experiments.bench import hierarchy as bench


@pytest.mark.parametrize("pairs", ["none", "within", "across"])
@pytest.mark.parametrize("layout", ["two communities", "scattered"])
def test_worlds_hold_what_they_say(pairs, layout):
    cfg = planted.Config(n=80, circuit=20, kept=24, communities=4, n_pairs=4)
    rng = np.random.default_rng(0)
    w = planted.world(cfg, 0.5, layout, pairs, rng)
    inside = np.flatnonzero(w.effect)
    assert len(inside) == 20
    assert len(w.pairs) == (0 if pairs == "none" else 4)
    assert set(w.pairs.ravel()) <= set(inside)
    assert len(set(w.pairs.ravel())) == w.pairs.size
    masks = rng.uniform(size=(30, 80)) < 0.5
    for mask, value in zip(masks, w.worth(masks), strict=True):
        wanted = sum(w.effect[i] for i in inside if mask[i] and i not in w.pairs)
        wanted += sum(w.effect[a] for a, b in w.pairs if mask[a] or mask[b])
        assert value == pytest.approx(wanted)
    for a, b in w.pairs:  # neither is necessary, both together are
        out = np.ones((3, 80), bool)
        out[0, a] = out[1, b] = False
        out[2, [a, b]] = False
        lost = w.worth(np.ones((1, 80), bool)) - w.worth(out)
        assert lost == pytest.approx([0, 0, w.effect[a]])
    assert planted.recall(w, inside) == {
        "recall": 1.0,
        "pairs": 1.0 if len(w.pairs) else 0.0,
        "effect": pytest.approx(1),
    }
    kept = planted.recall(w, w.pairs[:, 0]) if len(w.pairs) else planted.recall(w, inside[:5])
    assert kept["recall"] == pytest.approx(4 / 16 if len(w.pairs) else 5 / 20)
    # edges of the circuit are heavier than any other
    weight = w.weight.toarray()
    own = np.isin(np.arange(80), inside)
    assert weight[np.ix_(own, own)][weight[np.ix_(own, own)] > 0].min() >= 1.5


def test_a_small_table_is_measured_and_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    planted.main(
        planted.Config(
            n=80, circuit=10, kept=12, communities=4, noise=(0.25,), budgets=(40,), layouts=("scattered",),
            pairs=("none", "within"), n_pairs=3, seeds=2,
        )
    )  # fmt: skip
    found = json.loads((tmp_path / "group_search_synthetic.json").read_text())["figures"]
    names = {r["method"] for r in found["rows"]}
    assert {"flat top-K of scores", "40 group ablations, left", "paper's traversal"} <= names
    assert all(r["queries"] <= 40 for r in found["rows"] if r["method"].startswith("40"))
    assert all(r["pairs"]["value"] == 0 for r in found["rows"] if r["redundancy"] == "none")
    assert "scattered, pairs within" in capsys.readouterr().out


def test_the_bench_fits_exponents_and_its_graphs_have_their_size():
    rows = [{"nodes": n, "cuts": 3e-5 * n**1.25} for n in (100, 1000, 10_000)]
    assert bench.slope(rows, "nodes", "cuts") == pytest.approx(1.25)
    w = bench.graph(500, 8, 0)
    assert w.shape == (500, 500)
    assert 0.9 * 4000 <= w.nnz <= 4000
    assert not w.diagonal().any()
    row = bench.row(300, 8, 0)
    assert row["edges"] <= 2400
    assert row["cuts"] > 0
    beside = bench.dense(300, 8, 0)
    assert beside["clusters"] > 16
    assert beside["ours_eigenvalue"] < beside["null_eigenvalue"]


def test_transfer_means_weigh_pairs_of_models_alike():
    """One pair of one family, two of different ones; both directions and all tasks of a pair are one drawing."""
    families = {"one": "llama", "two": "llama", "three": "gpt2"}
    worth = {("one", "two"): 0.8, ("one", "three"): 0.2, ("two", "three"): 0.4}

    def row(ends, task):
        size = worth[tuple(sorted(ends, key=list(families).index))]
        numbers = dict.fromkeys(("edges", "edges_paper", "ratio", "random_95"), size)
        return {"from": f"{ends[0]}, neurons", "to": f"{ends[1]}, neurons", "task": task} | numbers | {
            "faithfulness": {"value": size + (0.1 if task == "ioi" else -0.1)}
        }  # fmt: skip

    rows = [row(ends, task) for pair in worth for ends in (pair, pair[::-1]) for task in ("ioi", "agreement")]
    same, other = transfer.summary(rows, families, seed=0)
    assert (same["models"], same["pairs"], other["models"], other["pairs"]) == ("same family", 1, "other family", 2)
    assert same["ratio"] == {"value": pytest.approx(0.8), "low": pytest.approx(0.8), "high": pytest.approx(0.8)}
    for name in ("ratio", "faithfulness", "edges"):
        assert other[name] == {"value": pytest.approx(0.3), "low": pytest.approx(0.2), "high": pytest.approx(0.4)}


def test_what_is_held_out_together_counts_once():
    values = {("a", "score"): [0.2, 0.4], ("a", "net"): [0.5, 0.7], ("b", "score"): [0.8], ("b", "net"): [0.6]}
    each = [{"held_out": held, "by": by, "auroc": x} for (held, by), xs in values.items() for x in xs]
    score, net = membership.summary(each, names=("auroc",))
    assert (score["auroc"], net["auroc"]) == (pytest.approx(0.55), pytest.approx(0.6))
    assert score["auroc gain"] == {"value": 0, "low": 0, "high": 0}
    gain = net["auroc gain"]
    assert gain["value"] == pytest.approx((0.3 - 0.2) / 2)
    assert (gain["low"], gain["high"]) == (pytest.approx(-0.2), pytest.approx(0.3))


def test_results_of_suites_and_ablations_have_names_of_their_own():
    config = circuit_baselines.Config
    names = [
        circuit_baselines.variant(c)
        for c in (config(), config(ablation="mean"), config(suite="smollm2-edges"), config(suite="mod113"))
    ]
    assert names == ["", "mean", "smollm2_edges", "mod113"]

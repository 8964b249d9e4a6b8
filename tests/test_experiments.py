"""Experiments: modules are whole, helpers compute what they say, every committed result can be traced back."""

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import (
    common,
    path_balance,
    perturbation,
    pullback_overlap,
    qk_attention,
    row_sums,
    selection_rule,
    toys,
)
from experiments.bench import lazy_decoder, paths, rival_trainers, trainers
from experiments.bench.attribution import least_flops
from tcircuits.attribution import attribute
from tcircuits.attribution.reference_selection import visited

EXPERIMENTS = Path(common.__file__).parent
HELPERS = {
    *(
        "common",
        "toys",
        "autodiff",
        "processes",
        "format_cases",
        "rival_readers",
        "reading",
        "figures_circuits",
        "figures_dictionaries",
        "figures_hierarchy",
        "figures_speed",
    ),
    "bench.attribution_cases",
    *("bench.rival_auto_circuit", "bench.rival_circuit_tracer", "bench.rival_paths", "bench.rival_trainers"),
}
MODULES = sorted(
    ".".join(path.relative_to(EXPERIMENTS).with_suffix("").parts)
    for folder in (EXPERIMENTS, EXPERIMENTS / "bench")
    for path in folder.glob("*.py")
    if path.stem != "__init__"
)
RESULTS = sorted((EXPERIMENTS / "results").glob("*.json"))


@pytest.fixture(scope="module")
def small():
    """A random model whose features are all expanded, as `selection_rule` sees a prompt."""
    model = toys.random_model("llama")
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, 6)
    d = toys.random_dictionary(model, "plt-relu", tokens, share=0.25)
    graph = attribute(model, d, tokens, position_zero="nodes", chunk=96 * 6)
    settings = selection_rule.Settings(max_features=None, position_zero="nodes")
    frozen = selection_rule.freeze_prompt(model, d, graph.tokens, settings)
    (targets,), _ = selection_rule.resolve(model, d, frozen, None, settings)
    return selection_rule.Case(model, d, graph, frozen, targets)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in HELPERS])
def test_every_module_has_a_config_and_a_main(name):
    module = importlib.import_module(f"experiments.{name}")
    cfg = module.Config()
    assert callable(module.main)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cfg, dataclasses.fields(cfg)[0].name, None)
    assert f"python -m experiments.{name}" in module.__doc__


@pytest.mark.slow
def test_row_sums_runs_and_leaves_a_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    row_sums.main(row_sums.Config(families=("llama",), kinds=("plt-relu",), dtypes=("float64",), length=3, models=()))
    found = json.loads((tmp_path / "row_sums.json").read_text())
    (row,) = found["figures"]["random"]
    assert (row["family"], row["within"]) == ("llama", True)
    assert 0 < row["max_row_gap"] < 1e-13
    assert found["config"]["length"] == 3
    assert "plt-relu" in capsys.readouterr().out


@pytest.mark.slow
def test_perturbation_compares_every_source_and_target():
    found = perturbation.case("llama", "neurons", "float32", 3)
    assert found["sources"] == 4 * 3 * 64 + 4 * 3 + 3
    assert found["targets"] > 4 * 3 * 64
    assert found["within"]
    assert 0 < found["gap"] < 1e-6
    assert 0 < found["gap_layer0"] < 1e-6
    assert 0 < found["products_gap"] < 8 * 2.0**-24


@pytest.mark.slow  # two programs of a whole sweep are compiled
def test_paths_through_heads_add_up_to_the_edges_of_an_attribution_graph():
    found = path_balance.edges("neox", "plt-relu")
    assert found["within"]
    assert found["edges"] > 4
    assert found["paths"] > found["edges"]
    assert 0 < found["difference"] <= 1e-6


@pytest.mark.slow
def test_the_rivals_find_the_paths_that_the_package_finds():
    cfg = paths.Config(small=True, length=7, d_feature=200, active=12, layer=6, iterations=3, branches=5, repeats=1)
    found = paths.measure(cfg)
    assert all(found["sides"][name]["same_paths"] for name in ("cached", "reference_row", "reference"))
    assert max(found["sides"][name]["difference"] for name in ("cached", "reference")) < 1e-5
    assert found["sides"]["reference"]["dense"]["dictionary"] == 2 * found["sides"]["reference"]["layer_visits"]
    assert found["active"]["mean"] == pytest.approx(12, rel=0.3)
    assert found["max_gap"] <= 1e-6


def test_a_score_by_groups_of_sources():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    table = qk_attention.tabulate((a, b), [list("xyxyx"), list("uuvw")])
    assert len(table) == 6
    assert table["x", "u"] == pytest.approx((a[[0, 2, 4]] @ b[:2].T).sum())
    assert sum(table.values()) == pytest.approx((a @ b.T).sum())


def test_overlaps_are_means_over_the_sources_of_a_target():
    def part(layer, source, first, value):
        x = np.full((2, 1), value)
        return {"layer": layer, "source": source, "first": first, "overlap": x, "reachable": x, "twera": x}

    parts = [part(1, 0, 0, 0.5), part(2, 0, 0, 0.2), part(2, 1, 0, 0.4)]
    found = pullback_overlap.by_target(parts)
    np.testing.assert_allclose([p["overlap"][0, 0] for p in found], [0.5, 0.3])
    (row,) = pullback_overlap.figures(found, (10,))
    assert (row["k"], row["targets"]) == (10, 4)
    assert row["overlap"] == pytest.approx(0.4)
    assert row["low"] < 0.4 < row["high"]


@pytest.mark.slow
def test_the_lazy_benchmark_compares_both_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling is all of its time
    cfg = lazy_decoder.Config(cases=("cross-layer",), small=True, length=5, active=10, max_features=40)
    lazy_decoder.main(cfg)
    (found,) = json.loads((tmp_path / "bench_lazy_decoder.json").read_text())["figures"]["cases"]
    sizes, lazy, whole = found["sizes"], found["lazy"], found["whole"]
    F, D, L = sizes["d_feature"], sizes["d_model"], sizes["n_layers"]
    assert found["graphs"]["same_nodes"]
    assert found["graphs"]["edge_difference"] < 1e-6
    assert 40 < found["graphs"]["active"][0] == found["graphs"]["active"][1]
    encoders, decoders = 2 * L * F * D / 1e9, L * (L + 1) * F * D / 1e9
    assert encoders < lazy["read_gb"] < encoders + decoders / 2
    assert whole["read_gb"] >= encoders + decoders
    assert 0 < lazy["before_gb"] < lazy["peak_gb"]


def test_thresholds_stand_in_gaps():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(7, 16)), rng.normal(size=(3000, 16))
    largest = np.sort((x @ w.T).ravel())[::-1]
    for wanted in (60, 420):
        n = (largest > lazy_decoder.gap(x, w, wanted)).sum()
        gaps = {k: largest[k - 1] - largest[k] for k in range(int(0.96 * wanted), int(1.04 * wanted))}
        assert 0.94 * wanted <= n <= 1.06 * wanted
        assert largest[n - 1] - largest[n] >= max(gaps.values())


def test_a_row_that_does_not_balance_is_found(small):
    value = small.graph.row_value.copy()
    value[7] *= 1.01
    gap = row_sums.gaps(dataclasses.replace(small.graph, row_value=value))
    assert gap[7] > 1e-4
    assert np.delete(gap, 7).max() < 1e-6


@pytest.mark.parametrize("queue", [50, 1000])
def test_the_rounds_visit_what_the_package_visits(small, queue):
    """One order serves all sizes; the package's own rounds work on a dense matrix, once for each size."""
    order = selection_rule.visiting_order(small.graph, 170, queue)
    for n in (30, 120, 170):
        mask = np.zeros(small.graph.n_features, bool)
        mask[order[:n]] = True
        assert (mask == visited(small.graph, n, queue)).all()


def test_direct_effects_are_the_targets_edges(small):
    score, _ = small.scores(selection_rule.direct)
    n, k = small.graph.n_features, len(small.graph.targets)
    edges = np.abs(small.graph.dense()[-k:, :n])
    np.testing.assert_allclose(score, small.graph.target_weights @ edges, rtol=1e-4, atol=1e-6)


def test_shares_of_the_oracle(small):
    cfg = selection_rule.Config(sizes=(20, 100), probes=(64,), queues=(40,), draws=3)
    about, rows = selection_rule.captured(small, cfg)
    by_rule = {row["rule"]: row["of_oracle"] for row in rows}
    assert about["features"] == small.graph.n_features
    assert set(by_rule) == {"sketch 64", "effect", "direct", "rounds 40", "random"}
    assert all(0 < share <= 1 for shares in by_rule.values() for share in shares.values())
    assert by_rule["sketch 64"]["100"] > by_rule["random"]["100"] + 0.1


def test_least_work_is_counted_layer_by_layer():
    cfg = SimpleNamespace(n_layers=3, d_model=5, n_heads=4, n_kv_heads=2, d_head=3)
    features = np.array([[0, 0, 1], [0, 2, 4], [1, 1, 0], [1, 3, 2], [2, 2, 2]])
    targets = [SimpleNamespace(layer=3, pos=3)]
    graph = SimpleNamespace(
        features=features, targets=targets, tokens=np.zeros(4), row_layer=np.array([0, 0, 1, 1, 2, 3])
    )
    macs = 0
    for layer, pos in [*features[:, :2].tolist(), (3, 3)]:
        macs += 5 * (pos + 1)  # tokens
        for m in range(layer):
            for p in range(pos + 1):
                macs += 5 * 4 * 3 + 5 * 2 * 3 + 4 * 3 * (p + 1) + 5  # output and value projections, pattern, error
                macs += 5 * int(((features[:, 0] == m) & (features[:, 1] == p)).sum())
    n_active = np.zeros((3, 4))
    np.add.at(n_active, (features[:, 0], features[:, 1]), 1)
    assert least_flops(cfg, graph, n_active) == 2 * macs


@pytest.mark.parametrize("kind", toys.KINDS)
def test_the_wanted_share_of_features_is_active(kind):
    model = toys.random_model("neox")
    tokens = np.random.default_rng(2).integers(0, 97, 9)
    d = toys.random_dictionary(model, kind, tokens, share=0.25)
    if kind == "neurons":
        assert d.w_enc is None
        return
    assert all(float(abs(x).min()) > 0 for x in jax.tree.leaves(d))
    if d.cfg.activation == "relu":
        site = "resid_pre" if d.cfg.reads == "resid_mid" else "mlp_in"
        x = toys.forward(model.cfg, model.params, tokens[None], sites=(site,)).acts[site][:, 0, 1:]
        f = np.einsum("ltd,lfd->ltf", x, d.w_enc) + np.asarray(d.b_enc)[:, None]
        np.testing.assert_allclose((f > 0).mean((1, 2)), 0.25, atol=0.003)


def test_a_command_is_measured_and_its_failure_is_told():
    held = bytearray(b"x" * 900_000_000)  # must not count as the command's memory
    done = common.run([sys.executable, "-c", "x = bytearray(300_000_000); print(len(x))"])
    assert done.stdout == "300000000\n"
    assert 0.3 < done.peak_rss_gb < 0.6
    assert done.wall > 0
    assert common.peak_rss_gb() > len(held) / 1e9
    with pytest.raises(RuntimeError, match=r"(?s)exit code 3.*on purpose"):
        common.run([sys.executable, "-c", "import sys; print('on purpose', file=sys.stderr); sys.exit(3)"])


def test_a_figure_that_is_not_finite_leaves_the_old_result(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    cfg = row_sums.Config()
    path = common.save("row_sums", cfg, {"gap": np.float32(0.5), "rows": np.arange(3)})
    assert json.loads(path.read_text())["figures"] == {"gap": 0.5, "rows": [0, 1, 2]}
    with pytest.raises(ValueError, match="nan"):
        common.save("row_sums", cfg, {"gap": math.nan})
    assert json.loads(path.read_text())["figures"]["gap"] == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["row_sums.json"]


def test_a_variant_is_a_file_of_its_own_and_asks_no_device(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "hardware", None)
    path = common.save("bench.trainers", trainers.Config(), {"x": 1}, variant="gpu", machine={"device": "H100"})
    assert path.name == "bench_trainers_gpu.json"
    assert json.loads(path.read_text())["hardware"] == {"device": "H100"}


def test_trainers_large_and_bfloat16_are_for_a_gpu():
    with pytest.raises(ValueError, match="--device gpu"):
        trainers.main(trainers.Config(precisions=("bfloat16",)))
    small, large = (trainers.gpu_recipes(trainers.Config(), size) for size in ("small", "large"))
    assert tuple(small) == trainers.GPU_NAMES
    assert tuple(large) == ("topk", "topk sae", "batchtopk")
    assert trainers.flops(large["topk"])[0] == 5 * 2 * 8192 * 2048 * 32768


def test_a_rival_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    def good(c):
        return lambda x, y: 3.0

    def bad(c):
        raise RuntimeError("no memory")

    monkeypatch.setattr(rival_trainers, "RIVALS", {"good": ("numpy", good), "bad": ("numpy", bad)})
    monkeypatch.setattr(rival_trainers, "batches", lambda c: [(0, 0)] * 3)
    monkeypatch.setattr(rival_trainers, "peak", lambda *a, **k: 5e9)
    monkeypatch.setattr(rival_trainers.importlib.metadata, "version", lambda name: "1")
    torch = SimpleNamespace(cuda=None, get_num_threads=lambda: 2)
    monkeypatch.setattr(rival_trainers, "load", lambda name: torch)
    case = {"precision": "float32", "warmup": 1, "repeats": 9, "steps": 4, "seconds": 0.0}
    rival_trainers.main([case | {"rival": "bad"}, case | {"rival": "good"}])
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert found["peak_gflops"] == {"float32": 5.0}
    assert found["cases"][0] == {"error": "RuntimeError: no memory"}
    assert found["cases"][1]["l0"] == 3.0
    assert "good" in out.err


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_result_says_where_it_comes_from(path):
    text = path.read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda x: pytest.fail(f"{x} is no figure"))
    assert set(found) - {"variant"} == set(common.KEYS)
    assert found["experiment"] in MODULES
    suite = found["config"].get("suite")
    variant = "_gpu" if found["config"].get("device") == "gpu" else f"_{suite}" if suite else ""
    variant = "_full" if found["config"].get("scale") == "full" else variant
    if found["experiment"] == "bench.attribution" and found["hardware"]["platform"] == "gpu":
        variant = "_gpu" if "H200" in found["hardware"]["device"] else "_gpu_h100"  # a later run went to another GPU
    variant = f"_{found['variant']}" if "variant" in found else variant  # earlier results do not tell theirs
    assert path.stem == found["experiment"].replace(".", "_") + variant
    assert found["command"] == f"python -m experiments.{found['experiment']}"
    module = importlib.import_module(f"experiments.{found['experiment']}")
    assert set(found["config"]) <= {f.name for f in dataclasses.fields(module.Config)}
    assert found["figures"]
    assert set(found["versions"]) >= {"python", "jax", "numpy", "tcircuits"}
    assert set(found["hardware"]) >= {"cpu", "cores", "memory_gb", "device"}
    assert set(found["git"]) == {"commit", "dirty"}
    assert not [name for name in ("/tmp", "/home", "/root", "/work") if name in text]


def test_sums_that_must_balance_do_so_in_every_result():
    found = {path.name: path.read_text(encoding="utf-8") for path in common.RESULTS.glob("*.json")}
    assert [name for name, text in found.items() if '"within": false' in text] == []
    assert sum('"within": true' in text for text in found.values()) >= 4


def test_the_readme_shows_the_figures_of_the_result_files():
    from experiments import figures

    text = figures.ROOT.joinpath("README.md").read_text(encoding="utf-8")
    assert figures.with_table(text) == text, "run `make figures`"
    assert all(f"`python -m {where}`" in text for where in ("experiments.row_sums", "experiments.bench.attribution"))

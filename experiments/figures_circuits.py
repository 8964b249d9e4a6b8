"""Rows about circuits for the table of figures in README.md."""

from statistics import mean
from typing import Any

from experiments.algorithms.folders import DEEPER, SEEDS
from experiments.reading import Row, read


def circuit_rows() -> list[Row]:
    """Circuits of the embedded model, and how fast they run."""
    rows: list[Row] = []
    cases = [("tiny", c) for c in read("circuit_baselines")["figures"]["cases"]]
    for model, c in [*cases, *(("smollm2-135m", c) for c in read("circuit_baselines_smollm2")["figures"]["cases"])]:
        first, nulls = c["rows"][0], c["nulls"]
        if model == "tiny" and first["units"] == "head,mlp":
            continue
        by = {r["method"]: r for r in c["rows"]}
        f = first["faithfulness"]
        what = f"`{model}`, {first['task'].replace('_', '-')}: {first['kept']} of {first['of']:,} "
        what += {"edge": "edges", "head,mlp": "heads and MLPs"}.get(first["units"], "heads and neurons")
        text = f"faithfulness {f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}], phi {first['phi']['value']:.2f}; "
        text += f"nothing: phi {nulls['nothing_phi']:.2f}; 95th percentile of random: "
        text += f"{nulls['random_faithfulness_95']:.2f}, {nulls['random_phi_95']:.2f}; "
        text += f"overlap over resampled prompts {first['jaccard']['mean']:.2f}; CMD "
        text += ", ".join(f"{m} {r['CMD']:.3f}" for m, r in by.items() if m != "random")
        rows.append((what, text, f"experiments.circuit_baselines{'' if model == 'tiny' else ' --suite smollm2'}"))
    for b in read("bench_circuits")["figures"]["rows"]:
        what = f"circuits on prompts of `tiny` a second, {b['n']:,} units ({b['units']})"
        text = f"{b['together']:,.0f} together, {b['single']:,.0f} one at a time: {b['ratio']:.0f}x"
        rows.append((what, text, "experiments.bench.circuits"))
    return [
        *rows,
        *five_rows(),
        *rival_rows(),
        *edge_rows(),
        *patched_rows(),
        *addition_rows(),
        *known_rows(),
        *error_rows(),
    ]


FIVE = {
    "": "",
    "mean": " --ablation mean",
    "positions": " --suite positions",
    "smollm2_positions": " --suite smollm2-positions",
}


def five_rows() -> list[Row]:
    """Circuits of 5 % of the edges, or of the units by position, by every method; resampling and mean ablation."""
    rows: list[Row] = []
    for variant, options in FIVE.items():
        for c in read("circuit_baselines" + (variant and f"_{variant}"))["figures"]["cases"]:
            first, nulls = c["rows"][0], c["nulls_five"]
            if first["units"] != "edge" and not first.get("positions"):
                continue
            of = {"neurons": "heads and neurons", "tiny-transcoders": "heads and transcoder features"}
            kind = "edges" if first["units"] == "edge" else f"{of[first['transcoders']]} by position"
            what = f"`{first['model']}`, {first['task'].replace('_', '-')}, "
            what += f"{'mean ablation' if variant == 'mean' else 'resampling'}: 5 % of the {kind} "
            what += f"({first['five']['kept']:,} of {first['of']:,}), faithfulness / phi, and CMD"
            parts = (f"{r['method']} {_pair(r['five'])}, {r['CMD']:.3f}" for r in c["rows"] if r["method"] != "random")
            text = f"{'; '.join(parts)}; nothing: phi {nulls['nothing_phi']:.2f}; 95th percentile of random: "
            text += f"{nulls['random_faithfulness_95']:.2f} / {nulls['random_phi_95']:.2f}"
            rows.append((what, text, f"experiments.circuit_baselines{options}"))
    return rows


def _pair(circuit: dict[str, Any]) -> str:
    return f"{circuit['faithfulness']['value']:.2f} / {circuit['phi']['value']:.2f}"


def edge_rows() -> list[Row]:
    """What scores of all edges cost."""
    f = read("bench_edges")["figures"]
    by, memory = {r["method"]: r for r in f["every_edge"]}, f["memory"]
    what = f"scores of all {by['exact']['edges']} edges of `tiny`, {by['exact']['prompts']} prompts, seconds"
    text = ", ".join(f"{name} {r['seconds']:.2g}" for name, r in by.items())
    rows: list[Row] = [(what, text, "experiments.bench.edges")]
    first, ig = memory[0], next(r for r in memory if r["method"] == "ig")
    what = f"the same of Llama-3.1-8B's {first['edges']:,} edges, 8 prompts of 64 tokens, memory by the compiler"
    text = f"eap-ig {first['weights_gb'] + first['beside_gb']:.0f} GB with the weights; by masks (ig) "
    text += f"{ig['weights_gb'] + ig['beside_gb']:.0f} GB"
    return [*rows, (what, text, "experiments.bench.edges")]


def rival_rows() -> list[Row]:
    """Circuits a second against auto-circuit."""
    f = read("bench_circuits")["figures"].get("auto_circuit")
    if f is None:
        return []
    what = f"{f['circuits']} nested circuits of edges on {f['prompts']} prompts, against auto-circuit's `run_circuits`"
    text = f"{f['per_second']:,.0f} circuits on prompts a second, theirs {f['rival_per_second']:,.0f}: "
    text += f"{f['times_faster']:.1f}x; largest gap of logits {f['largest_gap_of_logits']:.1e}"
    return [(what, text, "experiments.bench.circuits")]


def patched_rows() -> list[Row]:
    """Edges of attribution graphs against patching."""
    rows = [r for r in read("edge_patching")["figures"]["rows"] if r["transcoders"] == "tiny-transcoders"]
    by = {(r["way"], r["source"], r["target"]): r for r in rows}
    targets = {"feature": "features", "difference": "the difference of the first two logits"}
    parts = []
    for way, told in (("norms", "norms computed anew"), ("free", "patterns too")):
        each = [f"{by[way, 'all', t]['pearson']:.3f} into {name}" for t, name in targets.items()]
        parts.append(f"{told}: {', '.join(each)}")
    pairs = by["free", "all", "all"]["pairs"]
    what = f"attribution graphs' edges against taking each source out, MLPs held, {pairs:,} pairs on `tiny`, Pearson"
    return [(what, "; ".join(parts), "experiments.edge_patching")]


def addition_rows() -> list[Row]:
    """Models of addition modulo 113 and circuits of them."""
    every = read("algorithmic")["figures"]["models"]
    models = {k: every[k] for k in SEEDS}
    steps = ", ".join(f"{m['training']['generalised']:,}" for m in models.values())
    what = f"addition modulo 113, {len(models)} seeds: steps until 99 % right on what was held out"
    rows: list[Row] = [(what, steps, "experiments.algorithmic"), _deeper(every[DEEPER])]
    for m in read("circuit_baselines_mod113")["figures"]["over_models"]:
        if m["method"] != "ig" or m["units"] == "edge" or m["errors"] != "keep":
            continue
        of = "transcoder features" if m["transcoders"] == "own" else "neurons"
        what = f"the same {m['models']} models: {m['kept']:.0f} of {m['of']:.0f} heads and {of}, mean over models"
        phi = m["phi"]
        text = f"phi {phi['value']:.2f} [{phi['low']:.2f}, {phi['high']:.2f}]; nothing: {m['nothing_phi']:.2f}; "
        text += f"95th percentile of random: {m['random_phi_95']:.2f}"
        rows.append((what, text, "experiments.circuit_baselines --suite mod113"))
    return rows


def _deeper(m: dict[str, Any]) -> Row:
    """The model of two layers, and its dictionaries."""
    sets = [f"{kind} {d['accuracy_replaced']:.1%} (FVU {mean(d['fvu']):.3f})" for kind, d in m["dictionaries"].items()]
    accuracy, steps = m["known"]["accuracy"]["held_out"], m["training"]["generalised"]
    what = "the same with two layers: right on what was held out; with all MLPs replaced"
    return what, f"{accuracy:.1%} after {steps:,} steps; {', '.join(sets)}", "experiments.algorithmic"


def known_rows() -> list[Row]:
    """Circuits that are known, in networks trained to have them."""
    f = read("siit")["figures"]
    what = (
        f"area under the ROC curve of edges of known circuits, median of {len(f['rows'])} networks with trained weights"
    )
    text = ", ".join(f"{name} {value:.3f}" for name, value in f["median_auroc"].items())
    return [(what, text, "experiments.siit")]


def error_rows() -> list[Row]:
    """Whether circuits make the model's mistakes."""
    rows, found = read("model_errors")["figures"]["rows"], []
    for units in ("edge", "head,feature"):
        by = {r["method"]: r for r in rows if r["units"] == units and (r.get("chosen") or not r["kept"])}
        kept = by["ig"]
        of = "edges" if units == "edge" else "heads and neurons"
        what = f"`tiny`, induction: {kept['kept']} of {kept['of']:,} {of}: "
        what += f"the model's own choice where it is right, and where it is wrong ({kept['a_err']['n']} prompts)"
        parts = (f"{m} {r['a_ok']['share']['value']:.2f}, {r['a_err']['share']['value']:.2f}" for m, r in by.items())
        found.append((what, "; ".join(parts), "experiments.model_errors"))
    return found

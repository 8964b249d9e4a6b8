"""The table of measured figures in README.md, from the result files that the other modules write.

python -m experiments.figures            prints the table
python -m experiments.figures --write    puts it between the markers in README.md
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.figures_circuits import circuit_rows
from experiments.figures_hierarchy import tree_rows
from experiments.figures_speed import extraction_rows, speed_rows
from experiments.reading import RESULTS, Row, read

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- figures: written by `make figures` -->"
END = "<!-- end of figures -->"


def reference_rows() -> list[Row]:
    """The real model against the reference implementation."""
    f = read("smollm2_reference")["figures"]
    answers = ", ".join(f'p("{a["answer"]}") = {a["p"]:.4f}' for a in f["answers"])
    apart = f"{f['logits']['max_difference']:.1e} over {f['logits']['tokens']} tokens"
    where = "experiments.smollm2_reference"
    return [
        ("SmolLM2-135M from its GGUF file", answers, where),
        ("its logits against the reference implementation, largest difference", apart, where),
    ]


def balance_rows() -> list[Row]:
    """How well rows balance."""
    f, where = read("row_sums")["figures"], "experiments.row_sums"
    random = f"{f['random_max']['float64']:.1e} (float64), {f['random_max']['float32']:.1e} (float32)"
    real = ", ".join(f"{p['max_row_gap']:.1e} ({p['dtype']})" for p in f["pretrained"] if p["model"] == "smollm2-135m")
    return [
        (f"`max_row_gap` on {len(f['random']) // 2} random models and dictionaries", random, where),
        ("`max_row_gap` on SmolLM2 with neurons", real, where),
    ]


def perturbation_rows() -> list[Row]:
    """How well edits agree with edges."""
    f, where = read("perturbation")["figures"]["summary"], "experiments.perturbation"
    rows: list[Row] = []
    for dtype, r in f.items():
        what = f"edits against edges, {r['cases']} random models and dictionaries, {r['targets']:,} targets, {dtype}"
        text = f"{r['gap']:.1e} of row L1 and bias beyond layer 0, {r['gap_layer0']:.1e} in layer 0 (run in float64, "
        text += f"as the graph has those rows; in the model's dtype {r['products_gap']:.1e} of the absolute products)"
        rows.append((what, text, where))
    return rows


def _dictionary_rows(result: str, model: str, command: str) -> list[Row]:
    """What is left of a small model where its MLPs are replaced."""
    rows: list[Row] = []
    for name, s in read(result)["figures"]["sets"].items():
        every, alive = s["all"], f"{s['dead_features']} of {s['features']:,} features dead"
        what = f"`{model}` with all MLPs replaced: {name.split('-')[0]}, {s['mean_l0']:.1f} features on"
        recovered = every["recovered"]["zero"]
        text = f"{100 * recovered['value']:.1f} % of the loss recovered [{100 * recovered['low']:.1f}, "
        text += f"{100 * recovered['high']:.1f}], same top token {100 * every['agree']['dictionary']:.0f} %, {alive}"
        if "dead_over_positions" in s:
            text += f" over {s['dead_over_positions']:,} positions"
        rows.append((what, text, command))
    return rows


def embedded_rows() -> list[Row]:
    """The embedded model, its dictionaries, and its trace."""
    rows = _dictionary_rows("tiny_dictionaries", "tiny", "experiments.tiny_dictionaries")
    warm, cold = (read("trace_tiny")["figures"][k] for k in ("warm", "cold"))
    text = (
        f"{cold['wall']:.0f} s the first time, {warm['wall']:.1f} s with compiled programs on disk; replacement score "
    )
    text += f"{warm['replacement_score']:.2f}, completeness {warm['completeness_score']:.2f}"
    rows.append((f"trace of `tiny`, {warm['n_features']} features, all expanded", text, "experiments.trace_tiny"))
    return rows


def family_rows() -> list[Row]:
    """Models of other families and seeds: what they have learned, and their transcoders."""
    rows: list[Row] = []
    for path in sorted(RESULTS.glob("tiny_lm_*.json")):
        name = path.stem.removeprefix("tiny_lm_")
        family, seed = name.rsplit("-", 1)
        f = read(path.stem)["figures"]
        of = f["accuracy_held_out"]
        told = (
            f"{part.replace('_', '-')} {100 * of[part]['all']:.1f} %" for part in ("ioi", "greater_than", "induction")
        )
        text = f"{', '.join(told)}, agreement {100 * of['agreement']['all']:.1f} %; prose "
        text += f"{f['held_out_ce']['prose_bits_per_byte']:.2f} bits a byte; {f['training']['minutes']:.0f} min"
        what = f"`tiny-{name}`, the same corpus, accuracy on held-out content"
        rows.append((what, text, f"experiments.tiny_lm --family {family} --seed {seed}"))
    for path in sorted(RESULTS.glob("tiny_dictionaries_*.json")):
        name = path.stem.removeprefix("tiny_dictionaries_")
        rows += _dictionary_rows(path.stem, name, f"experiments.tiny_dictionaries --model experiments/models/{name}")
    return rows


def claim_rows() -> list[Row]:
    """Transcoders against SAEs; cross-layer transcoders that skip hops."""
    rows: list[Row] = []
    for path in sorted(RESULTS.glob("transcoder_against_sae*.json")):
        name = path.stem.removeprefix("transcoder_against_sae").removeprefix("_")
        a = read(path.stem)["figures"]["against_sae"]
        what = f"`{name or 'tiny'}`, one MLP replaced: transcoder no worse than an SAE at equal L0"
        text = f"{a['hold']} of {a['pairs']} pairs of layer, seed and L0 ({a['below_zero']} told from zero; the "
        text += f"reverse in {a['above_zero']})"
        command = f"experiments.transcoder_against_sae{f' --model experiments/models/{name}' if name else ''}"
        rows.append((what, text, command))
    by = {(r["row"]["kind"], r["row"]["l1"]): r["row"] for r in read("cross_layer_shortcut")["figures"]["rows"]}
    l1 = max(value for _, value in by)
    plt, clt = by["transcoder", l1], by["clt", l1]
    what = "two-hop Boolean network: share of its answer that survives when the step between is taken out"
    text = f"per-layer {max(plt['intervention'], 0.0):.2f}, cross-layer {clt['intervention']:.2f} (right: 0), "
    text += f"unexplained variance {plt['fvu']:.3f} and {clt['fvu']:.3f}"
    return [*rows, (what, text, "experiments.cross_layer_shortcut")]


def trace_rows() -> list[Row]:
    """The trace that `make demo-smollm2` runs."""
    f, where = read("trace_smollm2")["figures"], "experiments.trace_smollm2"
    warm = f["warm"]
    stages = ", ".join(f"{k} {v:.1f}" for k, v in warm["seconds"].items())
    return [
        (
            "SmolLM2: trace of five tokens, 7,500 of 230,400 neurons expanded, first run",
            f"{f['cold']['wall']:.0f} s",
            where,
        ),
        ("the same with compiled programs on disk", f"{warm['wall']:.0f} s ({stages})", where),
        ("its peak memory", f"{warm['peak_rss_gb']:.1f} GB", where),
        ("its influence that ends in features not expanded", f"{100 * warm['unexpanded_share']:.0f} %", where),
    ]


def selection_rows() -> list[Row]:
    """How much influence the rule that selects features catches."""
    rules = {r["rule"]: r for r in read("selection_rule")["figures"]["summary"]}
    ours, effect, rounds = (rules[r]["of_oracle"]["1000"]["mean"] for r in ("sketch 64", "effect", "rounds 256"))
    found = f"{100 * ours:.1f} % (by effect {100 * effect:.1f} %, in rounds of 256 {100 * rounds:.1f} %)"
    what = "influence that 1,000 selected features carry, of what the best 1,000 do (full expansion, 4-layer model)"
    return [(what, found, "experiments.selection_rule")]


def format_rows() -> list[Row]:
    """Dictionaries that go through files to other tools, and back."""
    f, where = read("format_readers")["figures"], "experiments.format_readers"
    versions = {name: v for tool in f["tools"].values() for name, v in tool["versions"].items()}
    names = {"circuit-tracer": "circuit-tracer", "sae-lens": "SAELens", "eai-sparsify": "sparsify"}
    tools = ", ".join(f"{name} {versions[package]}" for package, name in names.items() if package in versions)
    rows = [row for tool in f["tools"].values() for row in tool["rows"]]
    refused = sum(row["verdict"].startswith("refused") for row in rows)
    rest = len(rows) - f["summary"]["same"] - refused
    found = (
        f"{f['summary']['same']} of {len(rows)} the same within {f['summary']['largest_difference']:.0e} "
        f"(float64), {refused} refused by one side, in {rest} the tool drops k or the skip"
    )
    return [(f"dictionaries that one side wrote and the other computes with: here and {tools}", found, where)]


def lazy_rows() -> list[Row]:
    """Dictionaries that stay on disk, against the same in memory."""
    out: list[Row] = []
    for c in read("bench_lazy_decoder")["figures"]["cases"]:
        lazy, whole, sizes = c["lazy"], c["whole"], c["sizes"]
        what = f"a {c['case']} set of {sizes['n_layers']} x {sizes['d_feature']:,} features left on disk, one prompt"
        read_, peak = (f"{lazy[k]:.2f} GB of {whole[k]:.2f}" for k in ("read_gb", "peak_gb"))
        again = f"{lazy['again']:.1f} s against {whole['again']:.1f} s once compiled"
        text = f"{read_} read, peak {peak}, {again}; largest difference of an edge {c['graphs']['edge_difference']:.0e}"
        out.append((what, text, "experiments.bench.lazy_decoder"))
    return out


def fuzz_rows() -> list[Row]:
    """Damaged and hostile files."""
    f = read("fuzz_loaders")["figures"]
    o = f["outcomes"]
    text = f"{o['refused']:,} refused with a message, {o['loaded']:,} loaded, {o['failed']} failed"
    least = min(row["files"] for row in f["subjects"])
    what = f"{f['files']:,} mutated files of {len(f['subjects'])} kinds, {least:,} or more of each, through the loaders"
    return [(what, text, "experiments.fuzz_loaders")]


def truth_rows() -> list[Row]:
    """Dictionaries against known features."""
    f = read("synthetic_truth")["figures"]
    by = {r["method"]: r for r in f["summary"] if r["l0_asked"] == 25.0}
    sizes = f["sizes"]["world"]
    what = f"dictionaries against {sizes['features']:,} known features (SynthSAEBench at an eighth, "
    what += (
        f"{f['sizes']['tokens']:,} samples, L0 25/8, {by['batchtopk']['seeds']} seeds; not comparable with full size)"
    )
    names = {"batchtopk": "BatchTopK", "matryoshka": "Matryoshka", "finer": "six prefixes"}
    parts = [f"{names[k]} F1 {by[k]['f1']:.2f}, MCC {by[k]['mcc']:.2f}" for k in names if k in by]
    full = read("synthetic_truth_full")["figures"]
    large, of = (
        f"the same at full size, {full['sizes']['tokens']:,} of the published 200 million samples, L0 25",
        {r["method"]: r for r in full["summary"]}["small"],
    )
    found = f"BatchTopK F1 {of['f1']:.2f}, MCC {of['mcc']:.2f}, still rising (published .73, .76)"
    beside = read("synthetic_truth_calibration")["figures"]
    mine, theirs = {r["method"]: r for r in beside["summary"]}["batchtopk"], beside["rival"]["figures"]
    told = f"F1 {mine['f1']:.3f} (sd {mine['f1_sd']:.3f}), MCC {mine['mcc']:.3f} ({mine['mcc_sd']:.3f}); SAELens "
    told += f"{theirs['classification']['f1_score']:.3f}, {theirs['mcc']:.3f}"
    again = f"BatchTopK beside SAELens's, the same sizes, {beside['sizes']['tokens']:,} samples, "
    again += f"{mine['seeds']} seeds and 1"
    return [
        (what, "; ".join(parts), "experiments.synthetic_truth"),
        (again, told, "experiments.synthetic_truth --rival-python PATH"),
        (large, found, "experiments.synthetic_truth --scale full"),
    ]


def trainer_rows() -> list[Row]:
    """Training steps against those of others."""
    f = read("bench_trainers")["figures"]
    rows = []
    for name, own in (
        ("eai-sparsify adam", "topk"), ("dictionary-learning", "topk sae"), ("sae-lens", "topk sae"),
        ("decode-clt relu", "clt relu"), ("decode-clt jumprelu", "clt jumprelu"),
    ):  # fmt: skip
        both, ratio = f["theirs"][name], f["ratios"][name]
        package, version = list(both["default"]["versions"].items())[1]
        what = f"training step, {own}, against {name.replace(package, f'{package} {version}')}, tokens a second"
        text = f"{f['ours'][own]['tokens_per_second']:,.0f} against {both['default']['tokens_per_second']:,.0f}: "
        text += f"{ratio['default']:.2f}x ({ratio['tuned']:.2f}x with its allocator tuned)"
        rows.append((what, text, "experiments.bench.trainers"))
    return rows


def gpu_rows() -> list[Row]:
    """The same on a GPU."""
    result = read("bench_trainers_gpu")
    f, card = result["figures"], result["hardware"]["device"]
    rows: list[Row] = []
    for size, what in (("small", "576 wide, 4,608 features"), ("large", "2,048 wide, 32,768 features")):
        ours, by = f["ours"]["bfloat16"][size], f["ratios"]["bfloat16"][size]
        ratios = ", ".join(f"{name} {ratio:.1f}x" for name, ratio in by.items())
        text = f"{ours['topk']['tokens_per_second']:,.0f}, {100 * ours['topk']['share_of_peak_dense']:.0f} % of the "
        text += f"peak by the dense count; times faster than {ratios}"
        what = f"training step on one {card}, TopK transcoder {what}, bfloat16 with float32 masters, tokens a second"
        rows.append((what, text, "experiments.bench.trainers --device gpu"))
    return rows


def smollm2_rows() -> list[Row]:
    """SmolLM2's transcoders."""
    f = read("smollm2_transcoders")["figures"]
    t, held, fvu = f["training"], f["held_out"], f["training"]["fvu"][-1]
    what = f"transcoders of SmolLM2's {len(fvu['by_layer'])} layers, {t['tokens'] / 1e6:.0f}M tokens, 8 features a "
    what += "dimension, 32 on: training"
    rate, mean = t["tokens_per_second"]["median"], sum(fvu["by_layer"]) / len(fvu["by_layer"])
    text = (
        f"{t['seconds_of_fills'] / 60:.1f} min on one {t['hardware']['device']}, {rate:,.0f} tokens a second, mean FVU "
    )
    text += f"of the last batches {mean:.2f}"
    rows: list[Row] = [(what, text, "experiments.smollm2_transcoders")]
    rows.append((f"the same on held-out prose, {held['positions']:,} positions", *_layers_told(held, "")))
    small = read("smollm2_transcoders_export")["figures"]
    what = f"the export that is kept with the source, trained on {small['training']['tokens']:,} tokens on a CPU"
    return [*rows, (what, *_layers_told(small["held_out"], " --layers 2,6 --expansion 3 ..."))]


def _layers_told(held: dict[str, Any], options: str) -> tuple[str, str]:
    """What replacing each layer, and all of them, leaves; and the command."""
    parts = [
        f"layer {r['layers'][0]}: FVU {fvu:.3f}, {100 * r['recovered']['zero']['value']:.0f} % of the loss recovered"
        for r, fvu in zip(held["each"], held["fvu"], strict=True)
    ]
    every = held["all"]["recovered"]["zero"]
    parts.append(f"together: {100 * every['value']:.0f} % [{100 * every['low']:.0f}, {100 * every['high']:.0f}]")
    return "; ".join(parts), f"experiments.smollm2_transcoders{options}"


def paper_rows() -> list[Row]:
    """The transcoder paper's equations, paths and studies."""
    found, f = read("equations")["figures"]["largest"], read("bench_paths")["figures"]
    of = {dtype: max(v for k, v in found[dtype].items() if k != "26") for dtype in found}
    text = f"{of['float64']:.1e} (float64), {of['float32']:.1e} (float32); equation 26, of the absolute sum: "
    text += f"{found['float64']['26']:.1e}, {found['float32']['26']:.1e}"
    rows = [("the paper's equations 7-8 and 18-28 against autodiff, largest gap", text, "experiments.equations")]
    b = read("path_balance")["figures"]["largest_gap"]
    what = "balance of every node of path graphs (4 families, 4 dictionary kinds), largest gap of what it reads"
    text = f"{b['float64']:.1e} (float64), {b['float32']:.1e} (float32)"
    rows.append((what, text, "experiments.path_balance"))
    q = {dtype: max(g["gap"], g["layer0"]) for dtype, g in read("qk_attention")["figures"]["largest_gap"].items()}
    what = "attention scores as sums over all pairs of sources (6 families), largest gap, of the pairs' absolute sum"
    rows.append((what, f"{q['float64']:.1e} (float64), {q['float32']:.1e} (float32)", "experiments.qk_attention"))
    s, r = f["sides"], f["ratios"]
    what = f"search of {f['n_paths']} paths in a random model of GPT-2 small's shape, 24,576 features a layer"
    text = f"{s['ours']['seconds']:.2f} s; the reference algorithm {s['reference']['seconds']:.1f} s "
    text += f"({r['reference']:.1f}x), with attention's weights stacked for every candidate, as its code does, "
    text += f"{s['reference_restacked']['seconds']:.1f} s ({r['reference_restacked']:.1f}x), "
    text += f"with activations cached {s['cached']['seconds']:.2f} s ({r['cached']:.2f}x)"
    rows.append((what, text, "experiments.bench.paths"))
    d = read("bench_dashboards")["figures"]
    what = f"statistics of all {d['features']:,} features of that shape in one pass, {d['l0']:.0f} of a layer on"
    text = f"{d['ratio']:.2f}x the time of forward and encoding alone, {d['tokens_per_second']:.0f} tokens a second, "
    text += f"{d['tokens']:,} tokens, peak {d['peak_gb']:.1f} GB"
    rows.append((what, text, "experiments.bench.dashboards"))
    g = read("greedy_paths")["figures"]["found"]
    what = "of the 15 strongest paths of 1, 2, 3, 4 nodes that a beam of 1,500 finds, found by a beam of 15"
    text = ", ".join(f"{100 * g[f'level_{i}']['value']:.0f} %" for i in range(1, 5))
    return [*rows, (what, text, "experiments.greedy_paths")]


def study_rows() -> list[Row]:
    """Studies on the embedded model."""
    f, k = read("greater_than")["figures"], read("known_variables")["figures"]["compared"]
    h = f["headline"]
    place = {"last": "the last position", "start": "the start year"}[h["place"]]
    what = f"greater-than on `tiny`: parts of MLP {h['layer']} at {place} "
    what += "for 95 % of its transcoder's probability difference"
    text = f"{h['features']:.1f} features, {h['neurons']:.1f} neurons"
    if h["ratio"]:
        ratio = h["ratio"]
        text += f": {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] over {ratio['n']} seeds"
    gap, kinds = k["f1_gap"], k["kinds"]
    told = f"transcoder {kinds['transcoder']['f1']['value']:.2f}, SAE {kinds['sae']['f1']['value']:.2f}; "
    told += f"difference {gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] over {gap['n']} seeds"
    p = read("pullback_overlap")["figures"]["sets"]["tiny-transcoders"]["all"]
    overlap = ", ".join(f"{100 * r['overlap']:.0f} %" for r in p)
    return [
        (what, text, "experiments.greater_than"),
        (
            "100 live features against known variables: mean held-out F1 of the best",
            told,
            "experiments.known_variables",
        ),
        (
            "overlap of pullback and mean input x gradient, best 10, 20 and 50 features",
            overlap,
            "experiments.pullback_overlap",
        ),
    ]


def table() -> str:
    """The figures as a Markdown table, and where they were measured."""
    rows = [*embedded_rows(), *family_rows(), *reference_rows(), *balance_rows(), *perturbation_rows(), *trace_rows()]
    rows += [*selection_rows(), *speed_rows(), *format_rows(), *lazy_rows(), *fuzz_rows(), *claim_rows()]
    rows += [
        *truth_rows(),
        *trainer_rows(),
        *gpu_rows(),
        *smollm2_rows(),
        *paper_rows(),
        *study_rows(),
        *circuit_rows(),
        *tree_rows(),
        *extraction_rows(),
    ]
    lines = ["| what | figure | command |", "|---|---|---|"]
    lines += [f"| {what} | {figure} | `python -m {where}` |" for what, figure, where in rows]
    h, v = read("trace_smollm2")["hardware"], read("trace_smollm2")["versions"]
    every = [read(path.stem)["hardware"] for path in sorted(RESULTS.glob("*.json"))]
    alike = [x for x in every if (x["platform"], x["cores"]) == ("cpu", h["cores"])]
    counts = Counter(x["cpu"] for x in alike)
    machine = f"machines of {h['cores']} cores and {h['memory_gb']:.0f} GB ("
    machine += ", ".join(f"{cpu}: {n} results" for cpu, n in counts.most_common())
    machine += f"), Python {v['python']}, jax {v['jax']}"
    names = ("trace_smollm2", "bench_attribution")
    load = [read(name)["hardware"]["load_average"] for name in names]
    busy = (
        f" Load average then: trace {load[0]:.1f}, benchmark {load[1]:.1f}. Above the number of cores other programs "
        "took part of the machine: such times are upper bounds, and ratios of them only rough."
    )
    return "\n".join([*lines, "", f"Measured on {machine}; the result files say on which and with which commit.{busy}"])


def with_table(readme: str) -> str:
    """The text of README.md with the table between its markers.

    Raises:
        ValueError: the markers are not there.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must hold the markers {BEGIN!r} and {END!r}, in this order")
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


@dataclass(frozen=True)
class Config:
    """What to do with the table."""

    write: bool = False
    """Put the table into README.md instead of printing it."""


def main(cfg: Config) -> None:
    """Print the table or write it."""
    if not cfg.write:
        print(table())
        return
    readme = ROOT / "README.md"
    partial = readme.with_suffix(".md.partial")
    partial.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    partial.replace(readme)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

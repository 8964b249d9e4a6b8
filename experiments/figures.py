"""The table of measured figures in README.md, from the result files that the other modules write.

python -m experiments.figures            prints the table
python -m experiments.figures --write    puts it between the markers in README.md
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from experiments.figures_circuits import circuit_rows
from experiments.figures_dictionaries import (
    claim_rows,
    embedded_rows,
    family_rows,
    gpu_rows,
    smollm2_rows,
    trainer_rows,
    truth_rows,
)
from experiments.figures_hierarchy import tree_rows
from experiments.figures_speed import edge_rows, extraction_rows, speed_rows
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
        *edge_rows(),
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

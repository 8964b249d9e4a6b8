"""Rows about hierarchies for the table of figures in README.md."""

from typing import Any

from experiments.reading import Row, read


def tree_rows() -> list[Row]:
    """All of them."""
    parts = (
        hierarchy_rows(),
        coarsening_rows(),
        network_rows(),
        topology_rows(),
        search_rows(),
        ablation_rows(),
        transfer_rows(),
    )
    return [row for part in (*parts, extracted_rows(), moved_rows()) for row in part]


def moved_rows() -> list[Row]:
    """Whether few features carry a behaviour's answer."""
    rows: list[Row] = []
    for r in read("hagd_variants")["figures"]["moved"]:
        if any(r["task"].replace("_", "-") in what for what, _, _ in rows):
            continue  # the smallest circuit of each behaviour
        what = (
            f"{r['task'].replace('_', '-')} on `tiny`: {r['units']} of {r['of']:,} features at their values on another "
        )
        what += "prompt, how often the answer is that prompt's"
        f = r["follows"]
        text = f"{f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}]; random features of the same layers "
        rows.append((what, text + f"{r['random_95']:.2f} (95th percentile)", "experiments.hagd_variants"))
    return rows


def coarsening_rows() -> list[Row]:
    """What coarsening keeps of a spectrum."""
    rows = [r for r in read("coarsening")["figures"]["rows"] if r["task"] == "ioi"]
    first = rows[0]
    what = f"graph of IOI on `tiny` ({first['nodes']:,} nodes) coarsened: median error of small eigenvalues"
    parts = [f"{r['way']} {r['eigenvalue']:.2f} ({r['clusters']} clusters)" for r in rows]
    return [
        (
            what,
            f"{', '.join(parts)}; members dealt out at random: {first['null_eigenvalue']:.2f}",
            "experiments.coarsening",
        )
    ]


def network_rows() -> list[Row]:
    """The membership network against what needs no training."""
    behaviours, models = (read(name) for name in ("membership", "membership_models"))
    n, several = len(behaviours["config"]["tasks"]), len(models["config"]["models"])
    each = len({(r["model"], r["task"]) for r in models["figures"]["each"]})
    return [
        (
            f"which nodes of a behaviour held out matter ({n} of `tiny`), AUROC",
            _gains(behaviours),
            "experiments.membership",
        ),
        (
            f"which neurons and heads of a model held out matter ({several} small models, {each} graphs), AUROC",
            _gains(models),
            "experiments.membership --models MODEL...",
        ),
    ]


def _gains(result: dict[str, Any]) -> str:
    rows = [r for r in result["figures"]["rows"] if r["by"] not in ("|score|", "degree")]
    return ", ".join(_gained(r["by"], r["auroc"], r["auroc gain"]) for r in rows)


def topology_rows() -> list[Row]:
    """The network's head for edges against what needs no training."""
    figures = read("topology")["figures"]
    what = (
        f"which edges of a behaviour held out matter ({len(figures['edges'])} of `tiny`), AUROC and average precision"
    )
    parts = []
    for r in figures["rows"]:
        gain = "" if r["by"] == "|A|" else f" (gain [{r['auroc gain']['low']:+.3f}, {r['auroc gain']['high']:+.3f}])"
        name = r["by"].replace("|", r"\|")  # of a table's cell
        parts.append(f"{name} {r['auroc']:.3f}, {r['ap']:.2f}{gain}")
    return [(what, "; ".join(parts), "experiments.topology")]


def _gained(name: str, value: float, gain: dict[str, Any]) -> str:
    beside = "" if name == "score" else f" (gain [{gain['low']:+.3f}, {gain['high']:+.3f}])"
    return f"{name} {value:.3f}{beside}"


SHOWN = ("ig", "ig, elimination", "topk", "topk, long", "gates on sound", "topk on sound", "topk on random")
SHOWN += ("topk on sound, ig as prior", "groups on sound", "groups on random")
SHOWN += ("groups on faithful, ig as prior", "groups on sound, ig as prior")


def search_rows() -> list[Row]:
    """Methods at an equal budget."""
    rows: list[Row] = []
    for c in read("hierarchical_circuits")["figures"]["cases"]:
        last = max(r["units"] for r in c["rows"])
        by = {r["method"]: r for r in c["rows"] if r["units"] == last}
        what = f"{last} of {c['units']:,} units for {c['task'].replace('_', '-')} of `tiny`, faithfulness by method"
        text = ", ".join(f"{name} {by[name]['faithfulness']['value']:.2f}" for name in SHOWN if name in by)
        null = max(n["faithfulness_95"] for n in c["nulls"])
        rows.append((what, f"{text}; 95th percentile of random {null:.2f}", "experiments.hierarchical_circuits"))
    return rows


def ablation_rows() -> list[Row]:
    """HAGD's framework without each of its parts."""
    f = read("hagd_ablation")
    whole, rows = f["config"]["cross_layer"], []
    for task in f["config"]["tasks"]:
        mine = [r for r in f["figures"]["rows"] if r["task"] == task]
        of = {r["without"]: r for r in mine if r["dictionary"] == whole}
        of["no cross-layer"] = next(r for r in mine if r["dictionary"] != whole and r["without"] == "whole")
        text = ", ".join(f"{name} {r['faithfulness']['value']:.2f} ({r['total']:.0f} s)" for name, r in of.items())
        what = (
            f"HAGD's ablation table, {task.replace('_', '-')} on `tiny`: faithfulness of 5 % of the units, and seconds"
        )
        rows.append((what, text, "experiments.hagd_ablation"))
    return rows


def transfer_rows() -> list[Row]:
    """What carries over between two dictionaries of one model."""
    rows = [r for r in read("transfer")["figures"]["rows"] if "neurons" not in r["from"]]
    edges, ratio = [r["edges"] for r in rows], [r["ratio"] for r in rows]
    what = "two dictionaries of `tiny`, four behaviours, units matched: the ceiling of any transfer between models"
    text = (
        f"{min(edges):.2f} to {max(edges):.2f} of the edges' weight shared; the mapped circuit is {min(ratio):.2f} to "
    )
    text += f"{max(ratio):.2f} times as faithful as the other's own"
    six = "six small models of three families, two seeds each, four behaviours, neurons matched, 5 % of the units"
    large = "SmolLM2-135M beside those six, induction, neurons matched, 5 % of the units"
    centre = "experiments.transfer --models MODEL... --centre smollm2-135m"
    return [
        (what, text, "experiments.transfer"),
        (six, _between_models("transfer_models"), "experiments.transfer --models MODEL..."),
        (large, _between_models("transfer_smollm2_135m"), centre),
    ]


def _between_models(result: str) -> str:
    """What carries over between models, by their neurons."""
    found = []
    for mean in read(result)["figures"]["means"]:
        edges, ratio = (f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}]" for x in (mean["edges"], mean["ratio"]))
        found.append(
            f"{mean['models']} ({mean['pairs']} pairs): {edges} of the edges' weight, mapped circuit {ratio} times as "
            f"faithful as the other's own (faithfulness {mean['faithfulness']['value']:.3f}; 95 % of random circuits "
            f"are below {mean['random_95']['value']:.3f})"
        )
    return "; ".join(found)


SEARCHES = (
    "flat top-K of scores",
    "paper's traversal",
    "120 single ablations, by strength",
    "120 group ablations, left",
    "120 group ablations, left, random tree",
    "120 group ablations, left, then elimination",
)


def hierarchy_rows() -> list[Row]:
    """Time of hierarchies, and what group ablation finds."""
    f = read("bench_hierarchy")["figures"]
    last, e = f["nodes"][-1], f["exponents"]
    text = (
        f"{last['cuts']:.0f} s of processor time, {last['rss_gb']:.1f} GB; exponent {e['cuts']['nodes']:.2f} in nodes"
    )
    what = f"hierarchy of a graph of {last['nodes']:,} nodes and {last['edges']:,} edges, top-down cuts"
    rows: list[Row] = [(what, text, "experiments.bench.hierarchy"), _stages()]
    found = [
        r
        for r in read("group_search_synthetic")["figures"]["rows"]
        if (r["noise"], r["layout"], r["redundancy"]) == (1.0, "two communities", "within") and r["method"] in SEARCHES
    ]
    parts = [f"{r['method']} {r['recall']['value']:.2f} (pairs {r['pairs']['value']:.2f})" for r in found]
    what = "planted circuits with redundant pairs, noise 1: recall of units by method"
    return [*rows, (what, ", ".join(parts), "experiments.group_search_synthetic")]


def _stages() -> Row:
    """How the stages of an extraction grow."""
    f = read("bench_extraction_stages")["figures"]
    last, e = f["rows"][-1], f["exponents"]
    what = f"stages of an extraction on `tiny`, processor seconds at {last['nodes']:,} nodes and exponent in nodes"
    parts = [f"{name} {last[name]:.2g} ({e[name]:.2f})" for name in ("tree", "search", "circuits", "network")]
    graph = f"graph of {f['graph'][-1]['features']} features a prompt {f['graph'][-1]['graph']:.2g}"
    parts += [f"{graph} ({e['graph, in features']:.2f} in features)"]
    parts += [f"{last['evaluations']:,} evaluations of a search to its end ({e['evaluations']:.2f})"]
    return what, ", ".join(parts) + f"; {last['rss_gb']:.1f} GB", "experiments.bench.extraction_stages"


def extracted_rows() -> list[Row]:
    """What extraction takes and finds."""
    rows: list[Row] = []
    for suite in ("", "positions", "smollm2", "benchmarks"):
        found = read("_".join(filter(None, ("extraction", suite))))["figures"]["rows"]
        rows += [_extracted(r, suite) for r in found if not r["refused"] or "own" in r]
    return rows


def _extracted(r: dict[str, Any], suite: str) -> Row:
    tree = "" if r["mode"] == "sound" else f", {r['mode']} tree"
    tree += ", units by position" if r.get("positions") else ""
    gate = "" if r["passes"] else f" ({100 * r['accuracy']:.0f} % right: below the gate)"
    what = f"`tc.extract`, `{r['model']}`, {r['task']}{gate}{tree}: "
    command = "experiments.extraction" + (f" --suite {suite}" if suite else "")
    if r["refused"]:
        own, other = r["own"], r.get("of_own_choices")
        text = "no circuit of right answers: with every unit ablated its likeliest token stays the same in "
        text += f"{100 * own['nothing_agrees']:.0f} % of {own['prompts']} prompts"
        if other:
            text += f"; of its own choices, all else at zero, {other['kept']} units in {other['total']:.0f} s: "
            text += f"F {other['faithfulness']['value']:.2f}, phi {other['phi']['value']:.2f}; "
            text += f"random {other['nulls']['faithfulness_95']:.2f}, {other['nulls']['phi_95']:.2f}"
        return what + "refused", text, command
    f, phi, n = r["faithfulness"], r["phi"], r["nulls"]
    found = f"{r['total']:.0f} s with loading, compiling and test; F {f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}]"
    found += f", phi {phi['value']:.2f}; random {n['faithfulness_95']:.2f}, {n['phi_95']:.2f}"
    found += f"; the best by ig F {r['baselines']['ig']['value']:.2f}"
    if not r["passes"]:
        err = r["a_err"]["share"]
        found += f"; the model's own choice where it is wrong {err['value']:.2f}" if err else ""
    return what + f"{r['kept']} of {r['units']:,} units, {r['evaluations']} evaluations", found, command

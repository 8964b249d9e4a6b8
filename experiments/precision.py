"""What does a graph lose in bfloat16 and in float32, and does its pruned circuit stay?

    python -m experiments.precision
    python -m experiments.precision --models smollm2-135m --transcoders neurons --precisions default

Each prompt's graph in float64 is the truth: the files' weights, every step in float64. Against it, for the same
targets:

    float32      weights, streams and rows in float32
    bfloat16     weights of model and dictionaries in bfloat16; streams and rows are float32 all the same

and, with `--precisions`, float32 with the rows' products in another precision of `attribute(precision=)`, which a CPU
does not have.

`row_error` is the L1 distance of a row from the true one, over its true mass |edges| + |leaves|: both rows spread over
the union of their sources (features that are active in one of them only count whole). `influence_error` is half the L1
distance of the nodes' influence, both scaled to a sum of 1: the share that lies elsewhere. `nodes` and `edges` are the
overlap (intersection over union) of what `prune` keeps at its default thresholds, `carried` the share of the true kept
nodes' influence that the other's kept nodes carry; `active` is the overlap of the active features; `logit_error` that
of the targets' demeaned logits, over their size. Figures are medians over prompts, with the worst.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import fresh, save, say, show

TRUTH = "float64"
WAYS = ("float32", "bfloat16")
SHARES = ("features", "active", "nodes", "edges", "carried")
Read = dict[str, np.ndarray]


@dataclass(frozen=True)
class Config:
    """What to compare."""

    models: tuple[str, ...] = ("tiny", "smollm2-135m")
    """Built-in names, folders, or hub ids."""
    transcoders: tuple[str, ...] = ("tiny-transcoders", "neurons")
    """A set for each model."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement")
    """Of `tcircuits.tasks.TASKS`: where prompts come from, as far as the tokenizer splits them rightly."""
    prompts: int = 2
    """Of each task."""
    max_features: int = 1000
    """With a row of their own."""
    precisions: tuple[str, ...] = ()
    """Of the rows' products (`attribute(precision=)`), in float32."""
    seed: int = 0
    """Of the prompts."""


def read(
    way: str,
    precision: str,
    model: str,
    transcoders: str,
    prompts: list[list[int]],
    targets: list[list[int]] | None,
    max_features: int,
    out: str,
) -> list[list[int]]:
    """The graphs of all prompts in one precision, in a process of its own, as files; the tokens that they explain."""
    m = tc.load_model(model, dtype=way)
    d = tc.load_transcoders(transcoders, model=m, dtype=way)
    explained = []
    for number, tokens in enumerate(prompts):
        own = None if targets is None else targets[number]
        graph = tc.attribute(m, d, np.asarray(tokens), targets=own, max_features=max_features, precision=precision)
        explained.append([int(t.token) for t in graph.targets if t.token is not None])
        arrays: dict[str, Any] = _arrays(tc.prune(graph))
        np.savez(Path(out) / f"{number}.npz", **arrays)
    return explained


def _arrays(g: tc.Graph) -> Read:
    """What is compared: nodes by number, rows and their sources, influence, what is kept."""
    layer, pos, feature = (g.features[:, i].astype(np.int64) for i in range(3))
    T = len(g.tokens)
    features = (layer * T + pos) * (1 << 32) + feature
    columns = np.concatenate([features, -1 - np.arange(g.n_errors + T)])  # errors and tokens are the same in all graphs
    rows = np.concatenate([features, -(1 << 40) - np.arange(len(g.targets))])
    assert g.node_mask is not None
    assert g.edge_mask is not None
    kept = np.stack([rows[g.edge_row[g.edge_mask]], columns[g.source[g.edge_mask]]])
    mass = np.abs(g.row_unexpanded_abs).sum((1, 2), dtype=np.float64)
    return {
        "columns": columns, "rows": rows, "start": g.row_start, "source": g.source, "weight": g.weight, "leaves": mass,
        "influence": g.influence.astype(np.float64), "kept": columns[g.node_mask[: g.n_sources]], "edges": kept,
        "values": g.row_value[g.n_features :], "n_active": np.asarray(g.n_active),
    }  # fmt: skip


def against(truth: Read, other: Read) -> dict[str, float]:
    """How far one graph is from the true one."""
    errors = _row_errors(truth, other)
    t, o = (_shares(g) for g in (truth, other))
    apart = sum(abs(t.get(n, 0.0) - o.get(n, 0.0)) for n in t.keys() | o.keys()) / 2
    kept, also = set(truth["kept"].tolist()), set(other["kept"].tolist())
    edges, others = (set(map(tuple, g["edges"].T.tolist())) for g in (truth, other))
    features = [set(g["columns"][g["columns"] >= 0].tolist()) for g in (truth, other)]
    size = np.abs(truth["values"]).max()
    return {
        "row_error_median": float(np.median(errors)),
        "row_error_95": float(np.quantile(errors, 0.95)),
        "row_error_max": float(errors.max()),
        "influence_error": apart,
        "features": _overlap(*features),
        "active": float(min(truth["n_active"], other["n_active"]) / max(truth["n_active"], other["n_active"])),
        "nodes": _overlap(kept, also),
        "edges": _overlap(edges, others),
        "carried": sum(t[n] for n in kept & also) / sum(t[n] for n in kept),
        "kept": len(kept),
        "logit_error": float(np.abs(other["values"] - truth["values"]).max() / size),
    }


def _shares(g: Read) -> dict[int, float]:
    """Every node's share of the influence."""
    return dict(zip(g["columns"].tolist(), g["influence"] / g["influence"].sum(), strict=True))


def _overlap(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / max(len(a | b), 1)


def _row_errors(truth: Read, other: Read) -> np.ndarray:
    """L1 distance over mass of every row that both have."""
    place = {n: i for i, n in enumerate(other["rows"].tolist())}
    width = {n: i for i, n in enumerate(set(truth["columns"].tolist()) | set(other["columns"].tolist()))}
    where = [np.array([width[n] for n in g["columns"].tolist()]) for g in (truth, other)]
    out = []
    for row, name in enumerate(truth["rows"].tolist()):
        if name in place:
            rows = np.zeros((2, len(width)))
            for side, (g, r) in enumerate(((truth, row), (other, place[name]))):
                edges = slice(g["start"][r], g["start"][r + 1])
                rows[side, where[side][g["source"][edges]]] = g["weight"][edges]
            mass = np.abs(rows[0]).sum() + truth["leaves"][row]
            out.append(np.abs(rows[1] - rows[0]).sum() / max(mass, np.finfo(float).tiny))
    return np.array(out)


def prompts_of(cfg: Config, model: tc.Model) -> dict[str, list[list[int]]]:
    """Tokens of prompts, by task; without the tasks that a model's tokenizer does not split rightly.

    Raises:
        InputError: none is left.
    """
    found: dict[str, list[list[int]]] = {}
    for task in cfg.tasks:
        try:
            p = tc.make_behaviour(model, task, sizes={"attribution": cfg.prompts}, seed=cfg.seed)["attribution"]
        except tc.InputError as error:
            say(f"left out: {error}")
            continue
        found[task] = [row[skip:].tolist() for row, skip in zip(p.clean, p.padding, strict=True)]
    if not found:
        raise tc.InputError(f"{model.name} takes none of the tasks {', '.join(cfg.tasks)}")
    return found


def compared(cfg: Config, model: str, transcoders: str) -> list[dict[str, Any]]:
    """Every way against float64, medians over the prompts and the worst."""
    asked_of = prompts_of(cfg, tc.load_model(model))
    prompts = [tokens for task in asked_of.values() for tokens in task]
    ways = [(way, "highest") for way in (TRUTH, *WAYS)] + [("float32", p) for p in cfg.precisions]
    graphs: dict[str, list[Read]] = {}
    targets = None
    given: dict[str, Any] = {
        "model": model,
        "transcoders": transcoders,
        "prompts": prompts,
        "max_features": cfg.max_features,
    }
    for way, precision in ways:
        name = way if precision == "highest" else f"{way}, rows {precision}"
        say(f"{model}: {name}")
        with tempfile.TemporaryDirectory() as out:
            asked = given | {"targets": targets, "way": way, "precision": precision, "out": out}
            told = fresh("experiments.precision", "read", x64=way == TRUTH, **asked)
            targets = told if targets is None else targets
            graphs[name] = [dict(np.load(Path(out) / f"{i}.npz")) for i in range(len(prompts))]
    truth, found = graphs.pop(TRUTH), []
    for name, those in graphs.items():
        each = [against(t, o) for t, o in zip(truth, those, strict=True)]
        row: dict[str, Any] = {"model": model, "transcoders": transcoders, "way": name, "prompts": len(each)}
        row["tasks"] = list(asked_of)
        for key in each[0]:
            values = [e[key] for e in each]
            row[key] = float(np.median(values))
            row[f"{key}_worst"] = float(min(values) if key in SHARES else max(values))
        found.append(row)
    return found


def main(cfg: Config) -> None:
    """Compare, print, write."""
    rows = [r for m, t in zip(cfg.models, cfg.transcoders, strict=True) for r in compared(cfg, m, t)]
    told = ("model", "way", "row_error_median", "row_error_max", "influence_error", "features", "nodes", "nodes_worst",
            "edges", "carried", "kept", "logit_error")  # fmt: skip
    show("against float64", [{k: r[k] for k in told} for r in rows])
    save("precision", cfg, {"rows": rows})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

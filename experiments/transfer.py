"""Do circuits carry over: between dictionaries of one model (the ceiling), and between models that do the same?

    python -m experiments.transfer
    python -m experiments.transfer --models tiny experiments/models/tiny-llama-1 experiments/models/tiny-gpt2-0 ...
    python -m experiments.transfer --models smollm2-135m tiny ... --centre smollm2-135m --tasks induction

The second compares every two models in both directions, by their neurons, and has a result of its own,
`transfer_models`: first two seeds of one family, the ceiling, then families. A mean's interval is by drawing pairs of
models anew, with both directions and all tasks of a pair together. The third is from one model to each of the others,
on what all of them can do (`transfer_smollm2_135m`).

Units are matched over the words of the selection split's prompts, one to one within a band of depth; the circuit is the
best 5 % of model 1's units by integrated gradients, run in model 2 on the report split (ablation by resampling, errors
kept). Beside it: model 2's own circuit of the same size, 100 random circuits of the same profile, the overlap of the
behaviour graphs' edges between matched units (by weight, and as the paper counts them with the paper's matching).

HAGD reports 0.82 between a 7B and a 70B Llama and 67 % on average across families, without nulls or a ceiling; its code
was never run for it (its authors' audit). A model of the same weights in another order must give 1: a test does that.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import save, show
from tcircuits.circuits import metrics
from tcircuits.circuits.behaviour_graph import BehaviourGraph, most_edges
from tcircuits.circuits.graph_build import build_graph
from tcircuits.circuits.profiles import unit_profiles
from tcircuits.circuits.transfer import edge_overlap, match_units, transfer
from tcircuits.circuits.units import Units


@dataclass(frozen=True)
class Side:
    """A model and the dictionary whose features are units."""

    model: str
    transcoders: str = "neurons"


@dataclass(frozen=True)
class Config:
    """What is compared with what."""

    pairs: tuple[tuple[Side, Side], ...] = (
        (Side("tiny", "tiny-transcoders"), Side("tiny", "tiny-skip")),
        (Side("tiny", "tiny-skip"), Side("tiny", "tiny-transcoders")),
        (Side("tiny", "neurons"), Side("tiny", "tiny-transcoders")),
    )
    """First and second side of each comparison."""
    models: tuple[str, ...] = ()
    """Names and folders: every two of them, by their neurons, instead of `pairs`."""
    centre: str = ""
    """Of `models`: only from this one to each of the others, with a result of their own."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement", "induction")
    """Of `tcircuits.tasks.TASKS`."""
    share: float = 0.05
    """Of model 1's units in the circuit."""
    graphs: bool = True
    """Overlap of edges too: attribution graphs of both sides."""
    seed: int = 0
    """Of prompts and random circuits."""


@dataclass(frozen=True)
class Found:
    """What is needed of one side for one task."""

    model: tc.Model
    d: tc.Transcoders
    units: Units
    behaviour: tc.Behaviour
    scores: np.ndarray
    graph: BehaviourGraph | None


def found(cfg: Config, side: Side, task: str) -> Found:
    """Behaviour, scores and graph of a side."""
    model = tc.load_model(side.model)
    d = tc.load_transcoders(side.transcoders, model=model)
    units = tc.units_of(model.cfg, ("head", "feature"), d.cfg)
    behaviour = tc.make_behaviour(model, task, seed=cfg.seed)
    scores = tc.unit_scores(model, behaviour, units, method="ig", dictionary=d).values
    graph = None
    if cfg.graphs:
        graph = most_edges(build_graph(model, behaviour, units, dictionary=d, prompts=16, lengths=1), 16, 16)
    return Found(model, d, units, behaviour, scores, graph)


def texts(side: Found) -> list[str]:
    """The selection split's prompts as text."""
    p = side.behaviour["selection"]
    assert side.model.tokenizer is not None
    rows = zip(p.clean, p.padding, strict=True)
    bos = side.model.tokenizer.bos_id
    kept = [[int(i) for i in row[start:] if i != bos] for row, start in rows]
    return [side.model.tokenizer.decode(ids) for ids in kept]


def case(cfg: Config, first: Found, second: Found) -> dict[str, Any]:
    """One comparison on one task."""
    words = texts(first)
    profiles, last = [], np.zeros(0)
    for side in (first, second):
        profile, last = unit_profiles(side.model, words, side.units, dictionary=side.d)
        profiles.append(profile)
    units = first.units, second.units
    matching = match_units(units, (profiles[0], profiles[1]))
    ends = last.astype(bool)
    paper = match_units(units, (profiles[0][ends], profiles[1][ends]), rule="paper")
    size = np.array([max(1, round(cfg.share * first.units.n))])
    mask = metrics.nested(first.scores, size, signed=True)[0]
    how: Any = {"dictionary": second.d, "seed": cfg.seed}
    moved = transfer(second.model, second.behaviour, units, matching, mask, second.scores, **how)
    overlap = {"edges": None, "edges_paper": None}
    if first.graph is not None and second.graph is not None:
        overlap["edges"] = edge_overlap(first.graph, second.graph, matching)
        overlap["edges_paper"] = edge_overlap(first.graph, second.graph, paper, weighted=False)
    told = asdict(moved) | {"random": None, "random_95": float(np.quantile(moved.random, 0.95))}
    pairs = {"coverage": matching.coverage, "mean_r": float(np.abs(matching.r).mean()), "live": matching.live}
    return pairs | {"paper_coverage": paper.coverage} | overlap | told


def summary(rows: list[dict[str, Any]], families: dict[str, str], seed: int) -> list[dict[str, Any]]:
    """Means over pairs of models of one family and of different ones, with intervals."""
    out, rng = [], np.random.default_rng(seed)
    for kind in ("same family", "other family"):
        by_pair: dict[Any, list[dict[str, Any]]] = {}
        for row in rows:
            ends = [row[end].removesuffix(", neurons") for end in ("from", "to")]
            if (families[ends[0]] == families[ends[1]]) == (kind == "same family"):
                by_pair.setdefault(tuple(sorted(ends)), []).append(row)
        if not by_pair:
            continue
        told: dict[str, Any] = {"models": kind, "pairs": len(by_pair)}
        drawn = rng.integers(0, len(by_pair), (1000, len(by_pair)))
        for name in ("edges", "edges_paper", "ratio", "faithfulness", "random_95"):
            each = np.array([np.mean([_number(r, name) for r in pair]) for pair in by_pair.values()])
            low, high = np.quantile(each[drawn].mean(1), (0.025, 0.975))
            told[name] = {"value": float(each.mean()), "low": float(low), "high": float(high)}
        out.append(told)
    return out


def _number(row: dict[str, Any], name: str) -> float:
    return float(row[name]["value"] if isinstance(row[name], dict) else row[name])


def main(cfg: Config) -> None:
    """Measure, print, write after each."""
    rows: list[dict[str, Any]] = []
    if cfg.centre and cfg.centre not in cfg.models:
        raise SystemExit(f"--centre {cfg.centre} is none of --models {' '.join(cfg.models) or '(none given)'}")
    every = [(Side(a), Side(b)) for a in cfg.models for b in cfg.models if a != b and cfg.centre in ("", a)]
    named = re.sub(r"\W+", "_", cfg.centre) or "models"
    pairs, variant = (every, named) if every else (cfg.pairs, "")
    for task in cfg.tasks:
        sides = {side: found(cfg, side, task) for side in {side for pair in pairs for side in pair}}
        for first, second in pairs:
            about = {
                "task": task,
                "from": f"{first.model}, {first.transcoders}",
                "to": f"{second.model}, {second.transcoders}",
            }
            rows.append(about | case(cfg, sides[first], sides[second]))
            save("transfer", cfg, {"rows": rows}, variant=variant)
            print(_line(rows[-1]), flush=True)
    if every:
        families = {name: tc.load_model(name).cfg.family for name in cfg.models}
        means = summary(rows, families, cfg.seed)
        show("means over pairs of models", [_short(m) for m in means])
        save("transfer", cfg, {"means": means, "rows": rows}, variant=variant)
    else:
        show("transfer", [_line(r) for r in rows])


def _short(mean: dict[str, Any]) -> dict[str, Any]:
    return {k: v["value"] if isinstance(v, dict) else v for k, v in mean.items()}


def _line(row: dict[str, Any]) -> dict[str, Any]:
    short = {k: row[k] for k in ("task", "from", "to", "coverage", "edges", "edges_paper")}
    return short | {"F": row["faithfulness"]["value"], "own F": row["own"]["value"], "random 95": row["random_95"]}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

"""Which methods find the circuits of compiled programs, where enumeration says what they are?

    python -m experiments.rasp_circuits

For every RASP program and ablation, each method scores the edges on one set of questions and takes its own number of
edges on another: the smallest of its circuits whose KL from the model stays within `tolerance` on the worst question
(all edges if none does). Nothing here looks at the known circuit (`experiments.rasp.known`) before that. Then:

    iou     edges in both over edges in either, of the known circuit that is nearest; chance is K / (2 - K), K its share
    auroc   how the scores rank its edges against all others, ties counted half; no size is involved

Rankings are by size of the score, but for `exact`, `topk`, `pruning` and `random`, which say which way. ACDC runs at
several thresholds; its scores are the largest threshold at which an edge is kept. Elimination is `tc.eliminate` with
the same tolerance. All inputs are asked about in both sets; paired with other inputs to resample from.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

import jax
import numpy as np
from scipy.stats import rankdata

from experiments.common import RESULTS, save, say, show
from experiments.rasp.known import ABLATIONS, read
from experiments.rasp.network import Network, load, names, together
from tcircuits.circuits import metrics
from tcircuits.circuits.acdc import acdc
from tcircuits.circuits.discover import grid, score
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.elimination import eliminate
from tcircuits.circuits.running import Ablation, run_circuits
from tcircuits.circuits.scores import POINTS
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.types import Bool, Float, InputError

SIGNED = ("exact", "topk", "pruning", "random")
TOGETHER = 6  # networks before compiled programs are dropped: systems bound how many pieces of code a process may map
PUBLISHED = {"reverse": 0.2, "frac_prevs": 0.6}  # edge AUROC of ACDC: Conmy et al. 2023, appendix, as quoted


@dataclass(frozen=True)
class Config:
    """What to compare."""

    only: tuple[str, ...] = ()
    """Programs; all if empty."""
    methods: tuple[str, ...] = ("gradient", "ig", "eap-ig", "exact", "topk", "pruning", "activation", "random")
    """Rankings that are tried under resampling."""
    others: tuple[str, ...] = ("gradient", "exact", "topk")
    """Those that are tried under the other ablations."""
    thresholds: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001)
    """Of ACDC, in nats."""
    tolerance: float = 0.01
    """In nats."""
    most: int = 250_000
    """Runs of the model that `exact` and a threshold of ACDC may take; a program that needs more goes without them."""
    wide: int = 200
    """From so many edges on, each input is asked about at one position."""
    seed: int = 0
    """Of pairs, positions and learned scores."""
    go_on: bool = False
    """Keep the programs that the result file has, measured with the same settings, and measure the rest."""


@dataclass(frozen=True)
class Tried:
    """What a method says: circuits from small to large, scores, and what that cost."""

    masks: Bool[np.ndarray, "C U"]
    scores: Float[np.ndarray, " U"]
    forwards: int
    backwards: int
    seconds: float


def ranked(cfg: Config, net: Network, b: Behaviour, edges: Edges, method: str, ablation: Ablation) -> Tried:
    """A method that scores edges: its circuits are the best of each size."""
    how: Any = {"ablation": ablation, "errors": "keep", "dictionary": None, "batch": 1024, "seed": cfg.seed}
    name: Any = method
    found = score(net.model, b, edges, name, points=POINTS, **how)
    counts = np.unique(metrics.counts_of(grid(edges.n), edges.n))
    values = found.values if method in SIGNED else np.abs(found.values)
    masks = np.concatenate([np.zeros((1, edges.n), bool), metrics.nested(values, counts, signed=True)])
    return Tried(masks, values, found.forwards, found.backwards, found.seconds)


def searched(cfg: Config, net: Network, b: Behaviour, edges: Edges, ablation: Ablation) -> dict[str, Tried]:
    """ACDC at all thresholds, and elimination."""
    found = {}
    if b["attribution"].n * edges.n <= cfg.most:
        each = [acdc(net.model, b, edges, threshold=t, ablation=ablation) for t in cfg.thresholds]
        kept = [c.mask * t for c, t in zip(each, cfg.thresholds, strict=True)]
        cost = [c.about["cost"] for c in each]
        total = {k: sum(c[k] for c in cost) for k in ("forwards", "seconds")}
        masks = np.stack(sorted((c.mask for c in each), key=lambda m: int(m.sum())))
        found["acdc"] = Tried(masks, np.max(kept, 0), total["forwards"], 0, total["seconds"])
    own = eliminate(net.model, b, edges, tolerance=cfg.tolerance, ablation=ablation)
    cost = own.about["cost"]
    scores = cast(np.ndarray, own.scores)
    found["elimination"] = Tried(own.mask[None], scores, cost["forwards"], 0, cost["seconds"])
    return found


def taken(cfg: Config, net: Network, b: Behaviour, edges: Edges, ablation: Ablation, tried: Tried) -> np.ndarray:
    """The smallest of a method's circuits that answers as the model does on the selection split."""
    if len(tried.masks) == 1:
        return tried.masks[0]
    how: Any = {"ablation": ablation, "split": "selection", "batch": 1024, "at_once": 1}
    runs = run_circuits(net.model, b, tried.masks, edges, **how)
    good = np.flatnonzero(runs.circuits.kl.max(1) <= cfg.tolerance)
    return tried.masks[good[0]] if len(good) else np.ones(edges.n, bool)


def iou(mask: Bool[np.ndarray, " U"], true: Bool[np.ndarray, " U"]) -> float:
    """Edges in both over edges in either; 1 where both are empty."""
    either = int((mask | true).sum())
    return float((mask & true).sum() / either) if either else 1.0


def auroc(scores: Float[np.ndarray, " U"], true: Bool[np.ndarray, " U"]) -> float | None:
    """The chance that a true edge scores above another one, ties counted half; None without both kinds."""
    n, m = int(true.sum()), int((~true).sum())
    if not n or not m:
        return None
    return float((rankdata(scores)[true].sum() - n * (n + 1) / 2) / (n * m))


def case(cfg: Config, net: Network, ablation: Ablation, known: dict[str, Any]) -> list[dict[str, Any]]:
    """All methods on one program under one ablation."""
    edges = edges_of(net.model.cfg)
    labels = [edges.label(u) for u in range(edges.n)]
    truths = [np.isin(labels, c) for c in known["circuits"]]
    b = net.behaviour(seed=cfg.seed, one_place=edges.n >= cfg.wide)
    cheap = b["attribution"].n * edges.n <= cfg.most
    wanted = cfg.methods if ablation == "resample" else cfg.others
    tried = {m: ranked(cfg, net, b, edges, m, ablation) for m in wanted if cheap or m != "exact"}
    tried |= searched(cfg, net, b, edges, ablation)
    share = len(known["circuits"][0]) / edges.n
    rows = []
    for method, t in tried.items():
        mask = taken(cfg, net, b, edges, ablation, t)
        row: dict[str, Any] = {"program": net.name, "ablation": ablation, "method": method, "of": edges.n}
        row |= {"true": len(known["circuits"][0]), "kept": int(mask.sum()), "iou": max(iou(mask, x) for x in truths)}
        aurocs = [a for x in truths if (a := auroc(t.scores, x)) is not None]
        row |= {"auroc": max(aurocs, default=None), "chance_iou": share / (2 - share), "questions": b["attribution"].n}
        rows.append(row | {"forwards": t.forwards, "backwards": t.backwards, "seconds": round(t.seconds, 2)})
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By ablation and method, over the programs whose circuit has edges."""
    found = []
    for ablation in ABLATIONS:
        here = [r for r in rows if r["ablation"] == ablation and r["true"]]
        for method in dict.fromkeys(r["method"] for r in here):
            mine = [r for r in here if r["method"] == method]
            ranks = [r["auroc"] for r in mine if r["auroc"] is not None]
            found.append(
                {
                    **{"ablation": ablation, "method": method, "programs": len(mine)},
                    "exact": sum(r["iou"] == 1 for r in mine),
                    "mean_iou": float(np.mean([r["iou"] for r in mine])),
                    "chance_iou": float(np.mean([r["chance_iou"] for r in mine])),
                    "median_auroc": float(np.median(ranks)) if ranks else None,
                    "mean_auroc": float(np.mean(ranks)) if ranks else None,
                    "runs_a_question": float(
                        np.median([(r["forwards"] + r["backwards"]) / r["questions"] for r in mine])
                    ),
                }
            )
    return found


def _runs(row: dict[str, Any]) -> float:
    return (row["forwards"] + row["backwards"]) / row["questions"]


def kept(cfg: Config) -> list[dict[str, Any]]:
    """Rows that the result file has, if they go on."""
    path = RESULTS / "rasp_circuits.json"
    if not cfg.go_on or not path.exists():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(asdict(cfg)))
    apart = [k for k in now if k not in ("only", "go_on") and now[k] != old["config"].get(k)]
    if apart:
        raise InputError(f"{path} was measured with other settings ({', '.join(apart)}): start anew")
    return old["figures"]["rows"]


def main(cfg: Config) -> None:
    """Measure, print, write after each program."""
    rows, known, start = kept(cfg), read(), time.perf_counter()
    done = {r["program"] for r in rows}
    wanted = [n for n in together([load(name) for name in names()]) if not cfg.only or n.name in cfg.only]
    for i, net in enumerate(n for n in wanted if n.name not in done):
        if i % TOGETHER == TOGETHER - 1:
            jax.clear_caches()
        for ablation in ABLATIONS:
            rows += case(cfg, net, cast(Ablation, ablation), known[net.name][ablation])
        mine = [r for r in rows if r["program"] == net.name and r["method"] == "elimination"]
        say(f"{net.name}: {[(r['true'], r['kept'], r['iou']) for r in mine]} {time.perf_counter() - start:.0f} s")
        named = [r for r in rows if r["program"] in PUBLISHED]
        figures = {"summary": summary(rows), "published_acdc_auroc": PUBLISHED, "named": named, "rows": rows}
        save("rasp_circuits", cfg, figures)
    show("all programs", summary(rows))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

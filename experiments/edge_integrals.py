"""Is gradient times activation at one point an integrated gradient, and which of them says what patching does?

    python -m experiments.edge_integrals

HAGD defines edges as integrated gradients; its code takes gradient times activation at the prompt, and reports a
correlation of .970 with 20 steps of integration over 366 edges. Here every edge of the embedded model and every unit
(heads and transcoder features) is scored on each task by the gradient, by integrated gradients with 5, 20 and 40
Gauss-Legendre points, and by exact patching (edges alone: units are too many). Pearson and Spearman correlation with
20 points; and the gap of the completeness axiom: the sum of the scores less the change of the metric between all and
nothing kept, over that change.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

import tcircuits as tc
from experiments.common import save, say, show

POINTS = (5, 20, 40)


@dataclass(frozen=True)
class Config:
    """What to score."""

    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement", "induction")
    """Of `tcircuits.tasks.TASKS`."""
    transcoders: str = "tiny-transcoders"
    """Whose features are units."""


def compared(task: str, what: str, values: dict[str, np.ndarray], change: float) -> list[dict[str, Any]]:
    """Each score against integrated gradients with 20 points."""
    against, rows = values["ig 20"], []
    for name, scores in values.items():
        live = (scores != 0) | (against != 0)
        rows.append(
            {
                "task": task,
                "of": what,
                "scores": name,
                "count": int(live.sum()),
                "pearson": float(stats.pearsonr(scores[live], against[live]).statistic),
                "spearman": float(stats.spearmanr(scores[live], against[live]).statistic),
                "completeness_gap": float((scores.sum() - change) / change),
            }
        )
    return rows


def main(cfg: Config) -> None:
    """Score, print, write."""
    model = tc.load_model("tiny")
    d = tc.load_transcoders(cfg.transcoders, model=model)
    rows: list[dict[str, Any]] = []
    for task in cfg.tasks:
        behaviour = tc.make_behaviour(model, task)
        edges, units = tc.edges_of(model.cfg), tc.units_of(model.cfg, ("head", "feature"), d.cfg)
        for what, of, dictionary in (("edges", edges, None), ("units", units, d)):
            say(f"{task}, {what}")
            given: dict[str, Any] = {"dictionary": dictionary}
            ends = np.array([np.ones(of.n), np.zeros(of.n)])
            kept = tc.run_circuits(model, behaviour, ends, of, split="attribution", **given).circuits.metric.mean(-1)
            values = {"gradient": tc.unit_scores(model, behaviour, of, method="gradient", **given).values}
            for points in POINTS:
                found = tc.unit_scores(model, behaviour, of, method="ig", points=points, **given)
                values[f"ig {points}"] = found.values
            if what == "edges":
                values["exact"] = tc.unit_scores(model, behaviour, of, method="exact", **given).values
            rows += compared(task, what, values, float(kept[0] - kept[1]))
    show("against integrated gradients with 20 points", rows)
    save("edge_integrals", cfg, {"rows": rows})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

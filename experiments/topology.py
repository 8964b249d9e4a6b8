"""HAGD's "topology prediction": which edges of a behaviour matter, told from the graph alone?

    python -m experiments.topology

For each of the embedded model's behaviours: its graph, and of every edge between two of its nodes the measured effect:
the source's counterfactual value told to the target alone (`circuits.edge_effects`), heads computing as ever, on the
attribution split. The network's head for edges is trained on all behaviours but one and ranks the edges of that one
(the network itself on sets and nodes, as in `experiments.membership`), beside what needs no training and a logistic
regression on everything that the head sees of an edge and its ends:

    |A|            the edge's weight in the graph: mean of |A| over prompts
    share          |A| as a part of the target's edges
    expected       share times the target's score, with the sign of both: what it is worth to first order
    ends           product of both ends' |score|

    AUROC, AP      of telling the tenth of edges whose patching costs most from the rest
    recall         of those among as many edges, the best by rank

Means over behaviours held out, with a bootstrap over behaviours; `gain` is paired against |A|.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import save, say, show
from experiments.membership import Config as Behaviours
from experiments.membership import Measured, figures, measured, members, regressed, summary
from tcircuits.circuits.membership import Training, fit, predict_edges
from tcircuits.circuits.membership_data import EDGE_FEATURES, NODE_FEATURES

NAMES = ("auroc", "ap", "recall", "spearman")


@dataclass(frozen=True)
class Config:
    """What is learned from what."""

    behaviours: Behaviours = field(default_factory=lambda: Behaviours(seeds=2))
    """Of `experiments.membership`."""
    weight: float = 1.0
    """Of the edges' loss beside that of sets and nodes."""


@dataclass(frozen=True)
class Edges:
    """A behaviour's edges: where they lie in its sample, measured effects, and what a regression sees."""

    at: np.ndarray
    effect: np.ndarray
    seen: np.ndarray

    @classmethod
    def of(cls, b: Measured) -> "Edges":
        """Those that were measured."""
        s = b.sample
        assert s.edge_effect is not None
        assert s.cue is not None
        at = np.flatnonzero(np.isfinite(s.edge_effect))
        seen = np.concatenate([s.edge[at], s.cue[at], s.node[s.source[at]], s.node[s.target[at]]], 1)
        return cls(at, s.edge_effect[at], seen)


def rankings(cfg: Config, others: list[Measured], test: Measured) -> dict[str, np.ndarray]:
    """Every method's score of the held-out behaviour's edges."""
    s, own = test.sample, Edges.of(test)
    assert s.cue is not None
    at, score = own.at, NODE_FEATURES.index("|score|")
    share, worth, sign = s.cue[at].T
    found = {"|A|": s.edge[at, EDGE_FEATURES.index("weight")], "share": share, "expected": worth * sign}
    found["ends"] = s.node[s.source[at], score] * s.node[s.target[at], score]
    train = [Edges.of(b) for b in others]
    found["logistic"] = regressed([e.seen for e in train], [members(e.effect) for e in train], own.seen)
    hidden = replace(s, effect=np.full(len(s.node), np.nan), edge_effect=np.full(len(s.source), np.nan))
    samples, c = [b.sample for b in others], cfg.behaviours
    nets = [fit(samples, Training(edges=cfg.weight, seed=c.seed + i)) for i in range(c.seeds)]
    return found | {"gat": np.mean([predict_edges(m, hidden)[at] for m in nets], 0)}


def main(cfg: Config) -> None:
    """Measure, train, print, write."""
    b = cfg.behaviours
    model = tc.load_model(b.model)
    d, start, all_ = tc.load_transcoders(b.transcoders, model=model), time.process_time(), []
    sums: list[dict[str, Any]] = []
    for task in b.tasks:
        all_.append(measured(b, model, d, task, edges=True))
        effect = Edges.of(all_[-1]).effect
        least, whole = np.sort(effect)[::-1][: max(1, len(effect) // 10)], float(np.abs(effect).sum())
        about = {"edges": len(effect), "tenth": float(least[-1]), "largest": float(least[0])}
        sums.append({"task": task} | about | {"share of the tenth": float(least.sum() / whole)})
        say(f"{task}: {sums[-1]}")
    graphs, each = time.process_time() - start, []
    for i, test in enumerate(all_):
        found, effect = rankings(cfg, all_[:i] + all_[i + 1 :], test), Edges.of(test).effect
        each += [{"held_out": test.task, "by": k} | figures(effect, v) for k, v in found.items()]
        say(f"{test.task} held out")
    rows = summary(each, "|A|", NAMES)
    show("edges of behaviours held out", [{k: v for k, v in r.items() if not isinstance(v, dict)} for r in rows])
    cost = {"graphs_and_measuring": graphs, "training": time.process_time() - start - graphs}
    save("topology", cfg, {"rows": rows, "each": each, "edges": sums, "processor_seconds": cost})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

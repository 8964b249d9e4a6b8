"""How does each stage of an extraction grow with the number of nodes, and where does the time go?

    python -m experiments.bench.extraction_stages

One behaviour of the embedded model (heads and transcoder features). `graph`: attribution graphs of its prompts with so
many features each, and the scores of all units (units with a score are nodes whether or not they have a row, so that
features, not nodes, are what grows there). Then, for the n most important units: `tree`, cuts from the top down;
`search`, group ablations down the tree until nothing is left to measure, without a prior; `circuits`, elimination down
to a twentieth of n; `network`, one step of the membership network on all levels. A single ablation of every unit is n
evaluations: `evaluations` of the search are beside it. Processor seconds of a second call, which compiles nothing. The
exponent is the slope of log time (or evaluations) over log n by least squares.

HAGD states O(n^2 log n) for the whole, of its own stages; cuts up to 100,000 nodes are in `bench.hierarchy`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tcircuits as tc
from experiments.bench.hierarchy import slope
from experiments.common import peak_rss_gb, save, say, show
from tcircuits.circuits.behaviour_graph import BehaviourGraph, capped, most_edges
from tcircuits.circuits.graph_build import build_graph
from tcircuits.circuits.group_search import How, group_search
from tcircuits.circuits.hierarchy import hierarchy
from tcircuits.circuits.membership import Training, fit
from tcircuits.circuits.membership_data import sample_of
from tcircuits.circuits.meter import meter
from tcircuits.circuits.trimming import trim

STEPS = 10  # of the network


@dataclass(frozen=True)
class Config:
    """What is measured."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    transcoders: str = "tiny-transcoders"
    """The dictionary of features."""
    task: str = "ioi"
    """Of `tcircuits.tasks.TASKS`."""
    prompts: int = 16
    """Of the attribution split."""
    features: tuple[int, ...] = (64, 128, 256, 512)
    """Of each prompt's graph."""
    nodes: tuple[int, ...] = (175, 350, 700, 1400)
    """The most important units."""
    effect: float = 0.002
    """Of a group that matters, as a part of what all units are worth."""
    seed: int = 0
    """Of prompts and trees."""


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a second call, and what it returned."""
    f()
    start = time.process_time()
    value = f()
    return time.process_time() - start, value


def graphs(cfg: Config, model: tc.Model, behaviour: Any, units: Any, d: Any) -> list[dict[str, Any]]:
    """The graph with growing numbers of features."""
    rows = []
    for m in cfg.features:
        how: dict[str, Any] = {"dictionary": d, "lengths": 1, "max_features": m}
        seconds, g = timed(lambda how=how: build_graph(model, behaviour, units, **how))
        rows.append({"features": m, "nodes": g.n, "edges": len(g.source), "graph": seconds, "rss_gb": peak_rss_gb()})
        say(f"{m} features: {seconds:.1f} s")
    return rows


def stages(cfg: Config, m: Any, g: BehaviourGraph) -> dict[str, Any]:
    """All that follows the graph, of one number of nodes."""
    row: dict[str, Any] = {"nodes": g.n, "edges": len(g.source)}
    row["tree"], h = timed(lambda: hierarchy(g, seed=cfg.seed))
    row["sets"] = len(h.parent)

    def searched() -> Any:
        m.spent = 0
        return group_search(m, h, g.unit, How(10**6, cfg.effect))

    row["search"], found = timed(searched)
    order = found.order if len(found.order) else g.unit

    def trimmed() -> Any:
        m.spent = 0
        return trim(m, order, [max(1, g.n // 20)], budget=10**6, values=found.density)

    row["circuits"], cut = timed(trimmed)
    row |= {"evaluations": found.spent, "left": len(found.order), "elimination": cut.spent}
    sample = sample_of(g, h, {i: 0.1 * (i % 7) for i in range(1, len(h.parent))}, {})  # any effects: it is timed
    seconds, _ = timed(lambda: fit([sample], Training(steps=STEPS)))
    return row | {"network": seconds / STEPS, "rss_gb": peak_rss_gb()}


def main(cfg: Config) -> None:
    """Measure, print, write."""
    model = tc.load_model(cfg.model)
    d = tc.load_transcoders(cfg.transcoders, model=model)
    sizes = {"attribution": cfg.prompts, "selection": 1, "report": 1}
    behaviour = tc.make_behaviour(model, cfg.task, sizes=sizes, seed=cfg.seed)
    units = tc.units_of(model.cfg, ("head", "feature"), d.cfg)
    first = graphs(cfg, model, behaviour, units, d)
    whole = most_edges(build_graph(model, behaviour, units, dictionary=d, lengths=1).only_units(), 16, 16)
    m, rows = meter(model, behaviour, units, dictionary=d), []
    for n in cfg.nodes:
        rows.append(stages(cfg, m, capped(whole, n, "importance")))
        say(str(rows[-1]))
    names = ("tree", "search", "evaluations", "circuits", "network")
    exponents = {name: slope(rows, "nodes", name) for name in names} | {
        "graph, in features": slope(first, "features", "graph")
    }
    show("graph", first)
    show("the rest", rows)
    show("exponents in nodes", [exponents])
    save("bench.extraction_stages", cfg, {"graph": first, "rows": rows, "exponents": exponents})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

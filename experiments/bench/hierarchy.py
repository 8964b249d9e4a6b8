"""How long does a hierarchy take, against the number of nodes and edges?

    OPENBLAS_NUM_THREADS=1 python -m experiments.bench.hierarchy

Random directed graphs with planted communities of about 50 nodes in groups of about 1,000, log-normal weights. Seconds
are of the processor. The exponent is the slope of log time over log size by least squares, edges per node held, then
nodes held; b E log n has slope about 1 in both. Against it on graphs of a few thousand nodes: one cut into as many
clusters from the whole dense spectrum (scipy.linalg.eigh of the normalised Laplacian, then the same k-means), which is
what spectral clustering into many clusters does, in the same process. Products of matrices this small are slower on
several threads, hence the variable above.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array

from experiments.common import peak_rss_gb, save, show
from tcircuits.circuits.affinity import degree_discounted, symmetric
from tcircuits.circuits.coarse_quality import coarse_quality
from tcircuits.circuits.hierarchy import paper_levels, top_down
from tcircuits.circuits.spectral import k_means, normalised
from tcircuits.circuits.tree import Hierarchy, check_hierarchy, shuffled

DISCOUNTED = 30_000  # nodes beyond which affinities by shared targets are not timed


@dataclass(frozen=True)
class Config:
    """Sizes."""

    nodes: tuple[int, ...] = (1000, 3000, 10_000, 30_000, 100_000)
    """At `per_node` edges each."""
    per_node: int = 16
    """Edges out of each node."""
    edges: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Edges per node at `at` nodes."""
    at: int = 5000
    """Nodes where the number of edges changes."""
    dense: tuple[int, ...] = (1000, 2000)
    """Nodes where the whole spectrum is computed beside."""
    seed: int = 0
    """Of graphs and cuts."""


def graph(n: int, per_node: int, seed: int) -> Any:
    """Seven edges in ten lie within communities of about 50, two within groups of 1,000, one anywhere."""
    rng = np.random.default_rng(seed)
    source = np.repeat(rng.permutation(n), per_node)
    place = np.repeat(np.arange(n), per_node)
    reach = rng.choice([50, 1000, n], len(source), p=[0.7, 0.2, 0.1])
    first = place // reach * reach
    target = first + rng.integers(0, np.minimum(reach, n - first))
    number = np.empty(n, np.int64)
    number[np.arange(n)] = source[::per_node]
    keep = place != target
    values = rng.lognormal(size=len(source))
    return csr_array((values[keep], (source[keep], number[target[keep]])), shape=(n, n))


def seconds(f: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of one call, which other programs on the machine hardly change, and what it returned."""
    start = time.process_time()
    value = f()
    return time.process_time() - start, value


def row(n: int, per_node: int, seed: int) -> dict[str, Any]:
    """Times of one graph."""
    w = graph(n, per_node, seed)
    s = symmetric(w)
    cuts, h = seconds(lambda: top_down(s, seed=seed))
    check_hierarchy(h)
    faithful, _ = seconds(lambda: paper_levels(w, seed=seed))
    found = {"nodes": n, "edges": w.nnz, "depth": int(h.depth.max()), "sets": len(h.parent), "rss_gb": peak_rss_gb()}
    found |= {"cuts": cuts, "faithful": faithful, "degree_discounted": None, "its_edges": None, "its_cuts": None}
    if n <= DISCOUNTED:
        found["degree_discounted"], dd = seconds(lambda: degree_discounted(w))
        found["its_cuts"], _ = seconds(lambda: top_down(dd, seed=seed))
        found["its_edges"] = dd.nnz // 2
    return found


def dense(n: int, per_node: int, seed: int) -> dict[str, Any]:
    """The tree against one cut from the whole spectrum into as many clusters as the tree has at a depth."""
    s = symmetric(graph(n, per_node, seed))
    ours, h = seconds(lambda: top_down(s, seed=seed))
    level = 3
    k = int(h.labels(level).max()) + 1

    def whole() -> np.ndarray:
        own = np.asarray(eigh(normalised(s).toarray())[1])[:, -k:]
        return k_means(own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12), k, seed)

    theirs, labels = seconds(whole)
    found = {"nodes": n, "clusters": k, "ours": ours, "dense": theirs, "ratio": theirs / ours}
    for name, own in (("ours", h.labels(level)), ("dense", labels), ("null", _null(h, level, seed))):
        q = coarse_quality(s, own)
        errors = {"eigenvalue": float(np.median(q.eigenvalue)), "subspace": float(q.subspace[-1]), "cut": q.cut}
        found |= {f"{name}_{key}": value for key, value in errors.items()}
    return found


def _null(h: Hierarchy, level: int, seed: int) -> np.ndarray:
    return shuffled(h, seed).labels(level)


def slope(rows: list[dict[str, Any]], x: str, y: str) -> float:
    """Of log y over log x, where there is a y."""
    rows = [r for r in rows if r[y] is not None]
    return float(np.polyfit(np.log([r[x] for r in rows]), np.log([r[y] for r in rows]), 1)[0])


def main(cfg: Config) -> None:
    """Measure, print, write."""
    rows = [row(n, cfg.per_node, cfg.seed) for n in cfg.nodes]
    show("nodes", rows)
    more = [row(cfg.at, e, cfg.seed) for e in cfg.edges]
    show("edges", more)
    beside = [dense(n, cfg.per_node, cfg.seed) for n in cfg.dense]
    show("against the whole spectrum", beside)
    names = ("cuts", "degree_discounted", "its_cuts", "faithful")
    exponents = {name: {"nodes": slope(rows, "nodes", name), "edges": slope(more, "edges", name)} for name in names}
    print(exponents)
    save("bench.hierarchy", cfg, {"nodes": rows, "edges": more, "dense": beside, "exponents": exponents})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

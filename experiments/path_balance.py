"""Does every node of every path graph balance, and does the search find every path?

    python -m experiments.path_balance

1. `gap`: the largest |kept edges + error + bias + pruned - value| over the absolute sum of all that a node reads, of
   all paths and all merged nodes of a graph with the paper's settings (5 iterations, 15 branches, either sign); random
   models of several families with every kind of dictionary, float64 and float32.
2. `edges`: on two-layer models with unlimited width, the sum over all paths from a feature or an embedding to the root
   that pass through heads alone is the edge of the attribution graph (`attribution.rows`, whose sweep carries
   cotangents of all positions down at once and knows no paths). The largest difference, over the absolute sum of the
   root's row.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import tcircuits as tc
from experiments.common import fresh, save, show
from experiments.toys import random_dictionary, random_model
from tcircuits.attribution.paths.filters import EMBED, FEATURE, HEAD

BOUND = {"float32": 1e-6, "float64": 1e-13}
NARROW: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 12}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    families: tuple[str, ...] = ("gpt2", "neox", "llama", "gemma2")
    """Random models."""
    kinds: tuple[str, ...] = ("plt-relu", "plt-skip", "clt-relu", "neurons")
    """Dictionaries on them."""
    dtypes: tuple[str, ...] = ("float64", "float32")
    """Of the models."""
    length: int = 10
    """Tokens of the prompts."""


def balance(family: str, kind: str, length: int) -> dict[str, Any]:
    """The largest gaps of one path graph."""
    model = random_model(family, dtype=_dtype())
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, length)
    d = random_dictionary(model, kind, tokens)
    graph = tc.find_paths(model, d, tokens)
    m, gap = graph.merged, max(float(graph.gap.max()), float(graph.merged.gap.max()))
    row = {"family": family, "dictionary": kind, "dtype": _dtype(), "paths": graph.n_paths, "nodes": len(m.key)}
    return row | {"gap": gap, "within": gap <= BOUND[_dtype()]}


def edges(family: str, kind: str) -> dict[str, Any]:
    """Sums over all paths against the edges of an attribution graph."""
    groups: dict[str, Any] = {
        "n_kv_heads": 2 if family in ("gpt2", "neox") else 1,
        "windows": (3, 0) if family == "gemma2" else (),
    }
    rotary: dict[str, Any] = {} if family == "gpt2" else {"rotary_dim": 4 if family == "neox" else 8}
    model = random_model(family, dtype=_dtype(), **NARROW | groups | rotary)
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, 4)
    d = random_dictionary(model, kind, tokens, d_feature=16)
    target = tc.Difference(3, 5)
    graph = tc.find_paths(model, d, tokens, target=target, iterations=6, branches=None, bos_source=True)
    sums: dict[tuple[int, ...], float] = {}
    for i in range(1, len(graph.level)):
        above = graph.chain(i)[1:-1]
        if graph.kind[i] != HEAD and all(graph.kind[j] == HEAD for j in above):
            key = (int(graph.kind[i]), int(graph.layer[i]), int(graph.pos[i]), int(graph.index[i]))
            sums[key] = sums.get(key, 0.0) + float(graph.value[i])
    whole = tc.attribute(model, d, tokens, targets=[target], position_zero="nodes")
    row = whole.dense()[whole.n_sources]
    nodes = [(FEATURE, *map(int, f)) for f in whole.features]
    expected = {k: float(w) for k, w in zip(nodes, row, strict=False)}
    if model.params.pos_embed is None:  # paths' embeddings have the position's part, a constant of attribution graphs
        first = whole.n_features + whole.n_errors
        expected |= {(EMBED, 0, t, 0): float(row[first + t]) for t in range(len(tokens))}
    apart = max(abs(w - sums.get(k, 0.0)) for k, w in expected.items())
    size = float(whole.row_sums()[1][whole.row_nodes == whole.n_sources][0])
    found = {"family": family, "dictionary": kind, "dtype": _dtype(), "paths": graph.n_paths, "edges": len(expected)}
    return found | {"difference": apart / size, "within": apart / size <= BOUND[_dtype()]}


def _dtype() -> str:
    """The widest type of this process."""
    return "float64" if jax.config.read("jax_enable_x64") else "float32"


def all_cases(families: list[str], kinds: list[str], length: int) -> list[list[dict[str, Any]]]:
    """Both measurements of every family with every dictionary."""
    pairs = [(f, k) for f in families for k in kinds]
    balances = [balance(f, k, length) for f, k in pairs]
    jax.config.update("jax_disable_most_optimizations", True)  # of the rest, compiling is nearly all of the time
    return [balances, [edges(f, k) for f, k in pairs]]


def main(cfg: Config) -> None:
    """Measure, print, write."""
    arguments = {"families": cfg.families, "kinds": cfg.kinds, "length": cfg.length}

    def one(dtype: str) -> list[list[dict[str, Any]]]:
        return fresh("experiments.path_balance", "all_cases", x64=dtype == "float64", **arguments)

    with ThreadPoolExecutor(2) as pool:  # most of the time is compiling, on one core
        balances, sums = (
            [row for part in parts for row in part] for parts in zip(*pool.map(one, cfg.dtypes), strict=True)
        )
    show("balance of every node, 5 iterations, 15 branches", balances)
    show("all paths through heads against the edges of the attribution graph", sums)

    def most(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
        return {d: max(r[name] for r in rows if r["dtype"] == d) for d in cfg.dtypes}

    figures = {"largest_gap": most(balances, "gap"), "largest_difference": most(sums, "difference")}
    save("path_balance", cfg, figures | {"balance": balances, "edges": sums})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

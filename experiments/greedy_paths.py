"""Does the greedy search find the strongest paths? A beam of the paper's width against one a hundred times as wide.

    python -m experiments.greedy_paths

The paper's algorithm 1 (Dunefsky et al. 2024) keeps the strongest continuations of what it kept before, so a path whose
beginning is weak is lost; no accuracy is given. Here, on held-out examples of the embedded model's grammars with its
transcoders, the root being the answer's logit less the distractor's: of the `branches` strongest paths at each level
that a beam of `wide` finds, the share that a beam of `branches` finds too, and the part of their absolute contribution.
The wide beam is a bound from below on what is lost: it may itself miss paths (`level_1` of both is exact).
Intervals: over prompts, by resampling.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import save, show
from tcircuits.tasks import grammars
from tcircuits.transcoders.evaluation.intervals import interval, resampled


@dataclass(frozen=True)
class Config:
    """What is searched."""

    grammars: tuple[str, ...] = ("ioi", "greater_than", "agreement", "induction")
    """Of the embedded model."""
    prompts: int = 8
    """Of each grammar."""
    longest: int = 24
    """Tokens of a prompt at most."""
    iterations: int = 4
    """Nodes of a path at most."""
    branches: int = 15
    """The paper's."""
    wide: int = 1500
    """Of the beam that stands for all paths."""
    transcoders: str = "tiny-transcoders"
    """A set on the embedded model."""


def strongest(graph: tc.PathGraph, level: int, n: int) -> dict[tuple[str, ...], float]:
    """The strongest paths of a level, and their absolute contributions."""
    paths = graph.levels[level - 1][:n] if level <= len(graph.levels) else []
    return {tuple(graph.name(i) for i in graph.chain(p)): abs(float(graph.score[p])) for p in paths}


def compared(cfg: Config, model: tc.Model, d: tc.Transcoders, example: grammars.Example) -> list[list[float]]:
    """By level: share of the strongest paths that the narrow beam finds, and of their contribution."""
    tokens = model.encode(example.prompt)
    options: Any = {"target": tc.Difference(example.answer, example.distractor), "iterations": cfg.iterations}
    narrow, wide = (tc.find_paths(model, d, tokens, branches=b, **options) for b in (cfg.branches, cfg.wide))
    out = []
    for level in range(1, cfg.iterations + 1):
        best, found = strongest(wide, level, cfg.branches), strongest(narrow, level, cfg.branches)
        both = best.keys() & found.keys()
        total = sum(best.values())
        out.append([len(both) / max(len(best), 1), sum(best[p] for p in both) / total if total else 1.0])
    return out


def main(cfg: Config) -> None:
    """Search twice on every prompt, compare, write."""
    model = tc.load_model("tiny")
    d = tc.load_transcoders(cfg.transcoders, model=model)
    rows, every = [], []
    for name in cfg.grammars:
        drawn = {e.prompt: e for e in grammars.examples(name, 20 * cfg.prompts, 17, held_out=True)}
        short = [e for e in drawn.values() if len(model.encode(e.prompt)) <= cfg.longest][: cfg.prompts]
        found = np.asarray([compared(cfg, model, d, e) for e in short])  # [prompts, levels, 2]
        every.append(found)
        rows.append({"grammar": name, "prompts": len(found)} | _means(found))
    together = np.concatenate(every)
    rows.append({"grammar": "all", "prompts": len(together)} | _means(together))
    show(f"of the {cfg.branches} strongest paths of each length, found by a beam of {cfg.branches}", rows)
    told = {
        f"level_{i + 1}": asdict(interval(float(together[:, i, 0].mean()), resampled(together[:, i, :1])[:, 0],
                                          len(together)))
        for i in range(cfg.iterations)
    }  # fmt: skip
    save("greedy_paths", cfg, {"found": told, "by_grammar": rows})


def _means(found: np.ndarray) -> dict[str, float]:
    levels = range(found.shape[1])
    return {f"found_{i + 1}": float(found[:, i, 0].mean()) for i in levels} | {
        f"contribution_{i + 1}": float(found[:, i, 1].mean()) for i in levels
    }


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

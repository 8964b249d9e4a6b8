"""How many circuits can be run a second: many at once, against one at a time.

    python -m experiments.bench.circuits

One evaluation is one circuit on one prompt. Both sides are `tc.run_circuits`, compiled before timing: `together` with
groups of circuits and prompts in one program, `single` with one circuit and one prompt a call, as a loop over circuits
would. Each call runs the model on the prompt and its counterfactual too, which `together` shares among the circuits of
a group. FLOPs are 2 for each parameter of the blocks, the unembedding and token; `share_of_peak` is theirs over the
time, over the best float32 product in the same process.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import tcircuits as tc
from experiments.common import matmul_peak, save, show


@dataclass(frozen=True)
class Config:
    """What to run."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    task: str = "ioi"
    """Of `tcircuits.tasks.TASKS`."""
    circuits: int = 128
    """Run together."""
    prompts: int = 32
    """Likewise."""
    single: int = 64
    """Evaluations one at a time."""
    repeats: int = 3
    """Of the timed run together; the best counts."""


def case(cfg: Config, model: tc.Model, kinds: str) -> dict[str, Any]:
    """One kind of units."""
    sizes = {"attribution": 1, "selection": 1, "report": cfg.prompts}
    behaviour = tc.make_behaviour(model, cfg.task, sizes=sizes)
    d = tc.load_transcoders("neurons", model=model) if "feature" in kinds else None
    own = None if d is None else d.cfg
    units = tc.edges_of(model.cfg) if kinds == "edge" else tc.units_of(model.cfg, kinds.split(","), own)
    masks = np.random.default_rng(0).uniform(size=(cfg.circuits, units.n)) < 0.5

    def seconds(masks: np.ndarray, split: str, at_once: int, batch: int) -> float:
        start = time.perf_counter()
        tc.run_circuits(model, behaviour, masks, units, dictionary=d, split=split, at_once=at_once, batch=batch)
        return time.perf_counter() - start

    many = min([seconds(masks, "report", 16, 16) for _ in range(cfg.repeats + 1)][1:])
    one = [seconds(masks[i : i + 1], "selection", 1, 1) for i in range(cfg.single + 1)][1:]
    rates = {"together": cfg.circuits * cfg.prompts / many, "single": cfg.single / sum(one)}
    size = sum(a.size for a in jax.tree.leaves(model.params.blocks)) + model.cfg.d_model * model.cfg.d_vocab
    flops = 2 * size * behaviour["report"].clean.shape[1]
    more = {"ratio": rates["together"] / rates["single"], "share_of_peak": rates["together"] * flops / matmul_peak()}
    return {"units": kinds, "n": units.n} | rates | more


def main(cfg: Config) -> None:
    """Measure, print, write."""
    model = tc.load_model(cfg.model)
    rows = [case(cfg, model, kinds) for kinds in ("head,mlp", "head,feature", "edge")]
    show("evaluations a second", rows)
    save("bench.circuits", cfg, {"rows": rows})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

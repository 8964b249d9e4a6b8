"""How many circuits can be run a second: many at once, against one at a time.

    python -m experiments.bench.circuits

One evaluation is one circuit on one prompt. Both sides are `tc.run_circuits`, compiled before timing: `together` with
groups of circuits and prompts in one program, `single` with one circuit and one prompt a call, as a loop over circuits
would. Each call runs the model on the prompt and its counterfactual too, which `together` shares among the circuits of
a group. FLOPs are 2 for each parameter of the blocks, the unembedding and token; `share_of_peak` is theirs over the
time, over the best float32 product in the same process.

With `--rival-python`, an interpreter that has auto-circuit (`experiments.bench.rival_auto_circuit` says what else), its
public `run_circuits` runs on the same weights, prompts and nested circuits of edges; both sides' last logits are
compared.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tcircuits as tc
from experiments.common import matmul_peak, run, save, show
from tcircuits.circuits.running import Setting, both, masked, parts


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
    rival_python: Path | None = None
    """An interpreter that has auto-circuit."""


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


def against(cfg: Config, model: tc.Model, python: Path) -> dict[str, Any]:
    """Nested circuits of edges by a random ranking: ours and auto-circuit's."""
    sizes = {"attribution": 1, "selection": 1, "report": 4 * cfg.prompts}
    behaviour, edges = tc.make_behaviour(model, cfg.task, sizes=sizes), tc.edges_of(model.cfg)
    behaviour = same_length(behaviour, cfg.prompts)
    rank = np.random.default_rng(0).permutation(edges.n) + 1.0
    counts = np.unique(np.linspace(1, edges.n, cfg.circuits).astype(int))
    masks = rank[None] > edges.n - counts[:, None]

    def ours() -> float:
        start = time.perf_counter()
        tc.run_circuits(model, behaviour, masks, edges, at_once=16, batch=16)
        return time.perf_counter() - start

    seconds = min([ours() for _ in range(cfg.repeats + 1)][1:])
    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "exchange.npz", Path(name) / "logits.npy"
        exchange(path, model, behaviour, rank, counts)
        done = run([python, "-m", "experiments.bench.rival_auto_circuit", path, out, str(cfg.repeats)])
        rival, theirs = json.loads(done.stdout.splitlines()[-1]), np.load(out)
    mine = last_logits(model, behaviour, edges, masks)
    gap = float(np.abs((mine - mine.mean(-1, keepdims=True)) - (theirs - theirs.mean(-1, keepdims=True))).max())
    runs = len(counts) * cfg.prompts
    return {
        "edges": edges.n,
        "circuits": len(counts),
        "prompts": cfg.prompts,
        "per_second": runs / seconds,
        "rival_per_second": runs / rival["seconds"],
        "times_faster": rival["seconds"] / seconds,
        "largest_gap_of_logits": gap,
        "rival": rival | {"counts": len(rival["counts"])},
    }


def same_length(b: tc.Behaviour, n: int) -> tc.Behaviour:
    """The first `n` report prompts of the commonest length, without padding: the rival has none.

    Raises:
        ValueError: there are fewer.
    """
    p = b["report"]
    start = int(np.bincount(p.padding).argmax())
    at = np.flatnonzero(p.padding == start)[:n]
    if len(at) < n:
        raise ValueError(f"only {len(at)} prompts have one length, {n} were asked for")
    rows = replace(
        p, clean=p.clean[at, start:], other=p.other[at, start:], padding=p.padding[at] - start, right=p.right[at],
        wrong=p.wrong[at],
    )  # fmt: skip
    return replace(b, splits=dict(b.splits) | {"report": rows})


def exchange(path: Path, model: tc.Model, b: tc.Behaviour, rank: np.ndarray, counts: np.ndarray) -> None:
    """Write what the rival needs, under our names."""
    named = {jax.tree_util.keystr(k, simple=True, separator="."): x for k, x in jax.tree.leaves_with_path(model.params)}
    arrays = {name: np.asarray(x, np.float32) for name, x in named.items()}
    edges = tc.edges_of(model.cfg)
    full = np.full(edges.allowed.shape, np.nan)
    full[*edges.pairs.T] = rank
    arrays |= {"rank": full, "counts": counts, "clean": b["report"].clean, "other": b["report"].other}
    if "unembed" not in arrays:
        arrays["unembed"] = arrays["embed"].T
    np.savez(path, allow_pickle=False, cfg=np.array(json.dumps(asdict(model.cfg))), **arrays)


def last_logits(model: tc.Model, b: tc.Behaviour, edges: tc.circuits.Edges, masks: np.ndarray) -> np.ndarray:
    """The last logits of every circuit on every report prompt, [C, N, V]."""
    s = Setting(model.cfg, edges, b.metric)
    (prompts,) = parts(model, b["report"], b["report"].n)

    @jax.jit
    def of(mask: Any) -> Any:
        def one(p: Any) -> Any:
            _, clean, reference = both(s, model.params, None, None, p)
            return masked(s, model.params, None, mask, clean, reference, p)

        with jax.default_matmul_precision("highest"):
            return jax.vmap(one)(prompts)

    return np.stack([np.asarray(of(mask.astype(np.float32))) for mask in masks])


def main(cfg: Config) -> None:
    """Measure, print, write."""
    model = tc.load_model(cfg.model)
    rows = [case(cfg, model, kinds) for kinds in ("head,mlp", "head,feature", "edge")]
    show("evaluations a second", rows)
    rival = None if cfg.rival_python is None else against(cfg, model, cfg.rival_python)
    if rival is not None:
        show("against auto-circuit", [{k: v for k, v in rival.items() if k != "rival"}])
    save("bench.circuits", cfg, {"rows": rows, "auto_circuit": rival})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

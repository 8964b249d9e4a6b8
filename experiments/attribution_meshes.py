"""Is a graph the same on every mesh, heads that do not divide included, and is a device's work its share?

    python -m experiments.attribution_meshes

SmolLM2-135M (9 heads, 3 key and value heads) with its neurons, one prompt. Each mesh (data x model) of eight CPU
devices is a process of its own, and so is one device; two processes of two devices each work on (2,2). Targets lie on
`data`, features and heads on `model`; nine heads divide by no power of two, so that targets go over both axes.

Against one device: the overlap of the selected features and of the pruned nodes (intersection over union), the largest
difference of an edge over the mass of its row, of the influence, and of the logits. Near ties of the selection may
turn, since sums are taken in another order.

Work: the programs of a trace of this size, compiled for one device and for meshes of several; FLOPs of a device by the
compiled module with its loops (`planning.hlo`), and `share`, its part of one device's. A model whose heads divide, with
transcoders, stands beside it.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tcircuits as tc
from experiments.common import fresh, save, say, show
from experiments.processes import finished, python, two
from tcircuits.parallel import initialize, make_mesh
from tcircuits.planning.programs import abstracted, stages
from tcircuits.planning.request import Request
from tcircuits.planning.sources import dictionary_of, model_of

HERE = "experiments.attribution_meshes"
LANES = 64  # targets of a chunk of the planned sweep


@dataclass(frozen=True)
class Config:
    """What to run."""

    model: str = "smollm2-135m"
    """A built-in name, a folder, or a hub id."""
    transcoders: str = "neurons"
    """The set."""
    prompt: str = "The capital of the state containing Dallas is"
    """To be explained."""
    max_features: int = 400
    """With a row of their own."""
    meshes: tuple[tuple[int, int], ...] = ((8, 1), (4, 2), (2, 4), (1, 8))
    """(data, model), eight devices each."""
    works: tuple[tuple[int, int], ...] = ((4, 1), (2, 2), (1, 4), (8, 1), (4, 2), (1, 8))
    """Meshes whose work is compared with one device's."""
    planned: tuple[str, ...] = ("smollm2-135m neurons", "smollm2-135m transcoder:4608", "llama-3.2-1b transcoder:16384")
    """Models and dictionaries of these."""
    tokens: int = 64
    """Of the planned prompt."""
    planned_features: int = 2000
    """With a row of their own."""


def trace(model: str, transcoders: str, prompt: str, max_features: int, shape: tuple[int, int], out: Path) -> None:
    """The graph on a mesh, as a file."""
    initialize()
    mesh = None if shape == (1, 1) else make_mesh(shape)
    m = tc.load_model(model, mesh=mesh)
    d = tc.load_transcoders(transcoders, model=m)
    graph = tc.attribute(m, d, prompt, max_features=max_features)
    kept, rows = tc.prune(graph), np.arange(len(graph.row_start) - 1)
    assert kept.node_mask is not None
    np.savez(
        out,
        features=graph.features,
        values=graph.row_value[graph.n_features :],
        influence=graph.influence,
        kept=kept.node_mask,
        mass=graph.row_sums()[1],
        dense=graph.dense()[graph.row_nodes][:, : graph.n_sources] if len(rows) else rows,
        gap=graph.max_row_gap,
    )


def against(one: Any, other: Any) -> dict[str, Any]:
    """How far a graph is from one device's, over the features that both have."""
    mine, theirs = ([tuple(f) for f in g["features"].tolist()] for g in (one, other))
    common = sorted(set(mine) & set(theirs))
    index = [_places(g, names, common) for g, names in ((one, mine), (other, theirs))]
    mass = one["mass"][index[0][0]]
    edges = [g["dense"][np.ix_(rows, columns)] for g, (rows, columns) in zip((one, other), index, strict=True)]
    influence = [g["influence"][columns] for g, (_, columns) in zip((one, other), index, strict=True)]
    kept = [set(np.flatnonzero(g["kept"][columns])) for g, (_, columns) in zip((one, other), index, strict=True)]
    return {
        "features": len(common) / len(set(mine) | set(theirs)),
        "edges": float((np.abs(edges[1] - edges[0]) / mass[:, None]).max()),
        "influence": float(np.abs(influence[1] - influence[0]).max() / influence[0].max()),
        "nodes": len(kept[0] & kept[1]) / len(kept[0] | kept[1]),
        "logits": float(np.abs(other["values"] - one["values"]).max() / np.abs(one["values"]).max()),
        "max_row_gap": float(other["gap"]),
    }


def _places(g: Any, names: list[Any], common: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the common features, and of all targets, errors and tokens."""
    place = {name: i for i, name in enumerate(names)}
    own = [place[name] for name in common]
    n, (rows, columns) = len(names), g["dense"].shape
    return np.array(own + list(range(n, rows))), np.array(own + list(range(n, columns)))


def work(planned: str, tokens: int, max_features: int, shape: list[int]) -> dict[str, Any]:
    """FLOPs of one device of a trace, and what it sends; in a process that has not used a device."""
    n = shape[0] * shape[1]
    jax.config.update("jax_num_cpu_devices", n)
    jax.config.update("jax_enable_compilation_cache", False)  # a program that is read back has no text
    name, kind = planned.split()
    cfg = model_of(name)
    request = Request(cfg, dictionary_of(kind, cfg, None), tokens, max_features, 32, 10, LANES)
    a = abstracted(request, make_mesh((shape[0], shape[1])))
    costs = [stage.cost for stage in stages(a)]
    figures = {"gflop": sum(c.flops for c in costs) / 1e9, "moved_gb": sum(c.moved_bytes for c in costs) / 1e9}
    return {"planned": planned, "mesh": "x".join(map(str, shape))} | figures


def main(cfg: Config) -> None:
    """Trace on every mesh, compare, count work, write."""
    given = f"{cfg.model!r}, {cfg.transcoders!r}, {cfg.prompt!r}, {cfg.max_features}"
    rows = []
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        for shape in ((1, 1), *cfg.meshes):
            name = "x".join(map(str, shape))
            say(name)
            finished(python(HERE, f"trace({given}, {shape}, Path({str(out / f'{name}.npz')!r}))", shape[0] * shape[1]))
            if shape != (1, 1):
                rows.append({"mesh": name} | against(np.load(out / "1x1.npz"), np.load(out / f"{name}.npz")))
        say("two processes")
        two(HERE, f"trace({given}, (2, 2), Path({str(out / 'two.npz')!r}))")
        rows.append({"mesh": "2x2, two processes"} | against(np.load(out / "1x1.npz"), np.load(out / "two.npz")))
    show("against one device", rows)
    works = []
    for planned in cfg.planned:
        for shape in ((1, 1), *cfg.works):
            say(f"{planned} on {shape}")
            sizes = {"tokens": cfg.tokens, "max_features": cfg.planned_features, "shape": shape}
            works.append(fresh(HERE, "work", platform="cpu", planned=planned, **sizes))
            whole = next(w for w in works if w["planned"] == planned)
            works[-1] |= {"share": works[-1]["gflop"] / whole["gflop"]}
    show("work of a device", works)
    save("attribution_meshes", cfg, {"meshes": rows, "work": works})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

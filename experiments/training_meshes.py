"""Does training give the same losses on one device, on eight, and in two processes, and does its memory fall?

    python -m experiments.training_meshes

A small random model, eight CPU devices. For each recipe, 50 steps on one device and on the meshes (data x feature)
(8,1), (4,2), (2,4) and (1,8): the largest relative difference of a step's losses; the bytes that the state takes on the
first device, against those computed from the shapes; the compiled program's own figures for one device.

Then runs that stop on (4,2) after 24 steps and go on from their checkpoint: on (4,2), (1,8), two devices (2,1), and two
real processes of two devices each (2,2); and a run of two processes from its start. All against one device.

Losses are compared, not weights: TopK's choice between two nearly equal features may fall either way when a sum is
taken in another order.
"""

import json
import shutil
import signal
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.common import save, show
from experiments.processes import finished, python, two
from experiments.training_resume import Numbers
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.models.params import init, spec
from tcircuits.parallel import host, initialize, make_mesh, shardings
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.training import folder
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.recipe import Objective, Optimizer, Recipe
from tcircuits.transcoders.training.run import make_programs, placed, train

CFG = ModelConfig("llama", 2, 16, 2, 1, 8, 32, 30, 32, rotary_dim=8)
STEPS, STOP = 50, 24
FILL = Fill(context=17, rows=8, steps=2)
ADAM = Optimizer(lr=3e-3, warmup=5)


def _recipe(kind: Any, activation: Any, objective: Objective, F: int = 64, k: int | None = None, **more: Any) -> Recipe:
    skip = more.pop("skip", False)
    norm = "free" if kind == "clt" else "unit"
    given: dict[str, Any] = {"steps": STEPS, "batch": 64, "decoder_norm": norm} | more
    d = TranscoderConfig(kind, CFG.n_layers, CFG.d_model, F, (0, 1), activation, k=k, skip=skip)
    return Recipe(d, objective, ADAM, **given)


FVU = Objective(error="fvu")
RECIPES = {
    "topk, rows": _recipe("transcoder", "topk", FVU, k=4, decode="sparse"),
    "topk, dense": _recipe("transcoder", "topk", replace(FVU, auxk=1 / 32, dead_after=500), k=4, decode="dense"),
    "topk, skip": _recipe("transcoder", "topk", FVU, k=4, skip=True, pre_bias=True),
    "batchtopk": _recipe("transcoder", "batchtopk", replace(FVU, k=4)),
    "jumprelu": _recipe("transcoder", "jumprelu", Objective(l0=0.02, bandwidth=0.5)),
    "clt topk, rows": _recipe("clt", "topk", FVU, k=4, decode="sparse"),
    "clt topk, dense": _recipe("clt", "topk", FVU, k=4, decode="dense"),
    "clt jumprelu": _recipe("clt", "jumprelu", Objective(l0=0.02, bandwidth=0.5, tanh=0.01, preactivation=1e-3)),
    "accumulate 2": _recipe("transcoder", "topk", FVU, k=4, accumulate=2),
    "nothing divides": _recipe("transcoder", "topk", FVU, F=63, k=4, batch=45),
}
FILLS = {"nothing divides": replace(FILL, rows=3)}
HERE = "experiments.training_meshes"
RESUMED = ("topk, skip", "clt topk, dense")


@dataclass(frozen=True)
class Config:
    """What to run."""

    meshes: tuple[tuple[int, int], ...] = ((8, 1), (4, 2), (2, 4), (1, 8))
    """(data, feature)."""
    recipes: tuple[str, ...] = tuple(RECIPES)
    """Names of `RECIPES`."""
    resumed: tuple[str, ...] = RESUMED
    """Those that stop and go on."""


def model_on(mesh: Mesh | None) -> Model:
    """A random model, on a mesh."""
    params = init(CFG, jax.random.key(0))
    if mesh is not None:
        places = shardings(spec(CFG), mesh)
        params = jax.tree.map(lambda a, p: jax.device_put(np.asarray(a), p), params, places)
    return Model(CFG, params, None, "small")


def steps_on(name: str, mesh: Mesh | None) -> tuple[np.ndarray, dict[str, Any]]:
    """The losses [step, layer] of a recipe's steps, and what one device holds."""
    recipe, fill, model = RECIPES[name], FILLS.get(name, FILL), model_on(mesh)
    programs, need = make_programs(model, recipe, fill, mesh), fill.n_rows(recipe.batch)

    def tokens(number: int) -> jax.Array:
        rows = Numbers().rows(number * need, need).reshape(-1, fill.rows, fill.context)
        return placed(rows, programs.rows)

    state = programs.first(model.params, tokens(0))
    program: Any = programs.fill
    compiled = program.lower(model.params, state, tokens(0), jnp.int32(0)).compile()
    about = held(recipe, state, mesh, compiled, (model.params, tokens(0)))
    losses = []
    for number in range(recipe.steps // fill.steps):
        state, metrics = compiled(model.params, state, tokens(number), jnp.int32(number))
        losses.append(host(metrics.loss, np.float64))
    return np.concatenate(losses), about


def on_first(tree: Any) -> int:
    """Bytes of arrays on the first device."""
    shards = (s for a in jax.tree.leaves(tree) for s in a.addressable_shards)
    return sum(s.data.nbytes for s in shards if s.device == jax.devices()[0])


def held(recipe: Recipe, state: Any, mesh: Mesh | None, compiled: Any, others: Any) -> dict[str, Any]:
    """Bytes on the first device of the state and of the other arguments; those that the shapes and the compiler say."""
    memory = compiled.memory_analysis()
    return {
        "state_bytes": on_first(state),
        "state_bytes_computed": computed(recipe, 1 if mesh is None else mesh.shape["model"]),
        "other_bytes": on_first(others),  # the program takes those of the model's arrays that it uses
        "argument_bytes_compiled": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "gigaflop": compiled.cost_analysis()["flops"] / 1e9,
    }


def computed(recipe: Recipe, parts: int) -> int:
    """Bytes of the state on a device whose features are divided into so many parts: by hand, from the shapes."""
    n, F, D = len(recipe.dictionary.layers), recipe.dictionary.d_feature, recipe.dictionary.d_model
    features = F // parts if F % parts == 0 else F
    pairs = n * (n + 1) // 2 if recipe.dictionary.kind == "clt" else n
    jump, bare = recipe.dictionary.activation == "jumprelu", recipe.pre_bias
    by_feature = (n + pairs) * features * D + n * features * (2 if jump else 1)
    others = n * D * (2 if bare else 1) + (n * D * D if recipe.dictionary.skip else 0)
    return 4 * (3 * (by_feature + others) + n * features + 1 + 3 * n)  # moments; counter; step; cut and two scales


def apart(losses: Any, reference: Any) -> float:
    """The largest relative difference."""
    a, b = np.asarray(losses), np.asarray(reference)
    return float(np.max(np.abs(a - b) / np.abs(b))) if a.shape == b.shape else float("inf")


def compare(names: tuple[str, ...], meshes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    """A row for each recipe and mesh."""
    found = []
    for name in names:
        reference, about = steps_on(name, None)
        found.append({"recipe": name, "mesh": "one device", "apart": 0.0} | about)
        for shape in meshes:
            losses, about = steps_on(name, make_mesh(shape))
            found.append({"recipe": name, "mesh": f"{shape[0]}x{shape[1]}", "apart": apart(losses, reference)} | about)
            print(found[-1], flush=True)
    return found


def run_on(name: str, run: Path, mesh: Mesh | None, stop: int | None = None) -> None:
    """Train, or go on training, in a folder; with `stop`, a signal arrives at that step."""

    def watch(row: dict[str, Any]) -> None:
        if row["step"] == stop:
            signal.raise_signal(signal.SIGTERM)

    train(model_on(mesh), RECIPES[name], Numbers(), run, fill=FILL, checkpoint_every=1000, mesh=mesh, watch=watch)


def folder_of(home: Path, name: str, way: str) -> Path:
    """The folder of a run."""
    return home / name.replace(", ", "-").replace(" ", "-") / way


def stopped_runs(home: Path, names: tuple[str, ...]) -> None:
    """In a process of eight devices: runs on one device and on (4,2), one stopped there, copies of it that go on."""
    for name in names:
        run_on(name, folder_of(home, name, "one"), None)
        run_on(name, folder_of(home, name, "4x2"), make_mesh((4, 2)))
        stopped = folder_of(home, name, "stopped")
        run_on(name, stopped, make_mesh((4, 2)), STOP)
        for way in ("4x2 again", "1x8", "2x1", "two processes"):
            shutil.copytree(stopped, folder_of(home, name, way))
        run_on(name, folder_of(home, name, "4x2 again"), make_mesh((4, 2)))
        run_on(name, folder_of(home, name, "1x8"), make_mesh((1, 8)))


def go_on(home: Path, names: tuple[str, ...], shape: tuple[int, int], ways: tuple[str, ...]) -> None:
    """In a process that may be one of several: train in the folders of some ways."""
    initialize()
    for name in names:
        for way in ways:
            run_on(name, folder_of(home, name, way), make_mesh(shape))


def resumed(home: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each recipe and way to go on: how far its losses are from one device's."""
    where = f"Path({str(home)!r}), {names!r}"
    finished(python(HERE, f"stopped_runs({where})", 8))
    finished(python(HERE, f"go_on({where}, (2, 1), ('2x1',))", 2))
    two(HERE, f"go_on({where}, (2, 2), ('two processes', 'two processes from the start'))")
    found = []
    for name in names:
        read = {run.name: folder.read_metrics(run) for run in folder_of(home, name, "x").parent.iterdir()}
        losses = {way: [row["loss"] for row in rows] for way, rows in read.items() if way != "stopped"}
        for way in sorted(losses):
            steps = [row["step"] for row in read[way]]
            row = {"recipe": name, "run": way, "fills": len(steps), "apart": apart(losses[way], losses["one"])}
            found.append(row | {"bits_of_4x2": losses[way] == losses["4x2"]})
    return found


def main(cfg: Config) -> None:
    """Train on every mesh, compare, write."""
    with tempfile.TemporaryDirectory() as place:
        again = resumed(Path(place), cfg.resumed)
    show("stopped on 4x2, gone on elsewhere", again)
    call = f"save_meshes({cfg.recipes!r}, {cfg.meshes!r}, Path(OUT))"
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "rows.json"
        finished(python(HERE, call.replace("OUT", repr(str(out))), 8))
        rows = json.loads(out.read_text())
    show("50 steps against one device", rows)
    worst = {"meshes": max(r["apart"] for r in rows), "resumed": max(r["apart"] for r in again)}
    exact = all(r["state_bytes"] == r["state_bytes_computed"] for r in rows)
    print(f"worst: {worst}; state as computed everywhere: {exact}")
    save("training_meshes", cfg, {"worst": worst, "state_as_computed": exact, "meshes": rows, "resumed": again})


def save_meshes(names: tuple[str, ...], meshes: tuple[tuple[int, int], ...], out: Path) -> None:
    """`compare`, into a file."""
    out.write_text(json.dumps(compare(names, meshes)), encoding="utf-8")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

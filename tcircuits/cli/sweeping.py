"""`tcircuits sweep`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tcircuits.cli import common
from tcircuits.cli.common import Repeated, check_folder, print_json, write_text
from tcircuits.cli.training import numbers
from tcircuits.types import InputError

POINTS = (8, 16, 32, 64)
VERSION = 1


@dataclass(frozen=True)
class Sweep:
    """Train a grid of dictionaries on one run of the model, measure all, and draw L0 against cross-entropy."""

    run: tyro.conf.Positional[Path]
    """Folder of the sweep: checkpoints, dictionaries, sweep.json and report.html; the same command goes on with it."""
    data: Repeated
    """As in train."""
    model: str = "smollm2-135m"
    """As in trace."""
    preset: str | None = None
    """A panel of the transcoder paper's Figure 3 (gpt2-l8 ...): all its penalties, or those of --l1."""
    kinds: str = "transcoder,sae"
    """Of transcoder, skip, sae (on the MLP's output), clt."""
    activations: str = "topk"
    """Of topk, batchtopk, jumprelu, relu."""
    k: str | None = None
    """Features that are on for a token (the aim, with jumprelu); default 8,16,32,64."""
    l1: str | None = None
    """Weights of the L1 penalty, for relu: 1e-4,2e-4."""
    layers: str = "all"
    """Which: all, or 0,3 or 2-5."""
    expansion: str = "8"
    """Features for each dimension of the model, one or several."""
    seeds: str = "0"
    """Every member is trained with each."""
    tokens: int = 10_000_000
    """How many each member trains on."""
    batch: int = 4096
    """Tokens of a step."""
    lr: float | None = None
    """As in train."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """As in train."""
    context: int = 128
    """Tokens of a row of text."""
    rows: int = 32
    """Rows that the model runs over at once."""
    buffer: int = 16
    """Steps on one buffer of shuffled activations."""
    bos: Literal["auto", "add", "none"] = "auto"
    """Whether rows begin with the BOS token."""
    held_out: float = 0.05
    """Share of documents that members are measured on instead of trained."""
    data_seed: int = 0
    """Of the order of rows, which all members share."""
    eval_tokens: int = 200_000
    """Held-out tokens to measure on, or all where there are fewer."""
    eval_batch: int = 8
    """Rows at once while measuring."""
    l0: str | None = None
    """Where families are compared: 10,30; default: the middle of the L0 that both reach."""
    checkpoint_every: int = 50
    """Buffers between checkpoints."""
    max_hours: float | None = None
    """Stop training with a checkpoint after so long."""
    mesh: str | None = None
    """Devices for data and for features, DATA,MODEL; default: one device."""
    plot: Literal["none", "png", "pdf"] = "none"
    """Draw figure3.png or figure3.pdf too (needs matplotlib)."""
    tensorboard: bool = False
    """Write TensorBoard's event files too, to RUN/tensorboard."""
    json: bool = False
    """Print one JSON object instead of progress bars and tables."""


def sweep(cfg: Sweep) -> None:
    """Run `tcircuits sweep`."""
    from tcircuits.view.plots import check_matplotlib
    from tcircuits.view.tensorboard import check_tensorboard

    check_folder(cfg.run, "the run")
    if not cfg.data:
        raise InputError("give at least one --data: a folder that `tcircuits tokenize` wrote, or text")
    check_tensorboard(cfg.tensorboard)
    check_matplotlib(cfg.plot != "none")
    mesh_shape = numbers("--mesh", cfg.mesh, 2) if cfg.mesh else None
    at = decimals("--l0", cfg.l0) if cfg.l0 else None
    if cfg.eval_batch < 1 or min(at or (1.0,)) <= 0:
        raise InputError(f"--eval-batch {cfg.eval_batch}, --l0 {cfg.l0}: give numbers above 0")
    axes = axes_of(cfg)
    common.start_jax()
    import tcircuits as tc
    from tcircuits.parallel import is_lead, make_mesh

    mesh: Any = None if mesh_shape is None else make_mesh((mesh_shape[0], mesh_shape[1]))
    model = tc.load_model(cfg.model, mesh=mesh)
    members = members_of(cfg, model.cfg, axes)
    rows = held_out(cfg, model)
    outcome = trained(cfg, model, members, mesh)
    found = measured(cfg, model, members, outcome, *rows)
    if is_lead():
        finish(cfg, members, outcome, found, model.name, at)


def axes_of(cfg: Sweep) -> dict[str, Any]:
    """The grid's axes, as the options write them."""
    activations = words(cfg.activations)
    plain = any(a != "relu" for a in activations) and cfg.preset is None
    return {
        "kinds": words(cfg.kinds),
        "activations": activations,
        "k": (POINTS if plain else ()) if cfg.k is None else numbers("--k", cfg.k),
        "l1": () if cfg.l1 is None else decimals("--l1", cfg.l1),
        "expansions": numbers("--expansion", cfg.expansion),
        "seeds": numbers("--seeds", cfg.seeds),
    }


def members_of(cfg: Sweep, model: Any, axes: dict[str, Any]) -> Any:
    """The members that the options ask for."""
    from tcircuits.transcoders.evaluation.data import parse_layers
    from tcircuits.transcoders.training.grid import grid, paper_grid

    if cfg.preset is not None:
        fixed = (cfg.k, cfg.lr, cfg.layers, cfg.expansion, cfg.activations, cfg.batch)
        if fixed != (None, None, "all", "8", "topk", 4096):
            raise InputError("--preset says layers, widths, activation and batch; --kinds, --l1, --seeds are free")
        few = {name: axes[name] for name in ("kinds", "l1", "seeds")}
        return paper_grid(cfg.preset, model, **few, tokens=cfg.tokens)
    layers = None if cfg.layers == "all" else parse_layers(cfg.layers)
    optimizer = {} if cfg.lr is None else {"lr": cfg.lr}
    more = {"tokens": cfg.tokens, "batch": cfg.batch, "compute": cfg.compute, "optimizer": optimizer}
    return grid(model, layers=layers, **axes, **more)


def trained(cfg: Sweep, model: Any, members: Any, mesh: Any) -> Any:
    """Train all members."""
    from tcircuits.transcoders.training.corpus import open_corpus
    from tcircuits.transcoders.training.harvest import Fill
    from tcircuits.transcoders.training.sweep import sweep as go
    from tcircuits.view.tensorboard import board
    from tcircuits.view.training import watching

    fill = Fill(cfg.context, cfg.rows, cfg.buffer)
    layers = {m.name: m.recipe.dictionary.layers for m in members}
    corpus = open_corpus(cfg.data, model, cfg.run, fill.context, **_rows(cfg))
    events = board(cfg.run / "tensorboard", cfg.tensorboard)
    with watching(members[0].recipe.steps, not cfg.json) as watch, events as add:

        def told(row: Any) -> None:
            if row["members"]:
                watch(pooled(row))
            for name, own in row["members"].items():
                add(name, layers[name], own)

        rest = {"checkpoint_every": cfg.checkpoint_every, "max_hours": cfg.max_hours, "mesh": mesh, "watch": told}
        return go(model, members, corpus, cfg.run, fill=fill, **rest)


def _rows(cfg: Sweep) -> dict[str, Any]:
    return {"seed": cfg.data_seed, "bos": cfg.bos, "held_out": cfg.held_out}


def pooled(row: dict[str, Any]) -> dict[str, Any]:
    """One row for the bar: figures of all members and layers together."""
    own = row["members"].values()
    return row | {name: [v for r in own for v in r[name]] for name in ("loss", "fvu", "l0", "dead")}


def held_out(cfg: Sweep, model: Any) -> tuple[Any, int]:
    """The rows to measure on, and how many tokens of them; looked at before anything is trained.

    Raises:
        InputError: too few for a row.
    """
    from tcircuits.transcoders.evaluation.corpus import corpus
    from tcircuits.transcoders.training.corpus import open_corpus

    rows = open_corpus(cfg.data, model, cfg.run, cfg.context, part="held_out", **_rows(cfg))
    parts = getattr(rows, "sources", (rows,))
    have = len(parts) * min(part.per_epoch for part in parts) * cfg.context
    n_tokens = min(cfg.eval_tokens, have)
    corpus(model.cfg, rows, n_tokens)
    return rows, n_tokens


def measured(cfg: Sweep, model: Any, members: Any, outcome: Any, rows: Any, n_tokens: int) -> dict[str, Any]:
    """Evaluations of the members that are trained."""
    from tcircuits.transcoders.evaluation.families import evaluate_members
    from tcircuits.transcoders.training.sweep import folder_of
    from tcircuits.view.terminal import progress

    folders = {m.name: folder_of(cfg.run, m) for m in members}
    if not outcome.made:
        return {}
    with progress("measuring", not cfg.json) as bar:
        options = {"n_tokens": n_tokens, "batch": cfg.eval_batch, "progress": bar}
        return evaluate_members(model, outcome.made, rows, folders, **options)


def finish(cfg: Sweep, members: Any, outcome: Any, found: dict[str, Any], model: str, at: Any) -> None:
    """Write sweep.json, the page and the plot, and print what was found."""
    from tcircuits.transcoders.evaluation.families import against_each_other, summary
    from tcircuits.view.plots import write_plot
    from tcircuits.view.sweep import show_sweep, write_page

    told = {"version": VERSION, "model": model, "status": outcome.status, "step": outcome.step, "run": str(cfg.run)}
    told |= {"tokens": outcome.step * members[0].recipe.batch, "data": list(cfg.data)}
    told["ce_original"] = next((e.ce_original for e in found.values()), None)
    told["members"] = summary(members, found, outcome.failed)
    told["comparisons"] = [v.to_json() for v in against_each_other(members, found, l0=at)]
    told["page"] = str(write_page(told, cfg.run))
    if cfg.plot != "none" and found:
        told["plot"] = str(write_plot(told, cfg.run, cfg.plot))
    write_text(cfg.run / "sweep.json", json.dumps(told, indent=1) + "\n")
    if cfg.json:
        print_json(told)
        return
    show_sweep(told)
    print(f"page: {told['page']}" if outcome.status == "done" else "stopped; the same command goes on")


def words(text: str) -> tuple[str, ...]:
    """Words with commas between."""
    return tuple(w.strip() for w in text.split(",") if w.strip())


def decimals(name: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between.

    Raises:
        InputError: anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{name} {text!r}: write some numbers with commas between") from None

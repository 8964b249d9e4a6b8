"""`tcircuits train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tcircuits.cli import common
from tcircuits.cli.common import Repeated, check_folder, print_json
from tcircuits.types import InputError


@dataclass(frozen=True)
class Train:
    """Train transcoders, skip or cross-layer transcoders, or SAEs on a model; a run that was cut off goes on."""

    run: tyro.conf.Positional[Path]
    """Folder of the run: checkpoints, figures, and in the end the transcoders."""
    data: Repeated
    """Tokens (a folder that `tokenize` wrote) or text, repeatable: several are mixed in equal parts."""
    model: str = common.MODEL
    """As in trace."""
    preset: str | None = None
    """A run of the transcoder paper (gpt2-l8, pythia-410m-l15, pythia-1.4b-l15), with --l1 and --kind."""
    kind: Literal["transcoder", "clt", "sae"] = "transcoder"
    """One dictionary a layer, one that writes to all later layers, or an SAE."""
    layers: str = "all"
    """Which: all, or 0,3 or 2-5."""
    expansion: int = 8
    """Features for each dimension of the model."""
    features: int | None = None
    """Features of a layer, instead of --expansion."""
    activation: Literal["topk", "batchtopk", "jumprelu", "relu"] = "topk"
    """Which features are on."""
    k: int = 32
    """Features that are on for a token (the aim, with jumprelu; not for relu)."""
    l1: float | None = None
    """Weight of the L1 penalty (relu)."""
    skip: bool = False
    """An affine path beside the features."""
    site: str | None = None
    """An SAE's: mlp_in, mlp_out, resid_pre, resid_mid, resid_post."""
    band: int | None = None
    """A cross-layer transcoder writes to this many layers only."""
    tied: bool = False
    """A cross-layer transcoder has one decoder for all layers."""
    nested: str = ""
    """Matryoshka: widths of prefixes that must reconstruct alone, 128,512,2048."""
    tokens: int = 10_000_000
    """How many to train on."""
    batch: int = 4096
    """Tokens of a step."""
    accumulate: int = 1
    """Parts of a batch, where it does not fit at once."""
    lr: float | None = None
    """Learning rate; the default suits most widths."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the large products; weights stay in float32."""
    context: int = 128
    """Tokens of a row of text."""
    rows: int = 32
    """Rows that the model runs over at once."""
    buffer: int = 16
    """Steps on one buffer of shuffled activations."""
    bos: Literal["auto", "add", "none"] = "auto"
    """Whether rows begin with the BOS token."""
    held_out: float = 0.05
    """Share of documents that are left for `eval --part held_out`."""
    seed: int = 0
    """Of the first weights and of the order of the data."""
    checkpoint_every: int = 50
    """Buffers between checkpoints."""
    max_hours: float | None = None
    """Stop with a checkpoint after so long."""
    mesh: str | None = None
    """Devices for data and for features, DATA,MODEL; default: one device."""
    tensorboard: bool = False
    """Write TensorBoard's event files too, to RUN/tensorboard."""
    json: bool = False
    """Print one JSON object instead of a progress bar."""


def train(cfg: Train) -> None:
    """Run `tcircuits train`."""
    check_folder(cfg.run, "the run")
    mesh_shape = numbers("--mesh", cfg.mesh, 2) if cfg.mesh else None
    nested = numbers("--nested", cfg.nested) if cfg.nested else ()
    if not cfg.data:
        raise InputError("give at least one --data: a folder that `tcircuits tokenize` wrote, or text")
    from tcircuits.view.tensorboard import board, check_tensorboard

    check_tensorboard(cfg.tensorboard)
    common.start_jax()
    import tcircuits as tc
    from tcircuits.parallel import is_lead, make_mesh
    from tcircuits.transcoders.training.corpus import open_corpus
    from tcircuits.transcoders.training.harvest import Fill
    from tcircuits.transcoders.training.run import train as go
    from tcircuits.view.training import show_outcome, watching

    mesh: Any = None if mesh_shape is None else make_mesh((mesh_shape[0], mesh_shape[1]))
    model = tc.load_model(cfg.model, mesh=mesh)
    recipe = recipe_of(cfg, model.cfg, nested)
    fill = Fill(cfg.context, cfg.rows, cfg.buffer)
    options = {"seed": cfg.seed, "bos": cfg.bos, "held_out": cfg.held_out}
    corpus = open_corpus(cfg.data, model, cfg.run, fill.context, **options)
    events = board(cfg.run / "tensorboard", cfg.tensorboard)
    with watching(recipe.steps, not cfg.json) as watch, events as add:

        def told(row: Any) -> None:
            watch(row)
            add("", recipe.dictionary.layers, row)

        rest = {"checkpoint_every": cfg.checkpoint_every, "max_hours": cfg.max_hours, "mesh": mesh, "watch": told}
        outcome = go(model, recipe, corpus, cfg.run, fill=fill, **rest)
    if is_lead():
        found = show_outcome(cfg.run, recipe.dictionary.layers, outcome, quiet=cfg.json)
        if cfg.json:
            print_json(found)


def recipe_of(cfg: Train, model: Any, nested: tuple[int, ...]) -> Any:
    """The recipe that the options ask for."""
    from tcircuits.transcoders.evaluation.data import parse_layers
    from tcircuits.transcoders.training.presets import dictionary, make, paper

    if cfg.preset is not None:
        if cfg.l1 is None or cfg.kind == "clt":
            raise InputError("--preset needs --l1, and --kind transcoder or sae")
        return paper(cfg.preset, model, cfg.l1, cfg.kind, cfg.tokens)
    if cfg.l1 is not None and cfg.activation != "relu":
        raise InputError(f"--l1 is for --activation relu; {cfg.activation} has --k")
    layers = None if cfg.layers == "all" else parse_layers(cfg.layers)
    site: Any = cfg.site
    d = dictionary(
        model, kind=cfg.kind, layers=layers, expansion=cfg.expansion, features=cfg.features, activation=cfg.activation,
        k=cfg.k, skip=cfg.skip, reads=site, writes=site,
    )  # fmt: skip
    objective = {"nested": nested} | ({} if cfg.l1 is None else {"l1": cfg.l1})
    optimizer = {} if cfg.lr is None else {"lr": cfg.lr}
    more = {"accumulate": cfg.accumulate, "band": cfg.band, "tied": cfg.tied, "compute": cfg.compute, "seed": cfg.seed}
    return make(d, tokens=cfg.tokens, batch=cfg.batch, k=cfg.k, objective=objective, optimizer=optimizer, **more)


def numbers(name: str, text: str, count: int | None = None) -> tuple[int, ...]:
    """Whole numbers with commas between.

    Raises:
        InputError: anything else, or another count of them.
    """
    parts = text.split(",")
    if not all(p.strip().isdecimal() for p in parts) or (count is not None and len(parts) != count):
        raise InputError(f"{name} {text!r}: write {count or 'some'} whole numbers with commas between")
    return tuple(int(p) for p in parts)

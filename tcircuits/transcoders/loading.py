"""From a name, folder or hub repository to `Transcoders`.

Headers are checked first, against each other and against the model; every problem is reported at once. Then one layer
is read at a time, into its place, dtype and sharding: memory holds the dictionary and one matrix more, never a file.

>>> from tcircuits.models.config import ModelConfig
>>> model = ModelConfig("toy", n_layers=2, d_model=4, n_heads=1, n_kv_heads=1, d_head=4, d_mlp=6, d_vocab=5, n_ctx=8,
...                     position="none")
>>> load_transcoders("neurons", model=model).cfg.d_feature
6
"""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tcircuits.checkpoint import began_as_checkpoint
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.parallel import check_dtype, is_lead, place, shardings
from tcircuits.transcoders.dictionary import Transcoders, neurons, spec
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.hub import listed_place, locate
from tcircuits.transcoders.lazy import LazyTranscoders, open_lazy
from tcircuits.transcoders.opening import Opened, open_set
from tcircuits.transcoders.options import Choices, Options, chosen
from tcircuits.transcoders.pieces import Piece
from tcircuits.transcoders.presets import Preset, find_preset
from tcircuits.transcoders.selfcheck import warn_of_sites
from tcircuits.transcoders.stored import load_stored
from tcircuits.types import InputError

ARRAYS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold", "w_skip")
Part = tuple[tuple[slice, ...], np.ndarray]  # where a part of an array lies in it, and its buffer


def load_transcoders(
    source: str | os.PathLike[str],
    *,
    model: Model | ModelConfig | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    check: bool = True,
    **choices: Unpack[Choices],
) -> Transcoders:
    """Load a set of dictionaries.

    Args:
        source: `neurons` (the model's own MLP neurons), the name of a published set (`presets`), a local folder or
            file in any format of `formats.table` (circuit-tracer, SAELens, sparsify, Gemma Scope, Llama Scope, the
            transcoder paper's), a folder that `save_transcoders` wrote, or a hub reference
            `owner/repository[/folder][@revision]` or `hf://owner/repository/folder`.
        model: the model that they must fit; its depth is theirs. None does not check.
        dtype: of the arrays.
        mesh: devices to shard over (`parallel.make_mesh`); None is the default device.
        check: with a whole `Model`, try the dictionary on a few tokens and warn (`SiteWarning`) where it cannot belong
            to the site that its files name.
        choices: what the files leave open or say wrongly: `layers`, `fill`, `kind`, `activation`, `k`, `reads`,
            `writes`, `decoder_rows`, `width`, `l0`, `max_decoded`, `allow_unknown`; see `options.Choices`.

    Raises:
        InputError: an unknown source, damaged or missing files, tensors or sizes that do not fit each other or the
            model (all problems at once, before any matrix is read), values that are not finite.
    """
    wanted = check_dtype(dtype)
    options = chosen(choices)
    cfg, name = model.cfg if isinstance(model, Model) else model, os.fspath(source)
    if name == "neurons":
        _refuse_options(name, options)
        return _neurons(cfg)
    found = open_source(name, cfg, options)
    try:
        if isinstance(found, Path):
            _refuse_options(name, options, "fill")
            loaded = load_stored(found, name, cfg, options.fill, wanted, mesh)
        else:
            loaded = _read(found, name, wanted, mesh)
    except InputError as error:
        raise InputError(f"transcoders {name}: {error}") from error
    if check and isinstance(model, Model):
        warn_of_sites(model, loaded)
    return loaded


def open_transcoders(
    source: str | os.PathLike[str],
    *,
    model: Model | ModelConfig | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    scratch: str | os.PathLike[str] | None = None,
    **choices: Unpack[Choices],
) -> LazyTranscoders:
    """Open a set of dictionaries that stays on disk: a prompt loads the rows of its active features only.

    `attribute` takes it in the place of loaded ones, and gives the same graph. Arguments as for `load_transcoders`; the
    check of sites is left out. With `scratch`, a folder, the decoders of a prompt's active features are not loaded
    either but copied to a file there, whose pages the machine holds while it has room: for long prompts through
    cross-layer sets, on one CPU. It takes their size (bfloat16 as in the files), and is gone afterwards.

    Raises:
        InputError: as `load_transcoders`, but that values which are not finite are found when they are read; `neurons`,
            and checkpoints of our own, which are not read by rows; a scratch folder that is missing or too small, or
            with other devices.
    """
    wanted, options, name = check_dtype(dtype), chosen(choices), os.fspath(source)
    if name == "neurons":
        raise InputError("'neurons' are in the model's own memory: load_transcoders('neurons', model=...)")
    found = open_source(name, model.cfg if isinstance(model, Model) else model, options)
    if isinstance(found, Path):
        raise InputError(
            f"transcoders {name} are a checkpoint of tcircuits, which is not read by rows: write it in the format of "
            "circuit-tracer (save_transcoders, or tcircuits convert --to circuit-tracer), or load it"
        )
    return open_lazy(found, name, wanted, mesh, scratch=None if scratch is None else Path(scratch))


def open_source(name: str, model: ModelConfig | None, options: Options) -> Opened | Path:
    """What a source is: an open set, or the folder of a checkpoint of ours.

    Raises:
        InputError: as `load_transcoders`; nothing is read but headers.
    """
    path = Path(name).expanduser()
    if name and path.is_dir() and began_as_checkpoint(path):
        return path
    preset = None if path.exists() else find_preset(name)
    where = locate(name) if preset is None else _published(preset)
    try:
        return open_set(where, model, options if preset is None else _stated(preset, options))
    except InputError as error:
        raise type(error)(f"transcoders {name}: {error}") from error


def _published(preset: Preset) -> Place:
    """The files of a published set: a repository, or an address for each layer."""
    if len(preset.references) == 1:
        return locate(preset.references[0])
    return listed_place(preset.name, preset.references)


def _stated(preset: Preset, options: Options) -> Options:
    """The options, and where they are silent what is known of a published set."""
    known: dict[str, Any] = {"kind": preset.kind, "activation": preset.activation, "k": preset.k}
    known |= {"reads": preset.reads, "writes": preset.writes}
    return replace(options, **{name: value for name, value in known.items() if getattr(options, name) is None})


def _refuse_options(source: str, options: Options, *meant: str) -> None:
    given = [f.name for f in fields(options) if f.name not in meant and getattr(options, f.name) not in (None, ())]
    if given:
        raise InputError(f"transcoders {source}: {', '.join(given)} cannot be changed; leave them out")


def _neurons(model: ModelConfig | None) -> Transcoders:
    if model is None:
        raise InputError("transcoders 'neurons' are the model's own MLP neurons: give model=")
    if model.attn_only:
        raise InputError(f"the {model.family} model is attention-only, so it has no neurons; give other transcoders")
    return neurons(model.n_layers, model.d_model, model.d_mlp)


def _read(opened: Opened, name: str, dtype: np.dtype, mesh: Mesh | None) -> Transcoders:
    """Read an open folder, one array after the other."""
    from rich.console import Console
    from rich.progress import Progress

    specs = spec(opened.cfg)
    places = None if mesh is None else shardings(specs, mesh)
    console = Console(stderr=True)
    arrays: dict[str, Any] = dict.fromkeys(ARRAYS)
    with Progress(console=console, transient=True, disable=not (console.is_terminal and is_lead())) as progress:
        task = progress.add_task(f"loading {name}", total=sum(map(len, opened.pieces.values())))

        def fill(pieces: tuple[Piece, ...], parts: list[Part]) -> None:
            for piece in pieces:
                _fill(opened, piece, parts)
                progress.advance(task)

        for field, pieces in opened.pieces.items():
            where = None if places is None else getattr(places, field)
            arrays[field] = place(
                getattr(specs, field).shape, dtype, where, lambda parts, mine=pieces: fill(mine, parts)
            )
    return Transcoders(opened.cfg, name, **arrays)


def _fill(opened: Opened, piece: Piece, parts: list[Part]) -> None:
    """Read one row of an array into the parts that it belongs to.

    Raises:
        InputError: a value that is not finite, in the file or in the dtype asked for.
    """
    for index, buffer in parts:
        if not index[0].start <= piece.row < index[0].stop:
            continue
        row = buffer[piece.row - index[0].start]
        with np.errstate(over="ignore"):
            row[...] = opened.read(piece, index[1:])
        bad = row.size - int(np.isfinite(row).sum())
        if bad:
            raise InputError(
                f"tensor {piece.tensor} of {piece.path.name} has {bad} values that are NaN or infinite in {row.dtype}"
            )

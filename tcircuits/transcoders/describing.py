"""What is known of a dictionary: of a loaded one, or of a folder without reading its matrices.

>>> from tcircuits.transcoders.dictionary import neurons
>>> facts = describe(neurons(n_layers=2, d_model=4, d_mlp=6))
>>> facts["kind"], facts["d_feature"], facts["layers"], facts["parameters"]
('neurons', 6, [0, 1], 0)
"""

import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from tcircuits.checkpoint import format_of
from tcircuits.models.builtin import BUILTIN
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import FORMAT as MODEL_FORMAT
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders, spec
from tcircuits.transcoders.formats.place import UnreachableError
from tcircuits.transcoders.formats.table import holds_dictionaries
from tcircuits.transcoders.hub import locate
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.transcoders.loading import open_source
from tcircuits.transcoders.options import Choices, chosen
from tcircuits.transcoders.presets import Preset, find_preset
from tcircuits.transcoders.stored import stored_config
from tcircuits.types import InputError


def inspect(
    source: str | os.PathLike[str], *, model: ModelConfig | None = None, **choices: Unpack[Choices]
) -> dict[str, Any]:
    """What `describe` says of a folder, file, published set or hub repository, from headers alone.

    Args:
        source: as for `load_transcoders`.
        model: the model that they must fit; None does not check.
        choices: as for `load_transcoders`.

    Raises:
        InputError: as `load_transcoders`; `neurons`, which are not a file.
    """
    name = os.fspath(source)
    if name == "neurons":
        raise InputError("'neurons' are the model's own MLPs and no file: inspect the model")
    opened = open_source(name, model, chosen(choices))
    try:
        if isinstance(opened, Path):
            cfg, dtype = stored_config(opened)
            return _facts(cfg, name, dtype, _count(cfg) * jnp.dtype(dtype).itemsize, "tcircuits")
    except InputError as error:
        raise InputError(f"transcoders {name}: {error}") from error
    return _facts(opened.cfg, name, opened.dtype, opened.n_bytes, opened.format, opened.model)


def needs(source: str | os.PathLike[str], **choices: Unpack[Choices]) -> dict[str, Any]:
    """What `inspect` says, and what it takes to use a set: which models it fits, and memory.

    Raises:
        InputError: as `inspect`.
    """
    preset = find_preset(os.fspath(source))
    try:
        facts = inspect(source, **choices)
    except UnreachableError as error:
        if preset is None:
            raise
        return _published(preset, str(error))
    n = facts["parameters"]
    first, last = facts["layers"][0], facts["layers"][-1]
    sizes = f"any model with d_model {facts['d_model']} and at least {last + 1} layers"
    if facts["kind"] == "clt":
        sizes = f"any model with d_model {facts['d_model']} and {last + 1} layers"
    one = facts["d_feature"] * facts["d_model"] * jnp.dtype(facts["dtype"]).itemsize
    return facts | {
        "layers": f"{first}..{last}" if len(facts["layers"]) == last - first + 1 else facts["layers"],
        "fits": preset.model if preset is not None else facts.get("model") or sizes,
        "memory": f"{4 * n / 1e9:.2f} GB in float32, {2 * n / 1e9:.2f} GB in bfloat16",
        "memory if left on disk": f"blocks of {one / 1e9:.2f} GB encoders, and rows of active features",
    }


def _published(preset: Preset, files: str) -> dict[str, Any]:
    """What the table of published sets says, where the files cannot be looked at."""
    names = ("kind", "n_layers", "d_feature", "activation", "k", "skip", "reads", "writes", "note")
    told = {name: getattr(preset, name) for name in names if getattr(preset, name) is not None}
    return {"source": preset.name, "fits": preset.model, **told, "first file": preset.references[0], "files": files}


def what_is(source: str, said: str = "auto") -> str:
    """`model` or `transcoders`: which of the two a source is, by its name or the names of its files.

    Raises:
        InputError: a hub that cannot be asked.
    """
    path = Path(source).expanduser()
    if said != "auto":
        return said
    if source in BUILTIN or path.suffix == ".gguf":
        return "model"
    if source == "neurons" or (not path.exists() and find_preset(source) is not None):
        return "transcoders"
    form = format_of(path) if path.is_dir() else None
    if form is not None:
        return "model" if form == MODEL_FORMAT else "transcoders"
    if not path.exists() and "/" not in source:
        return "model"  # an unknown name: the message about models lists what there is
    return "transcoders" if holds_dictionaries(locate(source)) else "model"


def describe(transcoders: Transcoders | LazyTranscoders) -> dict[str, Any]:
    """Kind, layers, sizes, activation function, sites, number of parameters and bytes; plain values, ready for JSON.

    Of a set that stays on disk, dtype and bytes are those of its files.
    """
    if isinstance(transcoders, LazyTranscoders):
        o = transcoders.opened
        return _facts(o.cfg, transcoders.source, o.dtype, o.n_bytes, o.format, o.model)
    arrays = jax.tree.leaves(transcoders)
    dtype = str(arrays[0].dtype) if arrays else None
    n_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    return _facts(transcoders.cfg, transcoders.source, dtype, n_bytes)


def _count(cfg: TranscoderConfig) -> int:
    return sum(math.prod(s.shape) for s in jax.tree.leaves(spec(cfg)))


def _facts(
    cfg: TranscoderConfig, source: str, dtype: str | None, n_bytes: int, format: str | None = None,
    model: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    told = {field.name: getattr(cfg, field.name) for field in fields(cfg)} | {"layers": list(cfg.layers)}
    about = {"format": format, "model": model}
    known = {name: value for name, value in about.items() if value is not None}
    return {"source": source, **known, **told, "dtype": dtype, "parameters": _count(cfg), "bytes": n_bytes}

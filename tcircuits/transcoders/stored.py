"""Our own format on disk: an Orbax checkpoint of the arrays that knows its configuration."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tcircuits import checkpoint
from tcircuits.files.limits import Budget, parse_json
from tcircuits.files.storage import MalformedError
from tcircuits.files.typed import built, checked
from tcircuits.models.config import ModelConfig
from tcircuits.parallel import shardings
from tcircuits.transcoders.config import Fill, TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders, spec
from tcircuits.types import InputError

FORMAT, VERSION = "tcircuits.transcoders", 1


def arrays_of(d: Any) -> dict[str, Any]:
    """The arrays that a dictionary (or its spec) has, by name."""
    named = {f.name: getattr(d, f.name) for f in fields(d) if f.name not in ("cfg", "source")}
    return {name: array for name, array in named.items() if array is not None}


def save_stored(d: Transcoders, path: Path, model_name: str | None) -> None:
    """Write a checkpoint to a new folder. Every process calls it.

    Raises:
        InputError: the folder exists.
    """
    arrays = arrays_of(d)
    about = {"config": json.dumps(asdict(d.cfg)), "dtype": str(arrays["w_enc"].dtype), "model_name": model_name}
    checkpoint.save(path, arrays, format_name=FORMAT, version=VERSION, about=about)


def stored_config(path: Path) -> tuple[TranscoderConfig, str]:
    """Configuration and dtype of a checkpoint; reads no arrays.

    Raises:
        InputError: a folder that is incomplete, damaged, of another kind or of another release.
    """
    about = checkpoint.metadata(path, format_name=FORMAT, version=VERSION)
    try:
        said = checked({name: about.get(name) for name in ("config", "dtype")}, {"config": str, "dtype": str})
        cfg = built(TranscoderConfig, parse_json(said["config"].encode("utf-8", "surrogatepass"), Budget()))
        return cfg, str(jnp.dtype(said["dtype"]))
    except (MalformedError, TypeError, ValueError) as error:
        raise InputError(f"its configuration cannot be read: {error!s:.600}") from None


def load_stored(
    path: Path, name: str, model: ModelConfig | None, fill: Fill | None, dtype: np.dtype, mesh: Mesh | None
) -> Transcoders:
    """A dictionary that `save_stored` wrote.

    Raises:
        InputError: a folder that is incomplete or damaged, another model, values that are not finite.
    """
    cfg = stored_config(path)[0]
    cfg = cfg if fill is None else replace(cfg, fill=fill)
    wrong = [] if model is None else _misfits(cfg, model)
    if wrong:
        raise InputError("; ".join(wrong))
    specs = arrays_of(spec(cfg))
    places = dict.fromkeys(specs) if mesh is None else arrays_of(shardings(spec(cfg), mesh))
    abstract = {n: jax.ShapeDtypeStruct(s.shape, dtype, sharding=places[n]) for n, s in specs.items()}
    arrays = checkpoint.load(path, abstract)
    wrong = [n for n, finite in jax.jit(_finite)(arrays).items() if not finite]
    if wrong:
        raise InputError(f"values that are NaN or infinite in {dtype}: {', '.join(wrong)}")
    return Transcoders(cfg, name, **{**dict.fromkeys(("threshold", "w_skip")), **arrays})


def _finite(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: jnp.isfinite(x).all() for name, x in arrays.items()}


def _misfits(cfg: TranscoderConfig, model: ModelConfig) -> list[str]:
    wrong = ["the model has no MLPs that a dictionary could stand for"] if model.attn_only else []
    if cfg.d_model != model.d_model:
        wrong.append(f"its width is {cfg.d_model}, the model's d_model is {model.d_model}")
    if cfg.n_layers != model.n_layers:
        wrong.append(f"it was made for {cfg.n_layers} layers, the model has {model.n_layers}")
    return wrong

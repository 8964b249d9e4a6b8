"""From a name, folder, file or hub repository to a `Model`.

Headers are checked against the configuration first, every problem is reported at once, and only then are tensors read,
one by one, each into its place, dtype and sharding. Memory holds the parameters and one array more, never a file.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from tcircuits.checkpoint import began_as_checkpoint
from tcircuits.models.assemble import assemble, plan
from tcircuits.models.builtin import BUILTIN
from tcircuits.models.config import ModelConfig
from tcircuits.models.edits import SITES
from tcircuits.models.families import config_from_hf
from tcircuits.models.gguf_file import open_gguf
from tcircuits.models.hf_folder import open_folder, open_hub
from tcircuits.models.model import Model, load_saved, saved_config, saved_tokenizer
from tcircuits.models.params import count
from tcircuits.models.source import Source
from tcircuits.models.tokenizers import NO_TOKENIZER, Tokenizer
from tcircuits.parallel import check_dtype
from tcircuits.types import InputError


def load_model(
    source: str | os.PathLike[str],
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    allow_unknown: Iterable[str] = (),
) -> Model:
    """Load a model.

    Args:
        source: a built-in name (`tiny`, `smollm2-135m`, `glassllm`, `mod113-0`, `parity`, `sorting` ...), a local
            folder (Hugging Face's, with safetensors or `pytorch_model.bin`, or one written by `save_model`), a `.gguf`
            file, or a repository of the Hugging Face hub (`openai-community/gpt2`).
        dtype: of the parameters and so of the residual stream.
        mesh: devices to shard over (`parallel.make_mesh`); None is the default device.
        allow_unknown: fields of `config.json` to ignore although the family table does not know them.

    Raises:
        InputError: an unknown name, damaged files, a configuration or tensors that do not fit (all problems at once,
            before any tensor is read), values that are not finite.
    """
    dtype = check_dtype(dtype)
    path = Path(source).expanduser()
    if str(source) not in BUILTIN and began_as_checkpoint(path):
        return load_saved(path, dtype, mesh)
    opened = _open(str(source))
    cfg, filling = _planned(opened, allow_unknown)
    params = assemble(cfg, opened, filling, dtype, mesh)
    return Model(cfg, params, opened.tokenizer(), opened.name)


def _planned(opened: Source, allow_unknown: Iterable[str] = ()) -> tuple[ModelConfig, Any]:
    """Configuration, and where each tensor goes; both are checked against the headers."""
    try:
        cfg = config_from_hf(opened.config, allow_unknown=allow_unknown)
        return cfg, plan(cfg, opened)
    except InputError as error:
        raise InputError(f"{opened.where}: {error}") from error


def _open(source: str) -> Source:
    """Find out what `source` is."""
    if source in BUILTIN:
        return BUILTIN[source]()
    path = Path(source).expanduser()
    if source and path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{source} is no model: it has no config.json, and was not written by save_model")
    if source and path.is_dir():
        return open_folder(path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    if path.is_file():
        raise InputError(f"{source} is a file; of single files only .gguf is read (else give the folder of the model)")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return open_hub(source)
    close = difflib.get_close_matches(source, BUILTIN, 1)
    raise InputError(
        f"model {source!r} is unknown{f'; did you mean {close[0]!r}?' if close else ''}; give a built-in name "
        f"({', '.join(BUILTIN)}), an existing folder, a .gguf file, or a hub repository 'owner/name'"
    )


def describe_model(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Sizes and switches of a model, from its headers: no tensor is read.

    Raises:
        InputError: as `load_model`.
    """
    path = Path(source).expanduser()
    if str(source) not in BUILTIN and began_as_checkpoint(path):
        cfg, name = saved_config(path)
    else:
        opened = _open(str(source))
        (cfg, _), name = _planned(opened), opened.name
    n = count(cfg)
    sizes = {
        f: getattr(cfg, f)
        for f in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")
    }
    memory = f"{4 * n / 1e9:.2f} GB in float32, {2 * n / 1e9:.2f} GB in bfloat16"
    return {"name": name, "family": cfg.family, "parameters": n, "memory": memory, **sizes, "sites": sites_of(cfg)}


def load_tokenizer(source: str | os.PathLike[str]) -> tuple[Tokenizer, int]:
    """A model's tokenizer, and the size of the model's vocabulary; no tensor is read.

    Raises:
        InputError: as `load_model`, and where the model has no tokenizer.
    """
    path = Path(source).expanduser()
    if str(source) not in BUILTIN and began_as_checkpoint(path):
        found, size = saved_tokenizer(path), saved_config(path)[0].d_vocab
    else:
        opened = _open(str(source))
        found, size = opened.tokenizer(), _planned(opened)[0].d_vocab
    if found is None:
        raise InputError(f"{source}: {NO_TOKENIZER}")
    return found, size


def sites_of(cfg: ModelConfig) -> str:
    """Names of the sites that `forward` returns for this model."""
    absent = {"resid_mid"} if cfg.parallel else set()
    absent |= {"resid_mid", "mlp_in", "mlp_raw", "mlp_out"} if cfg.attn_only else set()
    return ", ".join(s for s in SITES if s not in absent)

"""A loaded model, and its own format on disk: an Orbax checkpoint that knows its configuration, with its tokenizer."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tcircuits import checkpoint
from tcircuits.files.limits import Budget, parse_json
from tcircuits.files.storage import MalformedError
from tcircuits.files.typed import built, checked
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params, abstract, spec
from tcircuits.models.tokenizers import NO_TOKENIZER, Tokenizer, from_json, read_text
from tcircuits.parallel import is_lead, shardings
from tcircuits.types import InputError

FORMAT, VERSION = "tcircuits.model", 1
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Model:
    """A loaded model: configuration, parameters, tokenizer (None where the source has none), name."""

    cfg: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    name: str

    def encode(self, text: str, *, bos: str = "none") -> list[int]:
        """Token ids of a text. `bos`: `add` puts the BOS token before it, `auto` where the model was made with one.

        Raises:
            InputError: the model has no tokenizer, `add` without a BOS token, or a text that is no Unicode.
        """
        if self.tokenizer is None:
            raise InputError(NO_TOKENIZER)
        try:
            text.encode()
        except UnicodeEncodeError as problem:  # half a surrogate pair; so Python shows arguments that are not UTF-8
            raise InputError(f"the text is not Unicode at character {problem.start}: give it in UTF-8") from None
        if bos not in ("auto", "add", "none"):
            raise InputError(f"bos={bos!r}; there are auto, add, none")
        ids, first = self.tokenizer.encode(text), self.tokenizer.bos_id
        if bos == "add" and first is None:
            raise InputError(f"bos='add', but the tokenizer of {self.name!r} has no BOS token: use 'none'")
        wanted = bos == "add" or (bos == "auto" and self.tokenizer.adds_bos)
        return [first, *ids] if wanted and first is not None and ids[:1] != [first] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; without a tokenizer the ids themselves."""
        return " ".join(map(str, ids)) if self.tokenizer is None else self.tokenizer.decode(ids)

    def token(self, token_id: int) -> str:
        """One token as shown to people; without a tokenizer its id."""
        return f"#{token_id}" if self.tokenizer is None else self.tokenizer.token(token_id)


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a new folder that `load_model` reads: arrays, configuration, tokenizer. Every process calls it.

    Raises:
        InputError: the folder exists.
    """
    tokenizer = model.tokenizer
    about: dict[str, Any] = {"name": model.name, "config": json.dumps(asdict(model.cfg)), "tokenizer": None}
    if tokenizer is not None:
        about["tokenizer"] = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "adds_bos": tokenizer.adds_bos}
    checkpoint.save(Path(path), model.params, format_name=FORMAT, version=VERSION, about=about)
    if tokenizer is not None and is_lead():
        draft = Path(path) / f".{TOKENIZER}"
        draft.write_text(tokenizer.to_json(), encoding="utf-8")
        draft.rename(Path(path) / TOKENIZER)


def _saved_config(path: Path, about: Mapping[str, Any]) -> ModelConfig:
    try:
        text = checked({"config": about.get("config")}, {"config": str})["config"]
        raw = parse_json(text.encode("utf-8", "surrogatepass"), Budget())
        unknown = sorted(raw.keys() - {f.name for f in fields(ModelConfig)}) if isinstance(raw, dict) else []
        if unknown:
            names = ", ".join(f"{name:.40}" for name in unknown[:20])
            raise MalformedError(f"unknown settings {names}: written by a newer release?")
        return built(ModelConfig, raw)
    except MalformedError as error:
        raise InputError(f"{path}: its configuration cannot be read: {error!s:.600}") from None


def _saved_tokenizer(path: Path, special: Any) -> Tokenizer:
    kinds = {"bos_id": int | None, "eos_id": int | None, "adds_bos": bool}
    try:
        return from_json(read_text(path), **checked(special, kinds))
    except (MalformedError, InputError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def saved_config(path: Path) -> tuple[ModelConfig, str]:
    """Configuration and name of a model that `save_model` wrote, without its arrays.

    Raises:
        InputError: as `load_saved`.
    """
    about = checkpoint.metadata(path, format_name=FORMAT, version=VERSION)
    return _saved_config(path, about), f"{about.get('name', path.name)!s:.400}"


def saved_tokenizer(path: Path) -> Tokenizer | None:
    """Tokenizer of a model that `save_model` wrote, None where it has none.

    Raises:
        InputError: as `load_saved`.
    """
    special = checkpoint.metadata(path, format_name=FORMAT, version=VERSION).get("tokenizer")
    return None if special is None else _saved_tokenizer(path / TOKENIZER, special)


def load_saved(path: Path, dtype: Any, mesh: Mesh | None) -> Model:
    """A model that `save_model` wrote.

    Raises:
        InputError: a folder that is incomplete, damaged or of another release, values that are not finite.
    """
    about = checkpoint.metadata(path, format_name=FORMAT, version=VERSION)
    cfg = _saved_config(path, about)
    tokenizer = saved_tokenizer(path)  # before the arrays are read
    shapes = abstract(cfg, dtype)
    if mesh is not None:
        places = shardings(spec(cfg), mesh)
        shapes = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    params = checkpoint.load(path, shapes)
    wrong = [
        jax.tree_util.keystr(k, simple=True, separator=".")
        for k, x in jax.tree.leaves_with_path(_finite(params))
        if not x
    ]
    if wrong:
        raise InputError(f"{path}: values that are NaN or infinite in {dtype.name}: {', '.join(wrong)}")
    return Model(cfg, params, tokenizer, str(about.get("name", path.name)))


@jax.jit
def _finite(params: Params) -> Params:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), params)

"""Sizes of models and dictionaries by name, from headers or from tables; no tensor is read."""

import os
import re
from pathlib import Path

from tcircuits.checkpoint import began_as_checkpoint
from tcircuits.files.limits import read_json
from tcircuits.models.builtin import BUILTIN
from tcircuits.models.config import ModelConfig
from tcircuits.models.families import config_from_hf
from tcircuits.models.gguf_file import open_gguf
from tcircuits.models.known import KNOWN, known_config
from tcircuits.models.model import saved_config
from tcircuits.models.source import need
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import neurons
from tcircuits.transcoders.loading import open_source
from tcircuits.transcoders.options import chosen
from tcircuits.transcoders.presets import Preset, find_preset
from tcircuits.transcoders.stored import stored_config
from tcircuits.types import InputError


def model_of(source: str | os.PathLike[str]) -> ModelConfig:
    """The configuration of a model.

    Raises:
        InputError: an unknown name, or a configuration that cannot be read.
    """
    name, path = os.fspath(source), Path(source).expanduser()
    if name in BUILTIN:
        return config_from_hf(BUILTIN[name]().config)
    if began_as_checkpoint(path):
        return saved_config(path)[0]
    if path.is_dir():
        return config_from_hf(read_json(path / "config.json"))
    if path.suffix == ".gguf":
        return config_from_hf(open_gguf(path).config)
    known = known_config(name)
    if known is not None:
        return known
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return config_from_hf(read_json(_downloaded(name)))
    raise InputError(
        f"model {name!r} is unknown; give one of {', '.join((*BUILTIN, *KNOWN))}, a folder with config.json, "
        "a .gguf file, or a hub id 'owner/name'"
    )


def _downloaded(repository: str) -> Path:
    """The `config.json` of a hub repository, alone."""
    hub, errors = need("huggingface_hub", "huggingface_hub"), need("huggingface_hub.errors", "huggingface_hub")
    try:
        return Path(hub.hf_hub_download(repository, "config.json"))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"the config.json of {repository} could not be had from the hub ({type(error).__name__}); "
            f"give a folder with it, or one of {', '.join(KNOWN)}"
        ) from error


def dictionary_of(source: str, model: ModelConfig, k: int | None) -> TranscoderConfig:
    """The configuration of a dictionary for a model: `neurons`, KIND:WIDTH, a published set, or files.

    Raises:
        InputError: an unknown kind, a set without a known width, files that cannot be read or do not fit.
    """
    if source == "neurons":
        return neurons(model.n_layers, model.d_model, max(model.d_mlp, 1)).cfg
    shaped = re.fullmatch(r"([a-z]+):(\d+)", source)
    if shaped:
        return _shaped(shaped[1], int(shaped[2]), model, k)
    preset = find_preset(source)
    here = preset is not None and Path(preset.references[0]).exists()  # part of this package
    if preset is not None and preset.d_feature is not None and not here:
        return _published(preset, model)
    if preset is not None and not here and not Path(source).exists():
        raise InputError(f"the width of {source!r} stands in its files alone: give it, transcoder:WIDTH, or the folder")
    opened = open_source(source, model, chosen({}))
    return stored_config(opened)[0] if isinstance(opened, Path) else opened.cfg


def _shaped(kind: str, width: int, model: ModelConfig, k: int | None) -> TranscoderConfig:
    kinds = {"transcoder": "transcoder", "skip": "transcoder", "clt": "clt"}
    if kind not in kinds or width < 1:
        raise InputError(f"transcoders {kind}:{width}: write transcoder:WIDTH, skip:WIDTH or clt:WIDTH, or neurons")
    try:
        return TranscoderConfig(
            "clt" if kind == "clt" else "transcoder",
            model.n_layers,
            model.d_model,
            width,
            tuple(range(model.n_layers)),
            activation="relu" if k is None else "topk",
            k=k,
            skip=kind == "skip",
        )
    except ValueError as problem:
        raise InputError(str(problem)) from None


def _published(preset: Preset, model: ModelConfig) -> TranscoderConfig:
    assert preset.d_feature is not None
    if preset.n_layers != model.n_layers:
        raise InputError(
            f"{preset.name} is for {preset.n_layers} layers ({preset.model}), the model has {model.n_layers}"
        )
    return TranscoderConfig(
        preset.kind,
        preset.n_layers,
        model.d_model,
        preset.d_feature,
        tuple(range(preset.n_layers)),
        activation=preset.activation or "jumprelu",  # where files decide, the one with thresholds
        k=preset.k,
        signed_topk=preset.signed_topk,
        reads=preset.reads,
        writes=preset.writes,
        skip=preset.skip,
    )

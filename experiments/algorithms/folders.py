"""Trained models as folders that `load_model` reads: configuration, weights in float16, one token a word.

Some come with the package, which has to stay small; the others lie in `experiments/models`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from experiments.common import ROOT
from experiments.lm.families import write_folder
from tcircuits.models.builtin import ASSETS
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.models.tokenizers import from_words
from tcircuits.transcoders.presets import usual_set

PACKAGED = ("mod113-0", "mod113-1", "parity", "sorting")
MODELS = ROOT / "experiments" / "models"
SEEDS = tuple(f"mod113-{i}" for i in range(5))
DEEPER = "mod113-two-layers"
NEVER = -1e4  # the logit of "=", which is never an answer; those of numbers have a common part of some hundreds


def home(name: str) -> Path:
    """The folder of a trained model."""
    return (ASSETS / "algorithms" if name in PACKAGED else MODELS) / name


def reference(name: str) -> str:
    """What `load_model` takes for a model here or a built-in one."""
    return str(MODELS / name) if (MODELS / name).is_dir() else name


def own_set(name: str) -> str:
    """What `load_transcoders` takes for the transcoders that come with it."""
    return str(MODELS / name / "transcoders") if (MODELS / name).is_dir() else usual_set(name)


def vocabulary(cfg: ModelConfig) -> list[str]:
    """Numbers from 0, and "="."""
    return [*map(str, range(cfg.d_vocab - 1)), "="]


def raw_config(cfg: ModelConfig) -> dict[str, Any]:
    """Fields of `config.json`."""
    return {
        "model_type": "plain",
        "vocab_size": cfg.d_vocab,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.d_mlp,
        "max_position_embeddings": cfg.n_ctx,
        "hidden_act": "relu",
        "torch_dtype": "float16",
    }


def write(folder: Path, cfg: ModelConfig, params: Params) -> None:
    """A model's folder; "=" gets a logit that no answer has."""
    assert params.unembed is not None
    bias = jnp.zeros(cfg.d_vocab).at[-1].set(NEVER)
    quiet = params.unembed.at[:, -1].set(0.0)
    write_folder(folder, raw_config(cfg), replace(params, unembed=quiet, b_unembed=bias))
    (folder / "tokenizer.json").write_text(from_words(vocabulary(cfg)).to_json() + "\n", encoding="utf-8")

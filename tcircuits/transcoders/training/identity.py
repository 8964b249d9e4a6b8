"""What a run may be resumed with: the same recipe, model and corpus, compared by what decides their numbers."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from tcircuits._version import __version__
from tcircuits.models.model import Model
from tcircuits.parallel import host
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.types import InputError


def check_model(model: Model, recipe: Recipe) -> None:
    """Raise for a dictionary that this model has no place for.

    Raises:
        InputError: every misfit, in one message.
    """
    c, cfg = recipe.dictionary, model.cfg
    wrong = []
    if cfg.attn_only:
        wrong.append("the model has no MLPs")
    if (c.n_layers, c.d_model) != (cfg.n_layers, cfg.d_model):
        wrong.append(
            f"the recipe is for {c.n_layers} layers of width {c.d_model}, the model has {cfg.n_layers} of {cfg.d_model}"
        )
    if wrong:
        raise InputError(f"the recipe does not fit the model {model.name!r}: " + "; ".join(wrong))


def fingerprint(model: Model) -> str:
    """A hash of a few rows of every array: tells models apart, and is the same on every mesh."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model.params):
        part = leaf[:1, :2] if leaf.ndim > 1 else leaf[:16]
        digest.update(np.ascontiguousarray(host(part)).tobytes())
    return digest.hexdigest()[:16]


def identity(model: Model, recipe: Recipe, fill: Fill, data: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a run's numbers, as JSON values."""
    about = {"name": model.name, "fingerprint": fingerprint(model), "dtype": str(model.params.embed.dtype)}
    return {"recipe": asdict(recipe), "fill": asdict(fill), "model": about, "data": dict(data), "release": __version__}

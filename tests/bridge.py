"""From the oracle's plain NumPy cases to the package's pytrees: configurations field by field, arrays in one dtype."""

from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.specify import Difference, Direction, Feature, Logit
from tcircuits.models.config import ModelConfig, RopeScaling
from tcircuits.models.forward import forward
from tcircuits.models.model import Model
from tcircuits.models.params import Attention, Block, Mlp, Norm, Params
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders

from .reference import attribution as at
from .reference.builders import Case
from .reference.dictionary import Dictionary

ARRAYS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold", "w_skip")


def model_config(cfg: Any) -> ModelConfig:
    """Every field of the oracle's namespace, and none besides."""
    values = dict(vars(cfg))
    if values["rope_scaling"] is not None:
        values["rope_scaling"] = RopeScaling(**vars(values["rope_scaling"]))
    return ModelConfig(**values)


def array(x: Any, dtype: str) -> Any:
    return None if x is None else jnp.asarray(np.asarray(x), dtype)


def part(kind: type, values: dict | None, dtype: str) -> Any:
    """A dataclass of arrays from a dict that has exactly its fields."""
    if values is None:
        return None
    assert set(values) == {f.name for f in fields(kind)}
    return kind(**{name: array(x, dtype) for name, x in values.items()})


def params(p: dict, dtype: str) -> Params:
    """The parameter tree."""
    norms = {name: part(Norm, p["blocks"][name], dtype) for name in ("norm1", "norm1_post", "norm2", "norm2_post")}
    blocks = Block(**norms, attn=part(Attention, p["blocks"]["attn"], dtype), mlp=part(Mlp, p["blocks"]["mlp"], dtype))
    plain = {name: array(p[name], dtype) for name in ("embed", "pos_embed", "unembed", "b_unembed")}
    return Params(**plain, blocks=blocks, final_norm=part(Norm, p["final_norm"], dtype))


def model(case: Case, dtype: str = "float64") -> Model:
    """The case's model, without a tokenizer."""
    return Model(model_config(case.cfg), params(case.params, dtype), None, case.name)


@partial(jax.jit, static_argnames=("cfg",))
def logits(cfg: ModelConfig, params: Params, tokens: Any, edits: tuple = ()) -> jax.Array:
    """[B,T,V] of the package's forward pass, as one program: outside `jit` it is some forty."""
    return forward(cfg, params, tokens, edits=edits).logits


def transcoders(d: Dictionary, dtype: str = "float64") -> Transcoders:
    """The case's dictionary."""
    arrays = {name: array(d.arrays.get(name), dtype) for name in ARRAYS}
    return Transcoders(TranscoderConfig(**vars(d.cfg)), "case", **arrays)


def both(case: Case, dtype: str = "float64") -> tuple[Model, Transcoders]:
    """The case's model and dictionary."""
    assert case.d is not None
    return model(case, dtype), transcoders(case.d, dtype)


def specs(targets: list[at.Target]) -> list[Logit | Direction | Feature]:
    """The oracle's targets as the package names them."""
    kinds = {
        "logit": lambda t: Logit(t.token, t.position),
        "direction": lambda t: Direction(t.vector, position=t.position),
        "feature": lambda t: Feature(t.layer, t.position, t.feature),
    }
    return [kinds[t.kind](t) for t in targets]


def difference(case: Case, plus: int, minus: int, position: int) -> tuple[Difference, at.Target]:
    """A difference of logits, and for the oracle the same as a direction (models without unembedding bias)."""
    u = case.params["embed"].T if case.params["unembed"] is None else case.params["unembed"]
    assert case.params["b_unembed"] is None
    return Difference(plus, minus, position), at.Target("direction", position, vector=u[:, plus] - u[:, minus])

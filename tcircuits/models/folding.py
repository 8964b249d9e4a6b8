"""The same model with its norms folded away and its writing centred: the convention of TransformerLens.

Dictionaries that were trained there read and write a model of this kind. With g, b the gain and bias of a norm and n(x)
the norm without them, (g * n(x) + b) W = n(x) (g W) + b W: gains and biases move into the matrices that read, and a
layer norm's n(x) has no mean, so the mean of those matrices over the width does not matter. What a layer norm reads
loses its mean anyway, so everything that is written to the stream can be without. A softmax does not see what all
logits have in common. Attention patterns sum to one, so a bias of values is a constant that is written.

Log-probabilities stay what they were, and so does the site `normalized` of an `MlpHook` (`ln2.hook_normalized` there),
on which the transcoders of the transcoder paper were trained; `mlp_in` becomes equal to it.

>>> import jax, jax.numpy as jnp
>>> from tcircuits.models.params import init
>>> cfg = ModelConfig("toy", 1, 8, 2, 2, 4, 16, 10, 32, norm="layer", position="none", mlp_bias=True, tied=True)
>>> folded, params = fold_params(cfg, init(cfg, jax.random.key(0)))
>>> folded.tied, bool(jnp.allclose(params.embed.mean(-1), 0, atol=1e-6))
(False, True)
"""

import math
from dataclasses import replace

import jax.numpy as jnp

from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import unembed_matrix
from tcircuits.models.model import Model
from tcircuits.models.params import Attention, Block, Mlp, Norm, Params
from tcircuits.numerics import wide
from tcircuits.types import Array, InputError


def fold(
    model: Model,
    *,
    norms: bool = True,
    centre_writing: bool | None = None,
    centre_unembed: bool | None = None,
    value_biases: bool = True,
) -> Model:
    """A model with the same log-probabilities in TransformerLens' folded convention; see `fold_params`.

    Raises:
        InputError: what was asked for would change the model.
    """
    cfg, params = fold_params(
        model.cfg,
        model.params,
        norms=norms,
        centre_writing=centre_writing,
        centre_unembed=centre_unembed,
        value_biases=value_biases,
    )
    return replace(model, cfg=cfg, params=params)


def fold_params(
    cfg: ModelConfig,
    params: Params,
    *,
    norms: bool = True,
    centre_writing: bool | None = None,
    centre_unembed: bool | None = None,
    value_biases: bool = True,
) -> tuple[ModelConfig, Params]:
    """Configuration and parameters of the folded model, equal up to rounding in the dtype of the parameters.

    Norms of queries and keys, and those on what attention and MLP write, stay as they are. A tied model is untied where
    one of the two matrices changes.

    Args:
        cfg: sizes and switches.
        params: weights.
        norms: move gains and biases of norms into the matrices that read; matrices that read layer norms lose their
            mean over the width.
        centre_writing: take the mean over the width from everything that is written to the stream: embeddings and what
            attention and MLP write. None: where that changes nothing, which is where only layer norms read the stream.
        centre_unembed: take the mean over the vocabulary from the unembedding. None: unless logits are capped.
        value_biases: move biases of values into the bias of what attention writes.

    Raises:
        InputError: what was asked for would change the model.
    """
    writing = _wanted(centre_writing, "centre_writing", _why_not_writing(cfg))
    unembed = _wanted(centre_unembed, "centre_unembed", "logits are capped" if cfg.final_softcap is not None else None)
    if norms:
        params = _without_norms(cfg, params)
    if writing:
        params = _centred(params)
    if unembed:
        b = params.b_unembed
        w = _less_mean(unembed_matrix(params), -1)
        params = replace(params, unembed=w, b_unembed=None if b is None else _less_mean(b, -1))
    if value_biases:
        params = replace(params, blocks=replace(params.blocks, attn=_without_value_biases(params.blocks.attn)))
    return _switches(cfg, params), params


def _why_not_writing(cfg: ModelConfig) -> str | None:
    """Why the mean of the stream matters; None where it does not."""
    if cfg.norm != "layer":
        return f"this model's norms ({cfg.norm}) do not subtract the mean"
    if not cfg.final_norm or not cfg.pre_norm:
        return "something reads the stream without a norm"
    return "norms on what is written cannot be centred" if cfg.post_norm else None


def _wanted(asked: bool | None, name: str, why_not: str | None) -> bool:
    if asked and why_not is not None:
        raise InputError(f"{name}=True would change the model: {why_not}; give False, or leave it out")
    return why_not is None if asked is None else asked


def _less_mean(x: Array, axis: int) -> Array:
    return (wide(x) - wide(x).mean(axis, keepdims=True)).astype(x.dtype)


def _into(cfg: ModelConfig, norm: Norm | None, w: Array, b: Array | None) -> tuple[Array, Array | None]:
    """A matrix [*L, D, *X] that reads a norm, and its bias [*L, *X], so that they read it without gain and bias."""
    if norm is None:
        return w, b
    axis = norm.w.ndim - 1
    flat = wide(w).reshape(*w.shape[: axis + 1], math.prod(w.shape[axis + 1 :]))
    if norm.b is not None:
        more = jnp.einsum("...D,...DX->...X", wide(norm.b), flat, precision="highest")
        more = more.reshape(*w.shape[:axis], *w.shape[axis + 1 :])
        b = (more if b is None else wide(b) + more).astype(w.dtype)
    folded = (wide(norm.w)[..., None] * flat).reshape(w.shape)
    folded = folded - folded.mean(axis, keepdims=True) if cfg.norm == "layer" else folded
    return folded.astype(w.dtype), b


def _bare(norm: Norm | None) -> Norm | None:
    """Gain one, bias zero."""
    return None if norm is None else Norm(jnp.ones_like(norm.w), None if norm.b is None else jnp.zeros_like(norm.b))


def _attention(cfg: ModelConfig, norm: Norm | None, p: Attention) -> Attention:
    (w_q, b_q), (w_k, b_k), (w_v, b_v) = (
        _into(cfg, norm, w, b) for w, b in ((p.w_q, p.b_q), (p.w_k, p.b_k), (p.w_v, p.b_v))
    )
    return replace(p, w_q=w_q, w_k=w_k, w_v=w_v, b_q=b_q, b_k=b_k, b_v=b_v)


def _mlp(cfg: ModelConfig, norm: Norm | None, p: Mlp) -> Mlp:
    w_in, b_in = _into(cfg, norm, p.w_in, p.b_in)
    w_gate, b_gate = (None, None) if p.w_gate is None else _into(cfg, norm, p.w_gate, p.b_gate)
    b_out = jnp.zeros_like(p.w_out[..., 0, :]) if b_in is not None and p.b_out is None else p.b_out
    return replace(p, w_in=w_in, w_gate=w_gate, b_in=b_in, b_gate=b_gate, b_out=b_out)


def _without_norms(cfg: ModelConfig, params: Params) -> Params:
    """Gains and biases of norms in what reads them."""
    p, final = params.blocks, params.final_norm
    block = Block(
        norm1=_bare(p.norm1),
        attn=_attention(cfg, p.norm1, p.attn),
        norm1_post=p.norm1_post,
        norm2=_bare(p.norm2),
        mlp=None if p.mlp is None else _mlp(cfg, p.norm2, p.mlp),
        norm2_post=p.norm2_post,
    )
    if final is None:
        return replace(params, blocks=block)
    unembed, b_unembed = _into(cfg, final, unembed_matrix(params), params.b_unembed)
    return replace(params, blocks=block, final_norm=_bare(final), unembed=unembed, b_unembed=b_unembed)


def _centred(params: Params) -> Params:
    """Without a mean over the width in anything that is written."""

    def less(x: Array | None) -> Array | None:
        return None if x is None else _less_mean(x, -1)

    p, mlp = params.blocks, params.blocks.mlp
    attn = replace(p.attn, w_o=_less_mean(p.attn.w_o, -1), b_o=less(p.attn.b_o))
    mlp = None if mlp is None else replace(mlp, w_out=_less_mean(mlp.w_out, -1), b_out=less(mlp.b_out))
    return replace(
        params,
        embed=_less_mean(params.embed, -1),
        pos_embed=less(params.pos_embed),
        blocks=replace(p, attn=attn, mlp=mlp),
        unembed=unembed_matrix(params),
    )


def _without_value_biases(p: Attention) -> Attention:
    if p.b_v is None:
        return p
    each = jnp.repeat(wide(p.b_v), p.w_o.shape[-3] // p.b_v.shape[-2], -2)  # of the head that reads it
    more = jnp.einsum("...HK,...HKD->...D", each, wide(p.w_o), precision="highest")
    b_o = (more if p.b_o is None else wide(p.b_o) + more).astype(p.w_o.dtype)
    return replace(p, b_v=jnp.zeros_like(p.b_v), b_o=b_o)


def _switches(cfg: ModelConfig, params: Params) -> ModelConfig:
    """The configuration of parameters whose biases and tie may be new."""
    attn, mlp = params.blocks.attn, params.blocks.mlp
    return replace(
        cfg,
        tied=params.unembed is None,
        qkv_bias=attn.b_q is not None,
        o_bias=attn.b_o is not None,
        mlp_bias=mlp is not None and mlp.b_in is not None,
        unembed_bias=params.b_unembed is not None,
    )

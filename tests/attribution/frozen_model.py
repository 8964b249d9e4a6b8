"""The replacement model of a prompt as one differentiable function, for autodiff: an oracle that shares no map with us.

The package's own forward pass (which the NumPy oracle checks) runs with held denominators, gates and patterns. At every
MLP it writes decoder rows times activations that are arguments, the error as a constant, the skip of what it reads.
`patterns` may be changed: zeros leave no path through heads, one head's pattern leaves that head alone.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen, coverage, skip_up
from tcircuits.models.forward import MlpHook, forward_one
from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import pair


def features_of(cfg, params, d, frozen: Frozen):
    """Activations [L, T, F] as a dense array."""
    L, T, _ = frozen.index.shape
    dense = jnp.zeros((L, T, d.cfg.d_feature), frozen.value.dtype)
    layer, pos = jnp.arange(L)[:, None, None], jnp.arange(T)[None, :, None]
    return dense.at[layer, pos, frozen.index].add(frozen.value)


def run(cfg, params, d, frozen: Frozen, pattern, activations, embeddings):
    """What each layer's features read before the activation function [L, T, F], the stream [L, T, D], logits [T, V].

    `embeddings` [T, D] are added to the tokens' own.
    """
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))

    def written(layer, state, reads, _):
        read = reads[d.cfg.reads]
        out = frozen.error[layer] + skip_up(d, slots[layer], covered[layer], read)
        for i in range(cfg.n_layers):
            if d.cfg.kind == "neurons":
                rows = jnp.where(layer == i, params.blocks.mlp.w_out[i], 0.0)
            elif d.cfg.kind == "clt":
                rows = jnp.where(layer >= i, d.w_dec[pair(d.cfg, i, jnp.maximum(layer, i))], 0.0)
            else:
                rows = jnp.where((layer == i) & covered[i], wide(d.w_dec[slots[i]]), 0.0)
            out = out + activations[i] @ rows
        if d.cfg.kind == "neurons":
            out = out + (0.0 if params.blocks.mlp.b_out is None else params.blocks.mlp.b_out[layer])
            pre = read @ params.blocks.mlp.w_in[layer]
        else:
            out = out + jnp.where(covered[layer], d.b_dec[slots[layer]], 0.0)
            pre = read @ d.w_enc[slots[layer]].T
        return out, state, pre

    hold = replace(frozen.hold, pattern=pattern)
    more = params.embed[frozen.tokens] * cfg.embed_scale + embeddings
    # token ids 0..T-1 of a vocabulary that is this prompt's embeddings
    own = replace(params, embed=more / cfg.embed_scale, unembed=wide(unembedding(params)))
    place = jnp.arange(len(frozen.tokens))
    site = "resid_pre" if cfg.parallel else "resid_mid"
    hook = MlpHook(d.cfg.writes, (), written)
    out, _, pre = forward_one(cfg, own, place, sites=(site, "resid_post", "final_norm"), hold=hold, hook=hook)
    return pre, out.acts[site], out.acts["resid_post"][-1], out.acts["final_norm"]


def unembedding(params):
    return params.embed.T if params.unembed is None else params.unembed


def gradients(cfg, params, d, frozen, pattern, read):
    """d read / d (activations, embeddings) at the prompt; `read` takes what `run` gives."""
    zero = jnp.zeros_like(frozen.final)
    args = features_of(cfg, params, d, frozen), zero
    return jax.grad(lambda a, e: read(run(cfg, params, d, frozen, pattern, a, e)), argnums=(0, 1))(*args)


def only(frozen: Frozen, heads) -> jax.Array:
    """The patterns with all heads but these (layer, head) switched off."""
    keep = jnp.zeros(frozen.hold.pattern.shape[:2], frozen.final.dtype)
    for layer, head in heads:
        keep = keep.at[layer, head].set(1.0)
    return frozen.hold.pattern * keep[..., None, None]


jitted = partial(jax.jit, static_argnames=("cfg",))

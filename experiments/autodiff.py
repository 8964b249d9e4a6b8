"""The replacement model of a prompt as one differentiable function, for autodiff: it shares no transposed map with us.

The package's own forward pass (which the tests' NumPy oracle checks) runs with held denominators, gates and patterns.
At every MLP it writes decoder rows times activations that are arguments, the error as a constant, and the skip of what
it reads. `pattern` may be changed: zeros leave no path through heads, one head's pattern leaves that head alone.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen, coverage, skip_up
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import MlpHook, forward_one, unembed_matrix
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import Transcoders, pair


def features_of(d: Transcoders, frozen: Frozen) -> jax.Array:
    """Activations [L, T, F] as a dense array."""
    L, T, _ = frozen.index.shape
    dense = jnp.zeros((L, T, d.cfg.d_feature), frozen.value.dtype)
    layer, pos = jnp.arange(L)[:, None, None], jnp.arange(T)[None, :, None]
    return dense.at[layer, pos, frozen.index].add(frozen.value)


def run(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, pattern: Any, activations: Any, embeddings: Any
) -> tuple[jax.Array, ...]:
    """Pre-activations without their biases [L, T, F]; the streams [L, T, D] that MLPs read; the last; the final norm's.

    `embeddings` [T, D] are added to the tokens' own. Neurons' pre-activations are without slope or gate.
    """
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    neurons, arrays = _whole(params.blocks.mlp), _whole(d)

    def written(layer: Any, state: Any, reads: Any, _: Any) -> Any:
        read = reads[d.cfg.reads]
        out = frozen.error[layer] + skip_up(d, slots[layer], covered[layer], read)
        for i in range(cfg.n_layers):
            if d.cfg.kind == "neurons":
                rows = jnp.where(layer == i, neurons.w_out[i], 0.0)
            elif d.cfg.kind == "clt":
                rows = jnp.where(layer >= i, arrays.w_dec[pair(d.cfg, i, jnp.maximum(layer, i))], 0.0)
            else:
                rows = jnp.where((layer == i) & covered[i], wide(arrays.w_dec[slots[i]]), 0.0)
            out = out + activations[i] @ rows
        if d.cfg.kind == "neurons":
            out = out + (0.0 if neurons.b_out is None else neurons.b_out[layer])
            pre = read @ neurons.w_in[layer]
        else:
            out = out + jnp.where(covered[layer], arrays.b_dec[slots[layer]], 0.0)
            pre = read @ arrays.w_enc[slots[layer]].T
        return out, state, pre

    hold = replace(frozen.hold, pattern=pattern)
    more = params.embed[frozen.tokens] * cfg.embed_scale + embeddings
    # The vocabulary is this prompt's embeddings, and its tokens are 0 to T - 1.
    own = replace(params, embed=more / cfg.embed_scale, unembed=wide(unembed_matrix(params)))
    place = jnp.arange(len(frozen.tokens))
    site = "resid_pre" if cfg.parallel else "resid_mid"
    hook = MlpHook(d.cfg.writes, (), written)
    out, _, pre = forward_one(cfg, own, place, sites=(site, "resid_post", "final_norm"), hold=hold, hook=hook)
    return pre, out.acts[site], out.acts["resid_post"][-1], out.acts["final_norm"]


def _whole(tree: Any) -> Any:
    """Its arrays are there where its kind has them."""
    return tree


def gradients(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, pattern: Any, read: Any
) -> tuple[jax.Array, jax.Array]:
    """D read / d (activations, embeddings) at the prompt; `read` takes what `run` gives."""
    zero = jnp.zeros_like(frozen.final)
    args = features_of(d, frozen), zero
    return jax.grad(lambda a, e: read(run(cfg, params, d, frozen, pattern, a, e)), argnums=(0, 1))(*args)


def only(frozen: Frozen, heads: Any) -> jax.Array:
    """The patterns with all heads but these (layer, head) switched off."""
    pattern = pattern_of(frozen)
    keep = jnp.zeros(pattern.shape[:2], frozen.final.dtype)
    for layer, head in heads:
        keep = keep.at[layer, head].set(1.0)
    return pattern * keep[..., None, None]


def pattern_of(frozen: Frozen) -> jax.Array:
    """The patterns of a prompt [L, H, T, T]."""
    assert frozen.hold.pattern is not None
    return frozen.hold.pattern

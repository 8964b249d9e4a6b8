"""What a feature writes into the vocabulary: its direct effect on every logit, by the logit lens.

effect(v) = a <centre(post-norm(W_dec)) * g, W_U[:, v] - mean W_U>, with g the gain of the final norm: what the node
would add to each demeaned logit if nothing stood between, times the denominators of the norms it passes (positive, and
the same for all tokens, so the order is that of the logits). Cross-layer features: all their outputs.

Source: Dunefsky et al. 2024, section 2.9 of their method (direct logit attribution), with the norm made exact.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.frozen import coverage
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.narrowing import rows_of
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import unembed_matrix
from tcircuits.models.params import Params
from tcircuits.numerics import centre, wide
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.types import Array, Float, Int

CHUNK = 256


@partial(jax.jit, static_argnames=("cfg", "k"))
def top_effects(
    cfg: ModelConfig, params: Params, written: Float[Array, "N D"], k: int
) -> tuple[Float[Array, "N 2 K"], Int[Array, "N 2 K"]]:
    """The `k` most promoted and most suppressed tokens of what nodes write, before the final norm's denominator."""
    if params.final_norm is not None:
        written = centre(cfg.norm, written) * wide(params.final_norm.w)
    with jax.default_matmul_precision("highest"):
        effect = jnp.einsum("ND,DV->NV", written, wide(unembed_matrix(params)))
    effect = effect - effect.mean(-1, keepdims=True)
    high, low = jax.lax.top_k(effect, k), jax.lax.top_k(-effect, k)
    return jnp.stack([high[0], -low[0]], 1), jnp.stack([high[1], low[1]], 1)


@partial(jax.jit, static_argnames=("cfg",))
def written_by(
    cfg: ModelConfig, params: Params, d: Transcoders, features: Int[Array, "N 3"], activations: Float[Array, " N"]
) -> Float[Array, "N D"]:
    """What features at their activations write to the stream, before a post-norm's denominator."""
    layer, number = features[:, 0], features[:, 2]
    post, mlp = params.blocks.norm2_post, params.blocks.mlp

    def raw(rows: Array, m: Any) -> Array:
        """Rows written before the post-norm of layers `m`."""
        return wide(rows) if post is None else centre(cfg.norm, wide(rows)) * wide(post.w[m])

    def ours(rows: Array, m: Any) -> Array:
        return raw(rows, m) if d.cfg.writes == "mlp_raw" else wide(rows)

    if d.cfg.kind == "neurons":
        assert mlp is not None
        return raw(mlp.w_out[layer, number], layer) * activations[:, None]
    assert d.w_dec is not None
    if d.cfg.kind == "clt":
        rows = jnp.zeros((len(features), cfg.d_model))
        for m in range(cfg.n_layers):
            out = ours(d.w_dec[pair(d.cfg, jnp.minimum(layer, m), m), number], m)
            rows = rows + jnp.where((layer <= m)[:, None], out, 0.0)
    else:
        slots, covered = (jnp.asarray(x)[layer] for x in coverage(d.cfg))
        rows = ours(d.w_dec[slots, jnp.minimum(number, d.cfg.d_feature - 1)], layer)
        if d.cfg.fill == "neurons":
            assert mlp is not None
            neuron = raw(mlp.w_out[layer, jnp.minimum(number, cfg.d_mlp - 1)], layer)
            rows = jnp.where(covered[:, None], rows, neuron)
    return rows * activations[:, None]


def promoted(
    model: Any, transcoders: Transcoders | LazyTranscoders, graph: Graph, *, k: int = 6
) -> dict[int, tuple[list[Any], list[Any]]]:
    """For every kept feature node: ([[token, effect], ...] promoted, the same suppressed), by node number."""
    kept = (
        np.arange(graph.n_features) if graph.node_mask is None else np.flatnonzero(graph.node_mask[: graph.n_features])
    )
    d, features = rows_of(transcoders, graph.features[kept])
    out: dict[int, tuple[list[Any], list[Any]]] = {}
    names: dict[int, str] = {}
    k = min(k, model.cfg.d_vocab)
    for first in range(0, len(kept), CHUNK):
        some = kept[first : first + CHUNK]
        rows = (features[first : first + CHUNK], graph.activations[some])
        rows = (np.pad(x, [(0, CHUNK - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in rows)  # one program for any number
        written = host(written_by(model.cfg, model.params, d, *rows))
        values, tokens = (host(x) for x in top_effects(model.cfg, model.params, written, k))
        for token in np.unique(tokens[: len(some)]):
            names.setdefault(int(token), model.token(int(token)))
        for i, node in enumerate(some):
            sides = [
                [[names[int(t)], round(float(v), 5)] for t, v in zip(tokens[i, s], values[i, s], strict=True)]
                for s in (0, 1)
            ]
            out[int(node)] = (sides[0], sides[1])
    return out

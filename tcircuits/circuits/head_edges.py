"""Direct effects of heads on features and on the output of one prompt: heads as nodes beside the attribution graph's.

An attribution graph has no heads: what they move is in its edges. What head h of layer m adds to <u, stream at a
target> is exact under the same freezing (`attribution.heads.head_sources`): through the residual stream and affine
skips, other MLPs' features apart. What heads read has no edge here: it is split over queries, keys and values, and two
of these are not linear.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.frozen import freeze
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.heads import head_sources, head_values
from tcircuits.attribution.targets import feature_vectors, output_targets
from tcircuits.models.model import Model
from tcircuits.numerics import bucket
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float


def head_edges(
    model: Model, d: Transcoders, graph: Graph, direction: Float[np.ndarray, " D"], slots: int
) -> Float[np.ndarray, "N L H"]:
    """What each head adds to each of the graph's features (in its order) and, last, to the output's direction."""
    n = graph.n_features
    places = np.zeros((bucket(n, 64), 3), np.int32)
    places[:n] = graph.features
    tokens = jnp.asarray(graph.tokens, jnp.int32)
    found = host(_edges(model.cfg, model.params, d, tokens, jnp.asarray(places), jnp.asarray(direction), slots))
    return np.concatenate([found[:n], found[-1:]])


@partial(jax.jit, static_argnames=("cfg", "slots"))
def _edges(
    cfg: Any, params: Any, d: Transcoders, tokens: Array, places: Array, direction: Array, slots: int
) -> Float[Array, "N L H"]:
    with jax.default_matmul_precision("highest"):
        frozen = freeze(cfg, params, d, tokens, n_slots=slots, origin=False)
        layer, pos, index = places.T
        slot = jnp.argmax(frozen.valid[layer, pos] & (frozen.index[layer, pos] == index[:, None]), -1)
        vec, _, _ = feature_vectors(cfg, params, d, frozen, layer, pos, slot)
        last = jnp.full(1, len(tokens) - 1)
        one = jnp.ones(1, vec.dtype)
        out = output_targets(cfg, params, frozen, direction[None].astype(vec.dtype), 0 * one, last, one)
        values = head_values(cfg, params, frozen.hold, tokens)

        def added(top: Array, at: Array, u: Array) -> Array:
            return head_sources(cfg, params, d, frozen.hold, values, top, at, u).weight.sum(-1)

        tops, places_ = jnp.append(layer, cfg.n_layers), jnp.append(pos, last)
        return jax.vmap(added)(tops, places_, jnp.concatenate([vec, out.vec[0]]))

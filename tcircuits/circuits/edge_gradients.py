"""Scores of all edges from gradients at their readers, in memory that does not depend on layers times heads.

    score(w -> r) = mean over points of  sum_{t,d} (out_w - out_w')[t, d] dm/d input_r [t, d]

with one point on the prompt (edge attribution patching, Syed et al. 2023, arXiv 2310.10348) or Gauss-Legendre points on
the line between the embeddings of the counterfactual and the prompt (EAP-IG, Hanna et al. 2024, arXiv 2403.17806).

What is kept of a run is as wide as the model: heads' readings [L, T, H, K] for the writers, and for the readers the
gradients at their queries, keys, values [L, T, H, K] and MLP inputs [L, T, D]. Vectors of the model's width for each
writer or reader exist for one layer at a time, while two nested scans over layers contract them: about
2 L^2 T D (H K + R H) operations a prompt and point (R readers of a layer), beside one forward and one backward pass,
whose layers are computed again rather than kept.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.circuits.edge_forward import Written, layer_vectors, projections
from tcircuits.circuits.edges import Edges
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Tap, View, layer_kinds, logits_from, normalise, rope_tables, run_layer
from tcircuits.models.params import Block, Params
from tcircuits.types import Array, Bool, Float

Metric = Callable[[Float[Array, " V"]], Array]


class Nudged(Tap):
    """A tap that adds a number array to some sites, so that derivatives by it are those at the site."""

    def __init__(self, layer: Any, positions: Array, add: dict[str, Array]) -> None:
        super().__init__((), ("resid_pre",), layer, positions)
        self.add = add

    def __call__(self, site: str, x: Array) -> Array:
        """`x`, plus what is added there."""
        x = super().__call__(site, x)
        return x + self.add[site].astype(x.dtype) if site in self.add else x


def edge_scores(
    cfg: ModelConfig,
    params: Params,
    edges: Edges,
    valid: Bool[Array, " T"],
    place: Array,
    gap: Written,
    start: Float[Array, "P T D"],
    weight: Float[Array, " P"],
    metric: Metric,
) -> Float[Array, " U"]:
    """Scores of the edges on one prompt.

    Args:
        cfg: sizes and switches; derivatives follow `RelevanceConfig` where it is one (static).
        params: weights.
        edges: of this model (static).
        valid: which tokens are no padding.
        place: the position of the answer.
        gap: what each writer writes on the prompt, less its reference.
        start: the stream before layer 0 at each point.
        weight: of the points.
        metric: of the logits there.
    """
    wide = jnp.promote_types(params.embed.dtype, jnp.float32)

    def add(total: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
        x, share = point
        return total + share.astype(wide) * _at(cfg, params, edges, valid, place, gap, x, metric).astype(wide), None

    zeros = jnp.zeros(edges.allowed.shape, wide)
    scores = jax.lax.scan(add, zeros, (start, weight))[0]
    reader, writer = edges.pairs.T
    return scores[reader, writer]


def _at(
    cfg: ModelConfig,
    params: Params,
    edges: Edges,
    valid: Bool[Array, " T"],
    place: Array,
    gap: Written,
    start: Float[Array, "T D"],
    metric: Metric,
) -> Float[Array, "R W"]:
    """What each writer's gap is worth at each reader, allowed or not, for one stream before layer 0."""
    slopes, last, streams = gradients(cfg, params, valid, place, start, metric)

    def layer(carry: None, item: Any) -> tuple[None, Array]:
        block, slope, stream = item
        return carry, _contracted(params, gap, _readers(cfg, edges, block, slope, stream))

    _, rows = jax.lax.scan(layer, None, (params.blocks, slopes, streams))
    logits = _contracted(params, gap, last[None].astype(rows.dtype))
    return jnp.concatenate([rows.reshape(-1, rows.shape[-1]), logits])


def gradients(
    cfg: ModelConfig,
    params: Params,
    valid: Bool[Array, " T"],
    place: Array,
    start: Float[Array, "T D"],
    metric: Metric,
) -> tuple[dict[str, Array], Float[Array, "T D"], dict[str, Array]]:
    """Derivatives of the metric at each layer's queries, keys, values and MLP input, and at the last stream.

    Queries and keys are those before rotary. The third value holds the streams that attention and MLPs read, [L, T, D].
    """
    T, L, H, G, K, D = len(valid), cfg.n_layers, cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.d_model
    positions = jnp.maximum(jnp.cumsum(valid) - 1, 0)
    view, rope, dtype = View(positions, positions, valid), rope_tables(cfg, positions, start.dtype), start.dtype
    shapes = {"q": (L, T, H, K), "k": (L, T, G, K), "v": (L, T, G, K)} | (
        {} if cfg.attn_only else {"mlp_in": (L, T, D)}
    )
    zeros = {site: jnp.zeros(shape, dtype) for site, shape in shapes.items()}

    @jax.checkpoint
    def step(x: Array, item: Any) -> tuple[Array, dict[str, Array]]:
        block, number, kind, add = item
        tap = Nudged(number, positions, add)
        tap.sites = ("resid_pre",) if cfg.parallel or cfg.attn_only else ("resid_pre", "resid_mid")
        x, _, _, _ = run_layer(cfg, block, x, number, kind, rope, view, tap)
        return x, tap.kept

    def value(add: dict[str, Array], last: Array) -> tuple[Array, dict[str, Array]]:
        x, kept = jax.lax.scan(step, start, (params.blocks, jnp.arange(L), layer_kinds(cfg), add))
        end = jax.lax.dynamic_slice_in_dim(x + last, place, 1)
        return metric(logits_from(cfg, params, end, Tap((), (), 0, positions[place][None]))[0]), kept

    (slopes, last), kept = jax.grad(value, (0, 1), has_aux=True)(zeros, jnp.zeros((T, D), dtype))
    return slopes, last, kept


def _readers(
    cfg: ModelConfig, edges: Edges, block: Block, slope: dict[str, Array], stream: dict[str, Array]
) -> Float[Array, "R T D"]:
    """Derivatives at what each reader of a layer hears, before its norm."""
    x = stream["resid_pre"]
    heard = jnp.broadcast_to(x, (cfg.n_heads + 2 * cfg.n_kv_heads, *x.shape))
    _, back = jax.vjp(lambda h: projections(cfg, block, h), heard)
    (found,) = back(tuple(slope[site] for site in ("q", "k", "v")))
    if edges.attn_only:
        return found
    middle = stream.get("resid_mid", x)
    _, back = jax.vjp(lambda h: normalise(cfg, block.norm2, h, None), middle)
    return jnp.concatenate([found, back(slope["mlp_in"])[0][None]])


def _contracted(params: Params, gap: Written, slope: Float[Array, "R T D"]) -> Float[Array, "R W"]:
    """Every writer's gap times every reader's derivative, one layer of writers at a time."""

    def layer(carry: None, item: Any) -> tuple[None, Array]:
        block, z, wrote = item
        return carry, jnp.einsum("RTD,PTD->RP", slope, layer_vectors(block, z, wrote, gap.bias[0]))

    _, found = jax.lax.scan(layer, None, (params.blocks, gap.z, gap.mlp))
    first = jnp.einsum("RTD,TD->R", slope, gap.embed[0])
    return jnp.concatenate([first[:, None], jnp.swapaxes(found, 0, 1).reshape(len(slope), -1)], 1)

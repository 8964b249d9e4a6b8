"""Influence of every node on the targets, and pruning masks, as pure functions of rows.

With Ahat the rows' absolute values divided by their row's total, and w the targets' weights, influence is
w Ahat + w Ahat^2 + ... Layers are strictly ordered, so one pass over the chunks from the top gives the whole series.
`tcircuits.attribution.prune` has the same on a host graph of any size; these run inside `jit`, `vmap` and meshes.

Semantics: Ameisen et al. 2025; circuit-tracer's `prune_graph` (spec of thresholds, clean-up, scores). Biases have no
part in it. Features that are not selected are leaves: their exact absolute mass is part of a row's total.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from tcircuits.attribution.rows import Rows
from tcircuits.types import Array, Bool, Float

TINY = 1e-30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Influence:
    """Influence of the columns [W], of unexpanded leaves [L, T], and of each row as a node or target [Q, B]."""

    columns: Float[Array, " W"]
    unexpanded: Float[Array, "L T"]
    rows: Float[Array, "Q B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Masks:
    """What pruning keeps: columns [W], edges [Q, B, W]; and the cumulative share of influence of each column [W]."""

    columns: Bool[Array, " W"]
    edges: Bool[Array, "Q B W"]
    cumulative: Float[Array, " W"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """Replacement and completeness scores; `completeness_inputs` counts only nodes that have inputs."""

    replacement: Float[Array, ""]
    completeness: Float[Array, ""]
    completeness_inputs: Float[Array, ""]


def normalised(weight: Float[Array, "*Q B W"], unexpanded: Float[Array, "*Q B L T"]) -> tuple[Array, Array]:
    """|rows| and unexpanded mass over the row total; the largest entry is divided out first, so nothing overflows."""
    w = jnp.abs(weight)
    top = jnp.maximum(w.max(-1), unexpanded.max((-1, -2)))
    safe = jnp.where(top > 0, top, 1.0)
    w, u = w / safe[..., None], unexpanded / safe[..., None, None]
    total = jnp.maximum(w.sum(-1) + u.sum((-1, -2)), TINY)
    return w / total[..., None], u / total[..., None, None]


def _one_pass(rows: Rows, weight: Array, unexpanded: Array) -> Influence:
    """The series for rows that are normalised already; chunks descend through the layers."""
    width = weight.shape[-1]

    def chunk(carry: tuple[Array, Array], x: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        columns, leaves = carry
        w, u, node, share = x
        own = share + jnp.where(node >= 0, columns[jnp.clip(node, 0, width - 1)], 0.0)
        return (columns + own @ w, leaves + jnp.einsum("B,BLT->LT", own, u)), own

    start = (jnp.zeros(width, weight.dtype), jnp.zeros(unexpanded.shape[-2:], weight.dtype))
    (columns, leaves), own = lax.scan(chunk, start, (weight, unexpanded, rows.node, rows.share))
    return Influence(columns, leaves, own)


def influence(rows: Rows) -> Influence:
    """Influence of all nodes, exact in one pass when every active feature is expanded."""
    with jax.default_matmul_precision("highest"):
        return _one_pass(rows, *normalised(rows.weight, rows.unexpanded_abs))


def threshold(scores: Float[Array, "*N"], share: float | Array) -> Array:
    """The largest value v such that entries >= v carry at least `share` of the sum; by bisection, without a sort.

    Non-negative floats are ordered like their bit patterns, so 32 (64) halvings of the pattern find v exactly; entries
    that tie with v are kept. Sums go row by row, so their error does not grow with the number of entries.
    """
    bits, integer = (63, jnp.int64) if scores.dtype == jnp.float64 else (31, jnp.int32)

    def kept(v: Array) -> Array:
        return jnp.where(scores >= v, scores, 0.0).sum(-1).sum()

    goal = jnp.asarray(share, scores.dtype) * kept(jnp.zeros((), scores.dtype))

    def halve(i: Array, low: Array) -> Array:
        trial = low | (jnp.ones((), integer) << (bits - 1 - i))
        value = lax.bitcast_convert_type(trial, scores.dtype)
        return jnp.where(jnp.isfinite(value) & (kept(value) >= goal), trial, low)

    return lax.bitcast_convert_type(lax.fori_loop(0, bits, halve, jnp.zeros((), integer)), scores.dtype)


def prune_masks(rows: Rows, node_threshold: float | Array = 0.8, edge_threshold: float | Array = 0.98) -> Masks:
    """Nodes that carry `node_threshold` of the influence, and edges that carry `edge_threshold` of what remains.

    Tokens and targets are always kept; unexpanded leaves are no nodes and not ranked, but their mass stays in the
    totals of kept rows. Edge scores are the renormalised edge times its target's influence in the pruned graph. Then
    features and errors without an outgoing edge, and features without an incoming one, go, until none is left.
    """
    with jax.default_matmul_precision("highest"):
        return _prune_masks(rows, influence(rows), node_threshold, edge_threshold)


def _prune_masks(rows: Rows, inf: Influence, node_threshold: float | Array, edge_threshold: float | Array) -> Masks:
    width, T = rows.weight.shape[-1], rows.unexpanded.shape[-1]
    token = jnp.arange(width) >= width - T
    columns = (inf.columns >= threshold(inf.columns, node_threshold)) | token
    order = jnp.argsort(-inf.columns, stable=True)
    total = jnp.maximum(inf.columns.sum(), TINY)
    cumulative = jnp.zeros_like(inf.columns).at[order].set(inf.columns[order].cumsum() / total)

    def row_kept(columns: Array) -> Array:
        return rows.valid & ((rows.node < 0) | columns[jnp.clip(rows.node, 0, width - 1)])

    alive = row_kept(columns)[..., None] & columns
    weight, unexpanded = normalised(rows.weight * alive, rows.unexpanded_abs * row_kept(columns)[..., None, None])
    score = weight * _one_pass(rows, weight, unexpanded).rows[..., None]
    edges = (score >= threshold(score, edge_threshold)) & (score > 0)
    is_feature = jnp.arange(width) < width - T - rows.unexpanded.shape[-2] * T

    def clean(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        columns, edges, _ = state
        edges = edges & row_kept(columns)[..., None] & columns
        has_input = (
            jnp.zeros(width, bool).at[jnp.where(rows.node >= 0, rows.node, width)].max(edges.any(-1), mode="drop")
        )
        kept = columns & (token | edges.any((0, 1))) & (~is_feature | has_input)
        return kept, edges, (kept != columns).any()

    columns, edges, _ = lax.while_loop(lambda s: s[2], clean, (columns, edges, jnp.ones((), bool)))
    return Masks(columns, edges, cumulative)


def scores(rows: Rows) -> Scores:
    """Replacement and completeness of the unpruned graph; unexpanded leaves count as error.

    replacement = influence of tokens / (of tokens + errors + unexpanded leaves). completeness = mean over nodes,
    weighted by influence, of 1 - (share of input from errors and unexpanded leaves): in the reference form also over
    errors and tokens, which have no inputs and count as complete (unexpanded leaves are no nodes, else a graph would
    look more complete the less of it is expanded); `completeness_inputs` leaves those out.
    """
    inf = influence(rows)
    weight, unexpanded = normalised(rows.weight, rows.unexpanded_abs)
    L, T = rows.unexpanded.shape[-2:]
    n = weight.shape[-1] - L * T - T
    errors, tokens = inf.columns[n : n + L * T].sum(), inf.columns[n + L * T :].sum()
    lost = errors + inf.unexpanded.sum()
    incomplete = weight[..., n : n + L * T].sum(-1) + unexpanded.sum((-1, -2))
    through = inf.rows * rows.valid
    complete = (1.0 - incomplete) * through
    fed, nodes = weight.sum(-1) + unexpanded.sum((-1, -2)) > 0, errors + tokens
    return Scores(
        tokens / jnp.maximum(tokens + lost, TINY),
        (complete.sum() + nodes) / jnp.maximum(through.sum() + nodes, TINY),
        (complete * fed).sum() / jnp.maximum((through * fed).sum(), TINY),
    )

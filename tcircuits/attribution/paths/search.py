"""Beam search over computational paths, as one program: a scan over levels, in each of them one scan over layers.

A level holds up to `branches` paths. All that their last nodes read (`ground.below`) competes at once: features of
every layer below at the node's position, heads of every layer below with every source position, the embedding. The
best become the next level, and each says which path it continues. What a node reads and no kept path follows is summed
where it is seen, so every node balances:

    value = kept contributions + error + bias + pruned

Contributions are signed. With filters the best are those of the paths that satisfy them, or still can.

Source: Dunefsky et al. 2024 (arXiv 2406.11944), algorithm 1.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.linear import norm_bias, norm_down
from tcircuits.attribution.paths import progress
from tcircuits.attribution.paths.filters import ABSENT, EMBED, FEATURE, HEAD, ROOT, Rules
from tcircuits.attribution.paths.ground import Below, Ground, Point, below, ground
from tcircuits.attribution.paths.progress import Progress, Tables
from tcircuits.attribution.targets import Targets, feature_vectors
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Bool, Float, Int

TOGETHER = 64  # points whose decoder rows are gathered at once: bounds memory, not results


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Root:
    """What paths lead to: `point`, the value read there, and its fields (layer, position, kind, head, feature).

    `bound` is the activation of a feature that is the root, else infinite.
    """

    point: Point
    value: Float[Array, ""]
    bound: Float[Array, ""]
    fields: Int[Array, " 5"]


def root_from(cfg: ModelConfig, targets: Targets, feature: Int[Array, ""] | int | None = None) -> Root:
    """The first of some targets as the root of paths: an output, or the feature of this number."""
    top, pos, value = targets.layer[0], targets.pos[0, 0], targets.value[0, 0]
    attn = top if feature is None or cfg.parallel else top + 1
    kind, number = (ROOT, ABSENT) if feature is None else (FEATURE, feature)
    bound = jnp.full_like(value, jnp.inf) if feature is None else jnp.abs(value)
    fields = jnp.stack([jnp.asarray(x, jnp.int32) for x in (top, pos, kind, ABSENT, number)])
    return Root(Point(targets.vec[0, 0], targets.const[0, 0], top, attn, pos), value, bound, fields)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nodes:
    """Last nodes of paths. `index` is a feature's number or a head, `parent` the path of the level before."""

    kind: Int[Array, "*I B"]
    layer: Int[Array, "*I B"]
    pos: Int[Array, "*I B"]
    index: Int[Array, "*I B"]
    parent: Int[Array, "*I B"]
    value: Float[Array, "*I B"]
    score: Float[Array, "*I B"]
    alive: Bool[Array, "*I B"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Levels:
    """The paths of each level, the root's first; lanes that hold none are not `alive`.

    Attributes:
        nodes: their last nodes. `score` is the value, or the capped one.
        satisfied: which paths the filters want as they are; others are on the way to such.
        error, bias, pruned: what the last node reads of errors, of constants, and of everything that no path of the
            next level follows. An embedding reads nothing.
        size: the absolute sum of all that the node reads.
        wanted: how many continuations competed for the next level; more than there are lanes did not all fit.
    """

    nodes: Nodes
    satisfied: Bool[Array, "I B"]
    error: Float[Array, "I B"]
    bias: Float[Array, "I B"]
    pruned: Float[Array, "I B"]
    size: Float[Array, "I B"]
    wanted: Int[Array, " I"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beam:
    """What one level hands to the next."""

    point: Point
    nodes: Nodes
    bound: Float[Array, " B"]
    progress: Progress


@dataclass(frozen=True)
class Search:
    """What stays the same during a search; lives for one trace."""

    cfg: ModelConfig
    params: Params
    d: Transcoders
    frozen: Frozen
    base: Ground
    rules: Rules
    allowed: Tables
    steps: Tables | None
    names: Int[Array, "L T C"]
    iterations: int
    cap: bool
    positive: bool

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Layers, slots, heads, sources."""
        (L, T, C) = self.frozen.index.shape
        return L, C, self.cfg.n_heads, T


def search(
    cfg: ModelConfig,
    params: Params,
    dictionary: Transcoders,
    frozen: Frozen,
    root: Root,
    rules: Rules,
    *,
    iterations: int = 5,
    branches: int = 15,
    cap: bool = False,
    positive: bool = False,
    skip_first: bool | Array = False,
    names: Int[Array, "L T C"] | None = None,
) -> Levels:
    """The strongest paths into `root`. Pure: `jit` it, `vmap` it over prompts and roots.

    Args:
        cfg: the model's sizes and switches (static).
        params: its weights.
        dictionary: what `frozen` was made with.
        frozen: the frozen prompt, position 0 among its nodes (`origin` false).
        root: where paths begin.
        rules: filters (see `filters`).
        iterations: nodes below the root at most (static).
        branches: paths kept at each level (static).
        cap: rank by contributions that are at most as large as the least activation of the features above on the path,
            the root's included (static); values and sums are those without it.
        positive: keep positive contributions only, as the paper does (static); otherwise the largest by absolute value.
        skip_first: no head may lead to position 0.
        names: the features' numbers, if not those of the dictionary.
    """
    with jax.default_matmul_precision("highest"):
        base = ground(cfg, params, dictionary, frozen)
        numbers = frozen.index if names is None else names
        allowed = progress.tables(rules.node, numbers, cfg.n_heads)
        first = (jnp.arange(frozen.index.shape[1]) == 0) & skip_first
        allowed = Tables(allowed.feature & frozen.valid, allowed.head & ~first, allowed.embed)
        steps = progress.tables(rules.step, numbers, cfg.n_heads) if rules.length.shape[0] else None
        s = Search(cfg, params, dictionary, frozen, base, rules, allowed, steps, numbers, iterations, cap, positive)
        start = _start(root, rules, branches)
        return jax.lax.scan(partial(_level, s), start, jnp.arange(iterations + 1))[1]


def _start(root: Root, rules: Rules, branches: int) -> Beam:
    """The root in the first of all lanes."""
    first = jnp.arange(branches) == 0

    def spread(x: Array) -> Array:
        return jnp.where(first.reshape(-1, *[1] * x.ndim), x, jnp.zeros_like(x))

    layer, pos, kind, head, feature = root.fields
    index = jnp.maximum(head, feature)
    nodes = Nodes(kind, layer, pos, index, jnp.asarray(ABSENT, jnp.int32), root.value, root.value, jnp.asarray(True))
    at = progress.begin(rules, tuple(root.fields))
    return jax.tree.map(spread, Beam(root.point, nodes, root.bound, at))


def _level(s: Search, beam: Beam, number: Array) -> tuple[Beam, Levels]:
    """One level: what its nodes read, and the level after it."""
    B = beam.bound.shape[0]
    reading = beam.nodes.alive & (beam.nodes.kind != EMBED)
    highest = jnp.where(reading, jnp.maximum(beam.point.top, beam.point.attn), 0).max()
    look = partial(below, s.cfg, s.params, s.d, s.frozen, s.base, highest)
    seen = jax.lax.map(look, beam.point, batch_size=TOGETHER) if B > TOGETHER else jax.vmap(look)(beam.point)
    seen = jax.tree.map(lambda x: jnp.where(reading.reshape(-1, *[1] * (x.ndim - 1)), x, 0), seen)
    flat = jnp.concatenate([seen.features.reshape(B, -1), seen.heads.reshape(B, -1), seen.embed[:, None]], 1)
    score = flat
    if s.cap:
        score = jnp.sign(flat) * jnp.minimum(jnp.abs(flat), beam.bound[:, None])
    rank = jnp.maximum(score, 0.0) if s.positive else jnp.abs(score)
    rank = jnp.where(_acceptable(s, beam, s.iterations - number - 1) & (number < s.iterations), rank, 0.0)
    best, place = jax.lax.top_k(rank.reshape(-1), B)
    kept = jnp.zeros(rank.size, bool).at[place].set(best > 0).reshape(rank.shape)
    pruned = jnp.where(kept, 0.0, flat).sum(1)
    satisfied = progress.satisfied(s.rules, beam.progress) & beam.nodes.alive
    out = Levels(beam.nodes, satisfied, seen.error, seen.bias, pruned, seen.size, (rank > 0).sum())
    value, alive = flat.reshape(-1)[place], best > 0
    onward = _extend(s, beam, seen, place.astype(jnp.int32), value, score.reshape(-1)[place], alive)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), onward, beam), out


def _acceptable(s: Search, beam: Beam, remaining: Array) -> Bool[Array, "B K"]:
    """Which continuations the filters allow, of paths with `remaining` nodes to go after them."""
    allowed = _flat(s.allowed, beam.point.pos)
    if s.steps is None:
        return allowed
    matched = jax.vmap(jax.vmap(_flat, (0, None)), (0, None))(s.steps, beam.point.pos)
    before = jax.tree.map(lambda x: x[:, None], beam.progress)
    after = progress.advance(s.rules, before, jnp.moveaxis(matched, (0, 1), (2, 3)))
    last = jnp.arange(allowed.shape[1]) == allowed.shape[1] - 1  # nothing follows an embedding
    return allowed & ~progress.hopeless(s.rules, after, jnp.where(last, 0, remaining)[:, None])


def _flat(t: Tables, pos: Int[Array, " B"]) -> Bool[Array, "B K"]:
    """A table at the paths' positions, in the order of contributions."""
    feature = jnp.moveaxis(t.feature[:, pos], 1, 0).reshape(len(pos), -1)
    head = jnp.broadcast_to(t.head.reshape(-1), (len(pos), t.head.size))
    return jnp.concatenate([feature, head, t.embed[pos][:, None]], 1)


def _extend(s: Search, beam: Beam, seen: Below, place: Array, value: Array, score: Array, alive: Array) -> Beam:
    """The next level, from the places of its contributions among all [B, K] of this one."""
    L, C, H, S = s.sizes
    b, k = place // (L * C + L * H * S + 1), place % (L * C + L * H * S + 1)
    among_heads = jnp.clip(k - L * C, 0, L * H * S - 1)
    is_feature, is_embed = k < L * C, k == L * C + L * H * S
    layer = jnp.where(is_feature, k // C, jnp.where(is_embed, 0, among_heads // (H * S)))
    slot, head, source = k % C, among_heads // S % H, among_heads % S
    here = beam.point.pos[b]
    of_feature, activation = _feature_point(s, layer, here, slot, seen.reads[b, layer, slot])
    of_head = _head_point(s, layer, head, here, source, seen.head_reads[b, layer, head])
    zero = jnp.zeros_like(layer)
    nothing = Point(jnp.zeros_like(of_head.vec), jnp.zeros_like(of_head.const), zero, zero, here)

    def choose(x: Array, y: Array, z: Array) -> Array:
        first, last = (jnp.expand_dims(c, range(1, x.ndim)) for c in (is_feature, is_embed))
        return jnp.where(first, x, jnp.where(last, z, y))

    point = jax.tree.map(choose, of_feature, of_head, nothing)
    kind = jnp.where(is_feature, FEATURE, jnp.where(is_embed, EMBED, HEAD))
    index = choose(s.names[layer, here, slot], head, jnp.zeros_like(head))
    nodes = Nodes(kind, layer, point.pos, index, b, value, score, alive)
    bound = jnp.where(is_feature, jnp.minimum(beam.bound[b], jnp.abs(activation)), beam.bound[b])
    at = jax.tree.map(lambda x: x[b], beam.progress)
    if s.steps is not None:
        places = (s.steps.feature[..., layer, here, slot], s.steps.head[..., layer, head, source])
        matched = choose(*(jnp.moveaxis(x, -1, 0) for x in (*places, s.steps.embed[..., here])))
        at = progress.advance(s.rules, at, matched)
    return Beam(point, nodes, bound, at)


def _feature_point(s: Search, layer: Array, pos: Array, slot: Array, read: Float[Array, " B"]) -> tuple[Point, Array]:
    """Where paths through features stand, and the features' activations (equations 25-28)."""
    vec, const, activation = feature_vectors(s.cfg, s.params, s.d, s.frozen, layer, pos, slot)
    attn = layer if s.cfg.parallel else layer + 1
    return Point(read[:, None] * vec, read * const, layer, attn, pos), activation


def _head_point(s: Search, layer: Array, head: Array, pos: Array, source: Array, read: Float[Array, "B K"]) -> Point:
    """Where paths through heads stand: at their source, below their layer (equations 19-24)."""
    attn, norm = s.params.blocks.attn, s.params.blocks.norm1
    group = head // (s.cfg.n_heads // s.cfg.n_kv_heads)
    assert s.frozen.hold.pattern is not None
    assert s.frozen.hold.norm1 is not None
    moved = s.frozen.hold.pattern[layer, head, pos, source][:, None] * read
    into = jnp.einsum("BDK,BK->BD", wide(attn.w_v)[layer, :, group], moved)
    const = jnp.zeros_like(into[:, 0]) if attn.b_v is None else (wide(attn.b_v)[layer, group] * moved).sum(-1)
    if norm is None:
        return Point(into, const, layer, layer, source)
    own = jax.tree.map(lambda x: wide(x)[layer], norm)
    const = const + (into * norm_bias(own)).sum(-1)
    return Point(norm_down(s.cfg, own, s.frozen.hold.norm1[layer, source], into), const, layer, layer, source)

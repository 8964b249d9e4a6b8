"""A network that scores sets of a behaviour's graph by how much their ablation will cost, from the graph alone.

    gat      GATv2 (Brody et al. 2022, arXiv 2105.14491) with edge features on every level of the hierarchy at once,
                 e_uv = a . LeakyReLU(W_s z_u + W_t z_v + W_e x_uv),  alpha = softmax over the edges into v,
             messages in both directions, residual, layer norm; one number for each set
    paper    HAGD's stage 4 (arXiv 2601.12879): two layers as wide as the features, one head,
                 e_uv = a . [z_u || z_v],  z_v <- MLP(z_v + sum_u alpha_uv z_u)
             whose a . z_v cancels in the softmax, so that attention sees the source alone

Targets are measured effects of sets: Huber loss of asinh(effect / scale), and a ranking loss within siblings. It is
trained on several behaviours together, or by Reptile (arXiv 1803.02999), so that a few measurements of a new one adapt
it. It must beat the size of the score that needs no network (`experiments.membership` says whether it does).

HAGD's "topology prediction" is a second head of `gat`: a number for each edge between two nodes of the last level, from
what the network holds of both and from the edge, trained on measured effects of edges (`edge_effects`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tcircuits.circuits.membership_data import Sample, padded
from tcircuits.types import Array, Float, InputError

Kind = Literal["gat", "paper"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Training:
    """How the network is trained.

    Attributes:
        kind: of `Kind`.
        layers, heads, width: of `gat`.
        steps: of Adam; of Reptile, outer steps.
        lr: Adam's, or of the inner steps.
        ranking: weight of the ranking loss.
        edges: weight of the loss of edges, which then have a head; only of `gat`.
        dropout: of messages.
        inner: steps of Reptile on one behaviour; 0 trains jointly.
        outer: Reptile's step, falling to 0.
        seed: of weights, dropout and draws.

    Raises:
        InputError: sizes below 1, rates that are not positive.
    """

    kind: Kind = "gat"
    layers: int = 2
    heads: int = 4
    width: int = 16
    steps: int = 300
    lr: float = 3e-3
    ranking: float = 0.5
    edges: float = 0.0
    dropout: float = 0.1
    inner: int = 0
    outer: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)}" for name in ("layers", "heads", "width", "steps") if getattr(self, name) < 1
        ]
        wrong += [f"lr={self.lr}"] if not self.lr > 0 else []
        wrong += [f"dropout={self.dropout}"] if not 0 <= self.dropout < 1 else []
        wrong += [f"inner={self.inner}"] if self.inner < 0 else []
        headed = self.edges == 0 or (self.edges > 0 and self.kind == "gat")
        wrong += [] if headed else [f"edges={self.edges} of kind {self.kind!r}"]
        if wrong:
            raise InputError("the membership network cannot be trained with " + ", ".join(wrong))


class Attention(nn.Module):
    """One GATv2 layer."""

    heads: int
    width: int
    dropout: float

    @nn.compact
    def __call__(self, z: Float[Array, "n D"], s: Sample, train: bool) -> Float[Array, "n D"]:
        """Nodes after the layer."""
        n, size = len(z), self.heads * self.width
        here, there = nn.Dense(size)(z)[s.target], nn.Dense(size)(z)[s.source]
        mixed = nn.leaky_relu(here + there + nn.Dense(size, use_bias=False)(s.edge), 0.2)
        vector = self.param("a", nn.initializers.lecun_normal(), (self.heads, self.width))
        logits = jnp.einsum("ehk,hk->eh", mixed.reshape(-1, self.heads, self.width), vector)
        share = softmax_by(logits, s.target, s.live, n)
        carried = share[..., None] * there.reshape(-1, self.heads, self.width)
        heard = jax.ops.segment_sum(carried.reshape(-1, size), s.target, n)
        heard = nn.Dropout(self.dropout, deterministic=not train)(nn.Dense(z.shape[1])(heard))
        z = nn.LayerNorm()(z + heard)
        return nn.LayerNorm()(z + nn.Dense(z.shape[1])(nn.gelu(nn.Dense(2 * z.shape[1])(z))))


class PaperLayer(nn.Module):
    """One layer of HAGD's network."""

    @nn.compact
    def __call__(self, z: Float[Array, "n D"], s: Sample) -> Float[Array, "n D"]:
        """Nodes after the layer."""
        n, width = z.shape
        logits = nn.Dense(1, use_bias=False)(jnp.concatenate([z[s.source], z[s.target]], -1))
        share = softmax_by(logits, s.target, s.live, n)
        heard = jax.ops.segment_sum(share * z[s.source], s.target, n)
        return nn.Dense(width)(nn.relu(nn.Dense(width)(z + heard)))


class Network(nn.Module):
    """Scores of nodes [n], and of edges [E] where they have a head."""

    how: Training

    @nn.compact
    def __call__(self, s: Sample, train: bool = False) -> tuple[Float[Array, " n"], Float[Array, " E"] | None]:
        """Scores of a sample's nodes and edges."""
        h = self.how
        if h.kind == "paper":
            z = s.node
            for _ in range(2):
                z = PaperLayer()(z, s)
        else:
            z = nn.Dense(h.heads * h.width)(s.node)
            for _ in range(h.layers):
                z = Attention(h.heads, h.width, h.dropout)(z, s, train)
            z = jnp.concatenate([z, s.node], -1)
        nodes, edges = nn.Dense(1)(z)[:, 0], None
        if h.edges and s.cue is not None:
            ends = jnp.concatenate([z[s.source], z[s.target], s.edge, s.cue], -1)
            hidden = nn.gelu(nn.Dense(h.heads * h.width, name="edge_hidden")(ends))
            hidden = nn.Dropout(h.dropout, deterministic=not train)(hidden)
            edges = nn.Dense(1, name="edge_score")(jnp.concatenate([hidden, s.cue], -1))[:, 0]
        return nodes, edges


def softmax_by(x: Float[Array, "E h"], group: Array, live: Float[Array, " E"], n: int) -> Float[Array, "E h"]:
    """Softmax over the edges of each group; padding has no share."""
    x = jnp.where(live[:, None] > 0, x, -1e9)
    top = jax.ops.segment_max(x, group, n)
    size = jnp.exp(x - jax.lax.stop_gradient(top)[group]) * live[:, None]
    return size / jnp.maximum(jax.ops.segment_sum(size, group, n)[group], 1e-9)


@dataclass(frozen=True)
class Membership:
    """A trained network: its settings, weights, and the scales of effects, of sets and of edges, that it has."""

    how: Training
    weights: Any
    scale: float
    losses: Float[np.ndarray, " steps"]
    edge_scale: float = 1.0


def fit(samples: Sequence[Sample], how: Training = Training(), *, begun: Any = None) -> Membership:
    """Train on measured samples, jointly or by Reptile (`how.inner` > 0); `begun` are weights to go on from.

    Raises:
        InputError: no samples, or one without two measured sets.
    """
    counts = [int(np.isfinite(s.effect).sum()) for s in samples]
    if not samples or min(counts) < 2:
        raise InputError(f"samples have {counts} measured sets: give at least one sample, each with two or more")
    scale, edge_scale = _scale([s.effect for s in samples]), 1.0
    if how.edges:
        edge_scale = _edge_scale(samples)
        samples = [_in_scale(s, edge_scale) for s in samples]
    data = jax.tree.map(jnp.asarray, padded(samples))
    first = jax.tree.map(lambda x: x[0], data)
    weights = _begun(replace(how, seed=0), jax.random.key(how.seed), first) if begun is None else begun
    run, same = _reptile if how.inner else joint_program, replace(how, seed=0)  # one program for all seeds
    weights, losses = run(same, len(samples), scale, weights, data, jax.random.key(how.seed + 1))
    return Membership(how, weights, scale, np.asarray(losses), edge_scale)


def _scale(effects: Sequence[Float[np.ndarray, " n"]]) -> float:
    """The median size of what was measured."""
    return float(np.median(np.concatenate([np.abs(x[np.isfinite(x)]) for x in effects]))) or 1e-3


def _edge_scale(samples: Sequence[Sample]) -> float:
    """The same of edges."""
    effects = [np.zeros(0) if s.edge_effect is None else s.edge_effect for s in samples]
    if not all(np.isfinite(x).any() for x in effects):
        raise InputError("edges have a head, and a sample has no measured edge: give `edges` to `sample_of`")
    return _scale(effects)


def _in_scale(s: Sample, scale: float) -> Sample:
    """A sample with effects of edges as parts of `scale`."""
    return s if s.edge_effect is None else replace(s, edge_effect=s.edge_effect / scale)


@partial(jax.jit, static_argnums=0)
def _begun(how: Training, key: Array, s: Sample) -> Any:
    return Network(how).init(key, s)


def adapted(m: Membership, sample: Sample, steps: int = 50) -> Membership:
    """The network after a few steps on what was measured of one more sample: sets, and edges if there are some."""
    measured = sample.edge_effect is not None and bool(np.isfinite(sample.edge_effect).any())
    how = replace(m.how, steps=steps, inner=0, edges=m.how.edges if measured else 0.0)
    data = jax.tree.map(lambda x: jnp.asarray(x)[None], _in_scale(sample, m.edge_scale))
    weights, losses = joint_program(replace(how, seed=0), 1, m.scale, m.weights, data, jax.random.key(how.seed + 1))
    return Membership(m.how, weights, m.scale, np.asarray(losses), m.edge_scale)


def predict(m: Membership, sample: Sample) -> Float[np.ndarray, " n"]:
    """Scores of a sample's nodes: predicted asinh(effect / scale), the larger the more an ablation will cost."""
    return np.asarray(_predict(replace(m.how, seed=0), m.weights, jax.tree.map(jnp.asarray, sample))[0])


def predict_edges(m: Membership, sample: Sample) -> Float[np.ndarray, " E"]:
    """Scores of a sample's edges: the larger, the more it will cost to patch one.

    Raises:
        InputError: a network without a head for edges, a sample that was not told of any (`sample_of`).
    """
    if not m.how.edges or sample.cue is None:
        raise InputError("edges have no scores: train with edges > 0, and give `edges` to `sample_of`")
    return np.asarray(_predict(replace(m.how, seed=0), m.weights, jax.tree.map(jnp.asarray, sample))[1])


@partial(jax.jit, static_argnums=0)
def _predict(how: Training, weights: Any, s: Sample) -> tuple[Array, Array | None]:
    found: Any = Network(how).apply(weights, s)
    return found


def loss_of(how: Training, scale: float | Array, weights: Any, s: Sample, key: Array) -> Array:
    """Huber loss of asinh(effect / scale) over measured sets and edges, and ranking of measured siblings."""
    scores: Any = Network(how).apply(weights, s, True, rngs={"dropout": key})
    found, edges = scores
    known = jnp.isfinite(s.effect) & (s.real > 0)
    target = jnp.arcsinh(jnp.where(known, s.effect, 0.0) / scale)
    fitted = jnp.sum(optax.huber_loss(found, target) * known) / jnp.maximum(known.sum(), 1)
    pairs = (s.family[:, None] == s.family[None]) & known[:, None] & known[None]
    apart = target[:, None] - target[None]
    wrong = jax.nn.softplus(-(found[:, None] - found[None]) * jnp.sign(apart)) * jnp.abs(apart)
    ranked = jnp.sum(wrong * pairs) / jnp.maximum(jnp.sum(jnp.abs(apart) * pairs), 1e-9)
    return fitted + how.ranking * ranked + (how.edges * _of_edges(edges, s.edge_effect, s.live) if how.edges else 0.0)


def _of_edges(found: Float[Array, " E"], effect: Any, live: Float[Array, " E"]) -> Array:
    known = jnp.isfinite(effect) & (live > 0)
    target = jnp.arcsinh(jnp.where(known, effect, 0.0))
    return jnp.sum(optax.huber_loss(found, target) * known) / jnp.maximum(known.sum(), 1)


@partial(jax.jit, static_argnums=(0, 1))
def joint_program(how: Training, n: int, scale: float, weights: Any, data: Sample, key: Array) -> tuple[Any, Array]:
    """All steps of joint training on n samples: weights, and the loss of each step."""
    adam = optax.adamw(optax.cosine_decay_schedule(how.lr, how.steps), weight_decay=1e-3)

    def step(carry: Any, own: Array) -> tuple[Any, Array]:
        weights, state = carry

        def total(weights: Any) -> Array:
            keys = jax.random.split(own, n)
            return jax.vmap(lambda s, k: loss_of(how, scale, weights, s, k))(data, keys).mean()

        value, slope = jax.value_and_grad(total)(weights)
        moves, state = adam.update(slope, state, weights)
        return (optax.apply_updates(weights, moves), state), value

    keys = jax.random.split(key, how.steps)
    (weights, _), losses = jax.lax.scan(step, (weights, adam.init(weights)), keys)
    return weights, losses


@partial(jax.jit, static_argnums=(0, 1))
def _reptile(how: Training, n: int, scale: float, weights: Any, data: Sample, key: Array) -> tuple[Any, Array]:
    """Moves weights by a share of how far some steps on one behaviour move them; the share falls to 0."""

    def outer(weights: Any, item: tuple[Array, Array]) -> tuple[Any, Array]:
        number, own = item
        drawn, noise = jax.random.split(own)
        s = jax.tree.map(lambda x: x[jax.random.randint(drawn, (), 0, n)], data)

        def inner(moved: Any, k: Array) -> tuple[Any, Array]:
            value, slope = jax.value_and_grad(lambda w: loss_of(how, scale, w, s, k))(moved)
            return jax.tree.map(lambda w, g: w - how.lr * g, moved, slope), value

        moved, values = jax.lax.scan(inner, weights, jax.random.split(noise, how.inner))
        step = how.outer * (1 - number / how.steps)
        return jax.tree.map(lambda w, m: w + step * (m - w), weights, moved), values[-1]

    keys = jax.random.split(key, how.steps)
    return jax.lax.scan(outer, weights, (jnp.arange(how.steps), keys))

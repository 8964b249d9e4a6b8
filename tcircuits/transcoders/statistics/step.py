"""One compiled step of a pass: the model runs over a batch of rows, every dictionary encodes it, the state takes it in.

Dense features [tokens, F] of one slot exist for one part of the batch at a time; what leaves it are the active features
of each token, at most `most` of them. Where a token has more, `full` says so and the caller repeats the step with a
larger `most`: nothing is lost.

On a mesh rows are spread over "data" and features over "model". Each device picks the active ones of its own features
and keeps its own features' state; the picks of all rows go to all devices of the data axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.replacement import features
from tcircuits.transcoders.statistics.state import State, add
from tcircuits.transcoders.training.harvest import buffers
from tcircuits.types import Array, Bool, Float, Int


@dataclass(frozen=True)
class Places:
    """How the arrays of a step lie on a mesh: the mesh axis of rows and that of features, None where not split."""

    mesh: Mesh
    rows: str | None
    features: str | None

    def over(self, f: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """`f` on each device's part."""
        return jax.shard_map(f, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def put(self, x: Array, *axes: str | None) -> Array:
        """`x`, split as said."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))


def places(mesh: Mesh | None, rows: int, n_features: int) -> Places | None:
    """Where axes can be divided evenly they are."""
    if mesh is None:
        return None
    return Places(
        mesh,
        "data" if rows % mesh.shape["data"] == 0 else None,
        "model" if n_features % mesh.shape["model"] == 0 else None,
    )


def signed(c: TranscoderConfig) -> bool:
    """Whether features may have negative values."""
    return c.kind == "neurons" or c.signed_topk or c.activation == "jumprelu"


def picked(
    c: TranscoderConfig, most: int, f: Float[Array, "N F"]
) -> tuple[Float[Array, "N C"], Int[Array, "N C"], Bool[Array, "N 1"]]:
    """The active features of each token: value (0: empty), number, and whether there may be more of them."""
    n = min(most, f.shape[1])
    value, index = jax.lax.top_k(jnp.abs(f) if signed(c) else f, n)
    value = jnp.take_along_axis(f, index, 1) if signed(c) else value
    bound = f.shape[1] if c.k is None else min(c.k, f.shape[1])
    return value, index, (value[:, -1:] != 0) & (n < bound)


@partial(jax.jit, static_argnames=("cfg", "most", "on", "precision"))
def step(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    state: State,
    keys: Int[Array, "S F"],
    tokens: Int[Array, "Q R T"],
    first: Int[Array, ""],
    end: Int[Array, ""],
    *,
    most: int,
    on: Places | None = None,
    precision: str = "highest",
) -> tuple[State, Bool[Array, ""]]:
    """The state after a batch, and whether a token had more active features than there were slots.

    Args:
        cfg: the model's sizes (static).
        params: its weights.
        d: dictionaries.
        state: before the batch.
        keys: of features (`keeping.feature_keys`).
        tokens: rows, in Q parts that are encoded one after the other.
        first: number of the first row.
        end: rows from this number on only fill the batch.
        most: slots of a token (static).
        on: the mesh (static).
        precision: of matrix products (static).
    """
    Q, R, T = tokens.shape
    number = (first + jnp.arange(Q * R, dtype=jnp.uint32))[:, None]
    token = (number * jnp.uint32(T) + jnp.arange(1, T, dtype=jnp.uint32)).ravel()
    counts = jnp.broadcast_to(number < end, (Q * R, T - 1)).reshape(Q, -1, 1)
    with jax.default_matmul_precision(precision):
        x = buffers(cfg, params, (d.cfg.reads,), d.cfg.layers, tokens)[d.cfg.reads]
        x = x.reshape(len(x), Q, R * (T - 1), -1)

        def slot(full: Array, item: Any) -> tuple[Array, State]:
            number, layer, key, one, x = item
            value, index, more = jax.lax.map(lambda part: _picks(cfg, params, d, layer, number, most, on, part), x)
            value = jnp.where(counts, value, 0)
            return full | jnp.any(more & counts), _added(on, one, key, value, index, token)

        slots = jnp.arange(len(d.cfg.layers)), jnp.asarray(d.cfg.layers)
        full, state = jax.lax.scan(slot, jnp.zeros((), bool), (*slots, keys, state, x))
    return state, full


def _picks(
    cfg: ModelConfig, params: Params, d: Transcoders, layer: Array, slot: Array, most: int, on: Places | None, x: Array
) -> tuple[Array, Array, Array]:
    f = features(cfg, params, d, layer, slot, x)
    pick = partial(picked, d.cfg, most)
    if on is None:
        return pick(f)
    where = PartitionSpec(on.rows, on.features)
    return on.over(pick, where, (where, where, where))(on.put(f, on.rows, on.features))


def _added(on: Places | None, one: State, key: Array, value: Array, index: Array, token: Array) -> State:
    value, index = (a.reshape(-1, a.shape[-1]) for a in (value, index))
    if on is None:
        return add(one, key, value, index, token)
    own, picks = PartitionSpec(on.features), PartitionSpec(None, on.features)
    return on.over(add, (own, own, picks, picks, PartitionSpec()), own)(one, key, value, index, token)

"""One compiled step of a pass: the model runs over a batch of rows, every dictionary encodes it, the state takes it in.

Dense features [tokens, F] of one slot exist for one part of the batch at a time; what leaves it is a list of those that
are on, `most` for each token on average. Where a part has more, `full` says so and the caller repeats the step with a
larger `most`: nothing is lost.

On a mesh rows are spread over "data" and features over "model". Each device lists what is on of its own rows and
features, and keeps its own features' state; the lists of all rows go to all devices of the data axis.
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
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.replacement import features
from tcircuits.transcoders.statistics.sparse import marked, nth
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


def picked(
    most: int, f: Float[Array, "N F"], token: Int[Array, " N"], counts: Bool[Array, " N"]
) -> tuple[Float[Array, "1 C"], Int[Array, "1 C"], Int[Array, "1 C"], Bool[Array, "1 1"]]:
    """What is on: value (0: an empty place), feature, token; and whether there is more than `most` a token."""
    N, F = f.shape
    if most >= F:
        row, feature = jnp.divmod(jnp.arange(N * F), F)
        value, full = jnp.where(counts[:, None], f, 0).ravel(), jnp.zeros((), bool)
    else:
        marks, number = marked((f != 0) & counts[:, None]), jnp.arange(N * most)
        row, feature = nth(marks, number)
        value, full = jnp.where(number < marks.n, f[row, feature], 0), marks.n > N * most
    return value[None], feature[None], token[row][None], full[None, None]


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
    """The state after a batch, and whether a part of it had more active features than there were places.

    Args:
        cfg: the model's sizes (static).
        params: its weights.
        d: dictionaries.
        state: before the batch.
        keys: of features (`keeping.feature_keys`).
        tokens: rows, in Q parts that are encoded one after the other.
        first: number of the first row.
        end: rows from this number on only fill the batch.
        most: places for active features, by token (static).
        on: the mesh (static).
        precision: of matrix products (static).
    """
    Q, R, T = tokens.shape
    number = (first + jnp.arange(Q * R, dtype=jnp.uint32))[:, None]
    token = (number * jnp.uint32(T) + jnp.arange(1, T, dtype=jnp.uint32)).reshape(Q, -1)
    counts = jnp.broadcast_to(number < end, (Q * R, T - 1)).reshape(Q, -1)
    with jax.default_matmul_precision(precision):
        x = buffers(cfg, params, (d.cfg.reads,), d.cfg.layers, tokens)[d.cfg.reads]
        x = x.reshape(len(x), Q, R * (T - 1), -1)

        def slot(full: Array, item: Any) -> tuple[Array, State]:
            number, layer, key, one, x = item

            def part(item: Any) -> tuple[Array, ...]:
                x, token, counts = item
                return _picks(on, most, features(cfg, params, d, layer, number, x), token, counts)

            *picks, more = jax.lax.map(part, (x, token, counts))
            return full | jnp.any(more), _added(on, one, key, *picks)

        slots = jnp.arange(len(d.cfg.layers)), jnp.asarray(d.cfg.layers)
        full, state = jax.lax.scan(slot, jnp.zeros((), bool), (*slots, keys, state, x))
    return state, full


def _picks(on: Places | None, most: int, f: Array, token: Array, counts: Array) -> tuple[Array, ...]:
    """`picked` on each device; lists [data, model x C]."""
    pick = partial(picked, most)
    if on is None:
        return pick(f, token, counts)
    rows, both = PartitionSpec(on.rows), PartitionSpec(on.rows, on.features)
    return on.over(pick, (both, rows, rows), (both,) * 4)(on.put(f, on.rows, on.features), token, counts)


def _added(on: Places | None, one: State, key: Array, *picks: Array) -> State:
    """`add` on each device, of the lists [Q, data, model x C] of all parts and rows."""
    lists = [a.reshape(-1, a.shape[-1]) for a in picks]
    if on is None:
        return add(one, key, *lists)
    own, listed = PartitionSpec(on.features), PartitionSpec(None, on.features)
    return on.over(add, (own, own, listed, listed, listed), own)(one, key, *lists)

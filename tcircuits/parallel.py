"""Mesh, logical-axis rules and process start-up.

Arrays name their axes by meaning ("heads", "vocab"); `RULES` says which mesh axis each is split over. Batches and
targets go over "data" (and over "model", where it divides no heads); heads, neurons, features and the vocabulary over
"model"; everything else is replicated. To split parameters over both (models larger than one row of the mesh), pass
`rules={**RULES, "embed": "data"}`.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tcircuits.types import Array, InputError

AXES = ("data", "model")
DTYPES = ("float16", "bfloat16", "float32", "float64")
RULES: Mapping[str, str | None] = {
    "batch": "data",
    "targets": "data",
    "layers": None,
    "embed": None,
    "head": None,
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
    "vocab": "model",
    "feature": "model",
}


class HasAxes(Protocol):
    """What `shardings` reads of a spec: a shape, and one logical axis name or None for each of its axes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def axes(self) -> tuple[str | None, ...]:
        """Names."""
        ...


def make_mesh(shape: tuple[int, int] | None = None) -> Mesh:
    """A mesh over ("data", "model"), both axes automatic (the compiler chooses the sharding of what is computed).

    Args:
        shape: devices along each axis; None puts all devices on "model".

    Raises:
        InputError: the shape does not use every device exactly once.
    """
    n = jax.device_count()
    shape = (1, n) if shape is None else shape
    if len(shape) != len(AXES) or math.prod(shape) != n or min(shape) < 1:
        raise InputError(
            f"mesh shape {shape} does not cover the {n} devices; give (data, model) with data * model = {n}"
        )
    # By position, and with its axis types: newer releases renamed the first parameter and default to explicit axes.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition(spec: HasAxes, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> PartitionSpec:
    """Where the axes of one array go. An axis that its mesh axis does not divide evenly is replicated instead.

    Raises:
        ValueError: an axis name without a rule, or two axes of one array on the same mesh axis.
    """
    unknown = [a for a in spec.axes if a is not None and a not in rules]
    if unknown or len(spec.axes) != len(spec.shape):
        raise ValueError(f"axes {spec.axes} of shape {spec.shape}: no rule for {unknown}; there are {sorted(rules)}")
    names = [None if a is None else rules[a] for a in spec.axes]
    used = [n for n in names if n is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {spec.axes} put two axes of one array on one mesh axis: {names}")
    fits = (n is not None and size % mesh.shape[n] == 0 for n, size in zip(names, spec.shape, strict=True))
    return PartitionSpec(*(n if ok else None for n, ok in zip(names, fits, strict=True)))


def shardings(spec: Any, mesh: Mesh, rules: Mapping[str, str | None] = RULES) -> Any:
    """The tree `spec` (its leaves have `.shape` and `.axes`) with a `NamedSharding` in the place of each leaf."""
    return jax.tree.map(lambda s: NamedSharding(mesh, partition(s, mesh, rules)), spec)


def mesh_of(x: Any) -> Mesh | None:
    """The mesh of several devices that an array lies on, if that is one of `make_mesh`'s kind."""
    where = getattr(x, "sharding", None)
    mesh = where.mesh if isinstance(where, NamedSharding) else None
    if not isinstance(mesh, Mesh) or mesh.size == 1 or mesh.axis_names != AXES:
        return None
    return mesh if set(mesh.axis_types) == {AxisType.Auto} else None


@dataclass(frozen=True)
class Spread:
    """Axes of a mesh over which things of one kind are spread that do not depend on each other: targets, probes."""

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def n(self) -> int:
        """Parts."""
        return math.prod(self.mesh.shape[a] for a in self.axes)

    def __call__(self, x: Array, axis: int) -> Array:
        """In a program: `x` with one axis spread, where n divides it; the compiler decides on the others."""
        if self.n == 1 or x.shape[axis] % self.n:
            return x
        names = (self.axes if i == axis else PartitionSpec.UNCONSTRAINED for i in range(x.ndim))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*names)))

    def together(self, x: Array, model: int | None = None) -> Array:
        """In a program: `x` on every device, but for an axis that goes over "model" where that divides it."""
        on = None if model is None or x.shape[model] % self.mesh.shape["model"] else "model"
        names = (on if i == model else None for i in range(x.ndim))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*names)))


def positions_of(mesh: Mesh | None) -> Spread | None:
    """Where the positions of one prompt go while the model runs and features are encoded: over "data"."""
    return None if mesh is None or mesh.shape["data"] == 1 else Spread(mesh, ("data",))


def spread_of(mesh: Mesh | None, n_heads: int) -> Spread | None:
    """Where targets go: over "data", and over "model" too where that divides no heads and so would do nothing."""
    if mesh is None:
        return None
    return Spread(mesh, ("data",) if n_heads % mesh.shape["model"] == 0 else AXES)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array at a multiple of 64 bytes: on the CPU `jax.device_put` takes it over, and copies any other."""
    wanted = np.dtype(dtype)
    size = math.prod(shape) * wanted.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(wanted).reshape(shape)


def check_dtype(dtype: Any) -> np.dtype:
    """The dtype of parameters that a caller asked for.

    Raises:
        InputError: another kind of number, or 64 bits where JAX has only 32.
    """
    try:
        wanted = jnp.dtype(dtype)
    except TypeError:
        wanted = None
    if wanted is None or wanted.name not in DTYPES:
        raise InputError(f"dtype={dtype!r}; arrays can have {', '.join(DTYPES)}")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise InputError(f"dtype={wanted.name} needs 64-bit mode: jax.config.update('jax_enable_x64', True)")
    return wanted


def place(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding | None, fill: Any) -> jax.Array:
    """An array laid out by `sharding` of which this process makes only its own part; it needs no second copy of it.

    Args:
        shape: shape of the whole array.
        dtype: its dtype.
        sharding: where each part goes; None is the default device.
        fill: called once as `fill(parts)` with a list of (index, buffer); it writes the array's part into
            each buffer.
    """
    if sharding is None:
        whole = aligned(shape, dtype)
        fill([(tuple(slice(0, n) for n in shape), whole)])
        return jax.device_put(whole)
    where = sharding.addressable_devices_indices_map(shape)
    parts: dict[str, tuple[tuple[slice, ...], np.ndarray]] = {}
    for index in where.values():
        bounds = tuple(slice(*i.indices(n)) for i, n in zip(index or (), shape, strict=True))
        size = tuple(b.stop - b.start for b in bounds)
        if str(bounds) not in parts:
            parts[str(bounds)] = bounds, aligned(size, dtype)
    fill(list(parts.values()))
    arrays = []
    for device, index in where.items():
        bounds = tuple(slice(*i.indices(n)) for i, n in zip(index or (), shape, strict=True))
        arrays.append(jax.device_put(parts[str(bounds)][1], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def host(x: Any, dtype: Any = None) -> np.ndarray:
    """The whole array on this host; every process calls it, since what is spread over processes is gathered."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        from jax.experimental import multihost_utils

        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x, dtype)


def initialize() -> None:
    """Join the other processes of a run; does nothing in a run of one process. Call before anything uses a device.

    On a TPU slice, and under Slurm or MPI, JAX finds the others by itself: set `TCIRCUITS_DISTRIBUTED=1`. Elsewhere set
    `TCIRCUITS_COORDINATOR` (host:port of process 0), `TCIRCUITS_NUM_PROCESSES` and `TCIRCUITS_PROCESS_ID`.

    Raises:
        InputError: only some of the three are set, or they are no numbers in range.
    """
    names = ("TCIRCUITS_COORDINATOR", "TCIRCUITS_NUM_PROCESSES", "TCIRCUITS_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not given:
        if os.environ.get("TCIRCUITS_DISTRIBUTED") == "1":
            jax.distributed.initialize()
        return
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(f"{', '.join(given)} set, but not {', '.join(missing)}; set all three, or none")
    count, this = given[names[1]], given[names[2]]
    if not (count.isdecimal() and this.isdecimal() and int(this) < int(count)):
        raise InputError(f"{names[1]}={count!r} and {names[2]}={this!r} must be numbers with 0 <= id < number")
    jax.distributed.initialize(given[names[0]], num_processes=int(count), process_id=int(this))


def is_lead() -> bool:
    """Whether this process writes files and shows progress."""
    return jax.process_index() == 0

"""Devices to compile for: those of a TPU topology, which nobody needs to have, or forced devices of this host."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from tcircuits.attribution.memory import free_gb
from tcircuits.parallel import AXES
from tcircuits.planning.hardware import Device, Topology

MOST_FORCED = 64  # host devices beyond take long to start


def own_compiler(topology: Topology) -> bool:
    """Whether programs are compiled by the compiler of the devices themselves."""
    return topology.device.kind == "cpu" or (topology.device.tpu and find_spec("libtpu") is not None)


def prepare(topology: Topology, most: int) -> None:
    """Settings of the process, before it uses a device; `most` is the largest number that it will plan for."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # this is no TPU host
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    forced = topology.device.kind == "cpu" or not own_compiler(topology)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", most if forced else 1)
    jax.config.update("jax_enable_compilation_cache", False)  # a program that is read back has no text


def mesh_of(topology: Topology) -> Mesh:
    """All devices on the axis "model", as `make_mesh` has them."""
    if topology.device.tpu and own_compiler(topology):
        from jax.experimental import topologies

        # A slice of one chip has to say that its host has no more.
        alone: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if topology.devices == 1 else {}
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **alone).devices)
    else:
        devices = jax.devices("cpu")[: topology.devices]
    return Mesh(np.array(devices).reshape(1, -1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def measured(topology: Topology) -> Topology:
    """The topology with the figures of this machine's CPU, shared among its devices; all others as they are."""
    if topology.device.kind != "cpu":
        return topology
    return replace(topology, device=_share_of_cpu(topology.device, topology.devices))


def _share_of_cpu(device: Device, n: int) -> Device:
    size, numbers = 1024, 1 << 24
    square, long = jnp.ones((size, size), jnp.float32), jnp.ones(numbers, jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    negated = jax.jit(jnp.negative)
    flops = 2 * size**3 / _best(lambda: product(square)) / n
    bandwidth = 8 * numbers / _best(lambda: negated(long)) / n
    memory = 1e9 * free_gb() / n
    return replace(device, bfloat16=flops, float32=flops, memory=memory, bandwidth=bandwidth, link=bandwidth)


def _best(f: Callable[[], Any]) -> float:
    """Seconds of the best of some runs."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(f())
        seconds.append(time.perf_counter() - start)
    return min(seconds)

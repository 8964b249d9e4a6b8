"""Accelerators by name: the public figures of one device, and the slices in which they come.

>>> parse_topology("v5e:4x4").devices
16
>>> [t.name for t in larger_first("h100")]
['h100:8', 'h100:4', 'h100:2', 'h100:1']

Interconnect is what one device sends along one axis of the torus, both directions together (TPU), or to the switch
(GPU); a collective that uses more axes at once is faster than planned.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tcircuits.types import InputError

GIB = 2**30
# Attribution computes in float32 at the highest precision, which is six bfloat16 passes on a TPU (bfloat16_6x).
PASSES = 6


@dataclass(frozen=True)
class Device:
    """Figures of one device as JAX sees it.

    Attributes:
        bfloat16, float32: FLOP/s of products at the precision that attribution asks for.
        memory: bytes.
        bandwidth: bytes a second of that memory.
        link: bytes a second to other devices.
        per_chip: devices of a chip.
        sizes: topologies that exist.
    """

    kind: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    link: float
    sizes: tuple[str, ...]
    per_chip: int = 1

    @property
    def tpu(self) -> bool:
        """Whether it is one."""
        return "x" in self.sizes[0]


def _tpu(
    kind: str, flops: float, memory: float, bandwidth: float, link: float, sizes: str, per_chip: int = 1
) -> Device:
    return Device(kind, flops, flops / PASSES, memory, bandwidth, 2 * link, tuple(sizes.split()), per_chip)


_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_CUBES = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16"
_COUNTS = ("1", "2", "4", "8")
DEVICES: Mapping[str, Device] = {
    # cloud.google.com/tpu/docs: v4, v5e, v5p, v6e, tpu7x; bytes a second of one link and direction:
    # jax-ml.github.io/scaling-book, chapter "TPUs".
    "v4": _tpu("v4", 275e12, 32 * GIB, 1.2e12, 45e9, _CUBES),
    "v5e": _tpu("v5e", 197e12, 16 * GIB, 8.19e11, 45e9, _FLAT),
    "v5p": _tpu("v5p", 459e12, 95 * GIB, 2.765e12, 90e9, _CUBES),
    "v6e": _tpu("v6e", 918e12, 32 * GIB, 1.64e12, 90e9, _FLAT),
    # Two devices a chip; figures of one are half of the chip's 2307 TFLOP/s, 192 GiB, 7.38 TB/s, 1.2 TB/s over 6 links.
    "tpu7x": _tpu("tpu7x", 2307e12 / 2, 96 * GIB, 7.38e12 / 2, 50e9, _CUBES, 2),
    # NVIDIA data sheets, SXM modules, without sparsity; float32 outside of tensor cores; NVLink in one direction.
    "a100": Device("a100", 312e12, 19.5e12, 80e9, 2.039e12, 300e9, _COUNTS),
    "h100": Device("h100", 989e12, 67e12, 80e9, 3.35e12, 450e9, _COUNTS),
    "h200": Device("h200", 989e12, 67e12, 141e9, 4.8e12, 450e9, _COUNTS),
    "b200": Device("b200", 2250e12, 75e12, 180e9, 8e12, 900e9, _COUNTS),
    # Zeros are measured where the plan is made: no figure holds for every CPU.
    "cpu": Device("cpu", 0.0, 0.0, 0.0, 0.0, 0.0, ("1", "2", "4", "8", "16", "32", "64")),
}


@dataclass(frozen=True)
class Topology:
    """So many devices of one kind, in one shape."""

    device: Device
    size: str

    @property
    def name(self) -> str:
        """As it is written: `v5e:4x4`."""
        return f"{self.device.kind}:{self.size}"

    @property
    def devices(self) -> int:
        """Devices as JAX counts them."""
        return math.prod(map(int, self.size.split("x"))) * self.device.per_chip


def parse_topology(text: str) -> Topology:
    """A topology from its name.

    Raises:
        InputError: a kind or size that does not exist, with those that do.
    """
    kind, _, size = text.strip().lower().partition(":")
    if kind not in DEVICES:
        raise InputError(f"topology {text!r}: {kind!r} is no kind of device; there are {', '.join(DEVICES)} (v5e:4x4)")
    device = DEVICES[kind]
    if device.tpu and re.fullmatch(r"\d+", size):
        wanted = [s for s in device.sizes if math.prod(map(int, s.split("x"))) == int(size)]
        size = wanted[0] if wanted else size
    if size not in device.sizes:
        raise InputError(
            f"topology {text!r} does not exist; of {kind} there are {', '.join(f'{kind}:{s}' for s in device.sizes)}"
        )
    return Topology(device, size)


def larger_first(kind: str) -> list[Topology]:
    """All topologies of a kind, the largest first."""
    return sorted((Topology(DEVICES[kind], s) for s in DEVICES[kind].sizes), key=lambda t: -t.devices)

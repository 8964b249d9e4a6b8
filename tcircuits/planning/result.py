"""A plan: what each program takes on one device, whether it fits, how long it should run, and what would fit."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from tcircuits.planning.hardware import Device
from tcircuits.planning.host_memory import COMPILER

GRAPH = "graph: "
"""Before the names of a trace's programs in the plan of an extraction."""


@dataclass(frozen=True)
class Line:
    """One program: bytes of a device, and the work of all its runs on a device."""

    name: str
    runs: int
    held: int
    results: int
    workspace: int
    code: int
    flops: float
    n_bytes: float
    collectives: dict[str, float]
    moved: float
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes of a device while it runs."""
        return self.held + self.results + self.workspace + self.code

    @property
    def sweeps(self) -> bool:
        """Whether it is the program of a graph's rows."""
        return self.name.removeprefix(GRAPH).startswith("rows")


@dataclass(frozen=True)
class Plan:
    """What `attribute` or `extract` needs on a topology.

    Attributes:
        topology: as asked for.
        devices: how many, as JAX counts them.
        compiler: whose figures these are: `libtpu`, or `this host` for forced devices (an estimate elsewhere).
        capacity: bytes of memory of a device.
        persistent: bytes of parameters and dictionary on each device.
        lines: the programs in the order in which they run; those after one that does not fit are absent.
        edges: expected in the graph.
        host: bytes that rows and graph take on every host.
        whole: arrays that are not divided, because the number of devices does not divide their axis.
        refused: what the devices' compiler said where a program is too large for it, else empty.
        smallest: the smallest topology of the kind that fits, None where none does.
    """

    topology: str
    devices: int
    compiler: str
    capacity: float
    persistent: int
    lines: tuple[Line, ...]
    edges: int
    host: int
    whole: tuple[str, ...]
    refused: str = ""
    smallest: str | None = None

    @property
    def exact(self) -> bool:
        """Whether memory is that of the devices' own compiler."""
        return self.compiler == "libtpu" or self.topology.startswith("cpu")

    @property
    def shared(self) -> bool:
        """Whether devices and host are one memory."""
        return self.topology.startswith("cpu")

    @property
    def peak(self) -> int:
        """The most bytes that a device needs at once; on a CPU with its share of what the host holds."""
        device = max((line.memory for line in self.lines), default=self.persistent)
        if not self.shared:
            return device
        rows = [line.memory for line in self.lines if line.sweeps]
        return max(device + COMPILER // self.devices, max(rows, default=0) + self.host // self.devices)

    @property
    def needs(self) -> float:
        """Bytes that a device needs; where its compiler refused a program, what it would have used."""
        return max(float(self.peak), refused_bytes(self.refused))

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return not self.refused and self.peak <= self.capacity

    @property
    def seconds(self) -> float:
        """Estimated time of all programs, without compiling and the host's part."""
        return sum(line.seconds for line in self.lines)

    @property
    def device_hours(self) -> float:
        """Estimated time of all devices together."""
        return self.seconds * self.devices / 3600

    @property
    def flops(self) -> float:
        """Of one device."""
        return sum(line.flops for line in self.lines)

    @property
    def n_bytes(self) -> float:
        """Bytes that one device's memory gives and takes."""
        return sum(line.n_bytes for line in self.lines)

    @property
    def moved(self) -> float:
        """Bytes that collectives move from one device."""
        return sum(line.moved for line in self.lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, with what follows from the others."""
        more = {
            name: getattr(self, name)
            for name in ("exact", "peak", "needs", "fits", "seconds", "device_hours", "flops", "moved")
        }
        return asdict(self) | more


def refused_bytes(text: str) -> float:
    """Bytes that a compiler says a program would have used: `Used 34.49G of 15.75G hbm`."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", text)
    return 0.0 if found is None else float(found[1]) * 1024 ** (" KMGT".index(found[2]))


def seconds(device: Device, flops: float, n_bytes: float, moved: float) -> float:
    """The slower of arithmetic and memory, and after it what goes between devices; nothing overlaps that."""
    return max(flops / device.float32, n_bytes / device.bandwidth) + moved / device.link

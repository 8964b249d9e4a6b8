"""Writes graph files as circuit-tracer and PyTorch do, without them, with whatever a test wants in them."""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.opening import open_tensors

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "circuit_tracer_graphs"
STORAGES = {"float64": "Double", "float32": "Float", "bfloat16": "BFloat16", "int64": "Long", "int32": "Int"}


@dataclass
class Name:
    """A class or function of a module, called with arguments if there are any, given a state if there is one."""

    module: str
    name: str
    arguments: tuple | None = None
    state: dict | None = None


@dataclass
class View:
    """A tensor that says of itself what it likes."""

    data: np.ndarray
    shape: tuple
    strides: tuple


class Writer:
    """Opcodes of protocol 2; tensors go into `storages`."""

    def __init__(self) -> None:
        self.storages: list[bytes] = []

    def write(self, x: Any) -> bytes:
        """The opcodes that make a value."""
        match x:
            case None:
                return b"N"
            case bool():
                return b"\x88" if x else b"\x89"
            case int():
                return b"\x8a\x10" + x.to_bytes(16, "little", signed=True)
            case float():
                return b"G" + struct.pack(">d", x)
            case str():
                data = x.encode()
                return b"X" + struct.pack("<I", len(data)) + data
            case tuple() | list():
                return b"(" + b"".join(map(self.write, x)) + (b"t" if isinstance(x, tuple) else b"l")
            case dict():
                return b"}(" + b"".join(self.write(k) + self.write(v) for k, v in x.items()) + b"u"
            case Name():
                made = b"c" + f"{x.module}\n{x.name}\n".encode()
                made += b"" if x.arguments is None else self.write(x.arguments) + b"\x81"
                return made + (b"" if x.state is None else self.write(x.state) + b"b")
            case View():
                return self.tensor(x.data, x.shape, x.strides)
            case np.ndarray():
                steps = tuple(s // x.itemsize for s in np.ascontiguousarray(x).strides)
                return self.tensor(np.ascontiguousarray(x), x.shape, steps)
        raise TypeError(type(x))

    def tensor(self, data: np.ndarray, shape: tuple, strides: tuple) -> bytes:
        """A call of the function that makes tensors."""
        kind = Name("torch", STORAGES[data.dtype.name] + "Storage")
        storage = self.write(("storage", kind, str(len(self.storages)), "cpu", data.size)) + b"Q"
        self.storages.append(data.tobytes())
        rest = b"".join(map(self.write, (0, shape, strides, False))) + b"ccollections\nOrderedDict\n)R"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def write(path: Path, values: Any) -> Path:
    """A file that `torch.load` would read."""
    writer = Writer()
    pickle = b"\x80\x02" + writer.write(values) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("graph/data.pkl", pickle)
        archive.writestr("graph/byteorder", "little")
        archive.writestr("graph/version", "3\n")
        for i, data in enumerate(writer.storages):
            archive.writestr(f"graph/data/{i}", data)
    return path


def values_of(name: str) -> dict[str, Any]:
    """What is in a stored file, in a form that `write` takes."""
    file = open_tensors(FOLDER / f"{name}.pt")
    values = {key: file.read(key, None) for key in file.headers} | {k: v for k, v in file.about.items() if k != "cfg"}
    if "logit_targets" in file.about:
        of = ("circuit_tracer.attribution.targets", "LogitTarget")
        values["logit_targets"] = [Name(*of, arguments=tuple(t["__args__"])) for t in file.about["logit_targets"]]
    return values | {"cfg": config(**{k: v for k, v in file.about["cfg"].items() if not k.startswith("__")})}


def config(**fields: Any) -> Name:
    """A configuration of a model."""
    return Name("circuit_tracer.utils.tl_nnsight_mapping", "UnifiedConfig", (), fields)

"""Files written field by field, so that wrong ones can be written too."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np

from tcircuits.files.opening import open_tensors


def text(x: str) -> bytes:
    """A text in a pickle."""
    return b"X" + struct.pack("<I", len(x.encode())) + x.encode()


def call(module: str, name: str, arguments: bytes) -> bytes:
    """A call in a pickle; `arguments` are opcodes that leave a tuple."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R"


def pickled(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def archive(members, *, method=0, prefix=b"", changes=None, end=None) -> bytes:
    """A zip archive of (name, content) pairs; `changes[i]` replaces fields of member i's line in the list."""
    body, table = prefix, b""
    for i, (name, content) in enumerate(members):
        packed = content
        if method == 8:
            stream = zlib.compressobj(wbits=-15)
            packed = stream.compress(content) + stream.flush()
        fields = {
            "flags": 2048, "method": method, "crc": zlib.crc32(content), "packed": len(packed), "size": len(content),
            "start": len(body), "name": name.encode(),
        }  # fmt: skip
        own = dict(fields)
        fields |= (changes or {}).get(i, {})
        body += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 20, own["flags"], own["method"], 0, 33, own["crc"], own["packed"], own["size"],
            len(own["name"]), 0,
        )  # fmt: skip
        body += own["name"] + packed
        table += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, fields["flags"], fields["method"], 0, 33, fields["crc"], fields["packed"],
            fields["size"], len(fields["name"]), 0, 0, 0, 0, 0, fields["start"],
        )  # fmt: skip
        table += fields["name"]
    record = {"disk": 0, "count": len(members), "size": len(table), "start": len(body), "comment": 0} | (end or {})
    fields = (record["disk"], 0, record["count"], record["count"], record["size"], record["start"], record["comment"])
    return body + table + struct.pack("<4s4H2LH", b"PK\5\6", *fields)


def npy(array: np.ndarray, *, header: str | None = None, version=(1, 0)) -> bytes:
    order = array.flags.f_contiguous and array.ndim > 1
    said = header or str({"descr": array.dtype.str, "fortran_order": bool(order), "shape": array.shape})
    data = said.encode("latin-1") + b"\n"
    width = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + bytes(version) + len(data).to_bytes(width, "little") + data + array.tobytes("A")


def safetensors(header, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def torch_zip(value: bytes, storages=(), *, name="archive", method=0, order=b"little") -> bytes:
    """A zip file of PyTorch whose pickle has these opcodes."""
    members = [(f"{name}/data.pkl", pickled(value)), (f"{name}/byteorder", order)]
    return archive([*members, *((f"{name}/data/{i}", s) for i, s in enumerate(storages))], method=method)


def stored(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """Opcodes of a storage that lies outside of the pickle."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def number(n: int) -> bytes:
    return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(storage: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Opcodes of a tensor."""
    hooks = call("collections", "OrderedDict", b")")
    arguments = storage + number(offset) + numbers(*shape) + numbers(*strides) + b"\x89" + hooks
    return call("torch._utils", "_rebuild_tensor_v2", b"(" + arguments + b"t")


def read_all(path: Path, **options) -> dict[str, np.ndarray]:
    file = open_tensors(path, **options)
    return {name: file.read(name, None) for name in file.headers}

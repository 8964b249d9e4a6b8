"""NumPy's files: one array (`.npy`), or a zip archive of them (`.npz`). Objects are refused, never unpickled.

Source: NumPy's format description, versions 1.0, 2.0 and 3.0. The header is a Python dict in text; it is read by a
regular expression, since nothing but these three keys with these kinds of values can stand in it.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tcircuits.files.storage import MalformedError, Storage, part, read_bytes
from tcircuits.files.strided import DTYPES, Strided, check_shape, placed, read, row_major

MAGIC, MAX_HEADER = b"\x93NUMPY", 1 << 16
KINDS = {f"{d.kind}{d.itemsize}": name for name, d in DTYPES.items() if d.kind in "fciub"}
SHAPE = r"\(\s*+(?:\d{1,19}L?,\s*+)*+(?:\d{1,19}L?)?\s*+\)"
ITEM = rf"\s*+'(descr|fortran_order|shape)'\s*+:\s*+('[^'\\]{{1,16}}'|True|False|{SHAPE})\s*+"
HEADER = re.compile(rf"{{{ITEM},{ITEM},{ITEM},?\s*+}}\s*+")  # possessive: a hostile header takes linear time
MAX_TEXTS, MAX_TEXT = 1 << 20, 64 << 20  # bytes of an array of texts, and of one text alone


def open_array(storage: Storage) -> Strided | str | list[Any]:
    """One array: a tensor, or the texts of an array of texts.

    Raises:
        MalformedError: damaged, of another length than its header says, or an array of objects or records.
    """
    with storage.open() as fetch:
        start = read_bytes(fetch, storage, 0, min(12, storage.size))
        if start[:6] != MAGIC or len(start) < 12 or start[6] not in (1, 2, 3):
            raise MalformedError("it is no NumPy array of format version 1 to 3, or it is cut off")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(start[8 : 8 + width], "little")
        if length > MAX_HEADER:
            raise MalformedError(f"its NumPy header declares {length} bytes; up to {MAX_HEADER} are read")
        text = read_bytes(fetch, storage, 8 + width, length).decode("latin-1")
    descr, fortran, shape = _fields(text)
    data = part(storage, 8 + width + length, storage.size - 8 - width - length)
    return _texts(data, descr, shape) if descr[1:2] in "US" else _numbers(data, descr, fortran, shape)


def _fields(text: str) -> tuple[str, bool, tuple[int, ...]]:
    match = HEADER.fullmatch(text)
    fields = dict(zip(match.groups()[::2], match.groups()[1::2], strict=True)) if match else {}
    descr, order, shape = (fields.get(name, "") for name in ("descr", "fortran_order", "shape"))
    if descr[:1] != "'" or order not in ("True", "False") or shape[:1] != "(":
        if "'O'" in text or "|O" in text:
            raise MalformedError("it holds Python objects, which are not loaded; save arrays of numbers")
        raise MalformedError(f"its NumPy header is damaged or declares records: {text.strip()!r:.100}")
    return descr[1:-1], order == "True", tuple(int(n) for n in re.findall(r"\d+", shape))


def _numbers(data: Storage, descr: str, fortran: bool, shape: tuple[int, ...]) -> Strided:
    name = KINDS.get(descr[1:])
    if descr[:1] == "|" and descr[1:2] in "OV":
        what = "Python objects" if descr[1] == "O" else "raw bytes of a type that NumPy's files cannot name"
        raise MalformedError(f"it holds {what} ({descr!r}), which are not loaded; save arrays of numbers")
    if name is None or descr[:1] not in "<>|=":
        raise MalformedError(f"it holds values of type {descr!r}, which are not read")
    size = check_shape(shape, DTYPES[name].itemsize)
    if size != data.size:
        raise MalformedError(f"its header declares shape {shape} of {descr!r}, {size} bytes; it holds {data.size}")
    strides = row_major(shape[::-1])[::-1] if fortran else None
    return placed(data, name, shape, strides, swapped=descr[:1] == ">")


def _texts(data: Storage, descr: str, shape: tuple[int, ...]) -> str | list[Any]:
    """One text, or an array of texts as nested lists."""
    match = re.fullmatch(r"[<>|=]([US])(\d{1,9})", descr)
    width = int(match[2]) * (4 if match[1] == "U" else 1) if match else 0
    most = MAX_TEXTS if shape else MAX_TEXT
    if match is None or width == 0 or check_shape(shape, width) != data.size or data.size > most:
        raise MalformedError(f"it holds texts ({descr!r}, shape {shape}) in {data.size} bytes; up to {most} are read")
    if not data.size:
        return []
    raw = read(placed(data, "U8", (data.size,)))
    if match[1] == "S" and not shape:
        return raw.tobytes().rstrip(b"\0").decode("latin-1")
    if match[1] == "S":
        return np.char.decode(raw.view(f"S{match[2]}").reshape(shape), "latin-1").tolist()
    points = raw.view(">u4" if descr[0] == ">" else "<u4").astype("<u4", copy=False)
    if (points > 0x10FFFF).any():
        raise MalformedError("it holds texts that are damaged")
    return points.view(f"<U{match[2]}").reshape(shape).tolist()


def is_npz(members: Mapping[str, Storage]) -> bool:
    """Whether an archive holds arrays only."""
    return all(name.endswith(".npy") for name in members)


def open_npz(members: Mapping[str, Storage]) -> tuple[dict[str, Strided], dict[str, Any]]:
    """The arrays of an archive, and its texts.

    Raises:
        MalformedError: a member that is no array of numbers or texts.
    """
    tensors, about = {}, {}
    for member, storage in members.items():
        name = member.removesuffix(".npy")
        try:
            array = open_array(storage)
        except MalformedError as error:
            raise MalformedError(f"member {member!r:.80}: {error}") from error
        if isinstance(array, Strided):
            tensors[name] = array
        else:
            about[name] = array
    return tensors, about

"""safetensors: eight bytes with the header's length, the header as JSON, the tensors one behind the other.

Source: the format's description in its repository. Its rules are all checked: names are unique, tensors fill the file
without gaps, and each has as many bytes as its shape and type say.
"""

from typing import Any

from tcircuits.files.limits import MEMORY, Budget, parse_json
from tcircuits.files.storage import MIB, MalformedError, Storage, part, read_bytes
from tcircuits.files.strided import DTYPES, Strided, check_shape, placed

MAX_HEADER, MAX_NAME, RECORD = 100 * MIB, 1000, 1500  # RECORD: bytes that a tensor's entry takes here, rounded up
FIELDS = {"dtype", "shape", "data_offsets"}


def open_safetensors(storage: Storage) -> tuple[dict[str, Strided], dict[str, Any]]:
    """The tensors of a file, and the texts that its writer added, under "__metadata__".

    Raises:
        MalformedError: a damaged or cut-off file, or types of tensors that are not read.
    """
    with storage.open() as fetch:
        length = int.from_bytes(read_bytes(fetch, storage, 0, 8), "little")
        if length > min(MAX_HEADER, storage.size - 8):
            raise MalformedError(
                f"it is no safetensors file, or cut off: its header declares {length} bytes of {storage.size}"
            )
        text = read_bytes(fetch, storage, 8, length)
    budget = Budget(MEMORY + 2 * storage.size)
    budget.spend(RECORD * text.count(b"data_offsets"))
    header = parse_json(text, budget, _unique)
    if not isinstance(header, dict):
        raise MalformedError("its header is no JSON object")
    about = header.pop("__metadata__", None)
    if about is not None and not (isinstance(about, dict) and all(isinstance(v, str) for v in about.values())):
        raise MalformedError("its __metadata__ are not texts")
    data = part(storage, 8 + length, storage.size - 8 - length)
    return _tensors(data, header), {} if about is None else {"__metadata__": about}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise MalformedError("its header has the same name twice")
    return values


def _tensors(data: Storage, header: dict[str, Any]) -> dict[str, Strided]:
    spans, tensors = [], {}
    for name, entry in header.items():
        if len(name) > MAX_NAME:
            raise MalformedError(f"its header has a name of {len(name)} letters")
        if not isinstance(entry, dict) or entry.keys() != FIELDS:
            raise MalformedError(f"its header says of {name!r:.80} something else than {', '.join(sorted(FIELDS))}")
        dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise MalformedError(f"its tensor {name!r:.80} is of type {dtype!r:.40}, which is not read")
        whole = isinstance(span, list) and len(span) == 2 and all(type(n) is int and n >= 0 for n in span)
        if not whole or not isinstance(shape, list):
            raise MalformedError(f"its header gives {name!r:.80} no place or shape")
        if check_shape(tuple(shape), DTYPES[dtype].itemsize) != span[1] - span[0]:
            raise MalformedError(f"its tensor {name!r:.80} of {dtype} {shape!s:.80} does not have bytes {span}")
        spans.append(span)
        tensors[name] = placed(part(data, span[0], span[1] - span[0]), dtype, tuple(shape))
    end = 0
    for span in sorted(spans):
        if span[0] != end:
            raise MalformedError(f"its tensors overlap or leave gaps at byte {min(span[0], end)}")
        end = span[1]
    if end != data.size:
        raise MalformedError(f"its tensors end at byte {end} of {data.size}")
    return tensors


def begins(start: bytes) -> bool:
    """Whether a file can be of this format, by its first bytes."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER

"""Pickles one behind the other: PyTorch's format before 1.6, and plain pickles of the standard library.

A stream of PyTorch is a magic number, a protocol version, facts about the machine, the value, the keys of its storages
(each a pickle), and then for each key the number of values and the values. A plain pickle is only a value; its tensors'
storages stand inside as byte strings, each a stream (or zip file) of its own.

Source: what `torch.save(..., _use_new_zipfile_serialization=False)` of PyTorch 2.13 writes.
"""

from typing import Any

from tcircuits.files import torch_zip, zip_archive
from tcircuits.files.limits import Budget
from tcircuits.files.pickle_machine import run
from tcircuits.files.pickles import MEMORY, Reader, Stored, stored_of
from tcircuits.files.plain import parted
from tcircuits.files.storage import MalformedError, Storage, part, read_bytes
from tcircuits.files.strided import DTYPES, Strided

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Reader(Reader):
    """Storages follow the pickle; they are noted by key."""

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self.found: dict[str, Stored] = {}

    def persistent(self, name: Any) -> Stored:
        """The storage of that name, whole or the part that a view names.

        Raises:
            MalformedError: names that contradict each other.
        """
        key, new, view = stored_of(name)
        stored = self.found.setdefault(key, new)
        if (stored.dtype, stored.size) != (new.dtype, new.size):
            raise MalformedError(f"it names the storage {key!r:.80} in two ways")
        if view is None:
            return stored
        item = DTYPES[stored.dtype].itemsize if stored.dtype else 1
        match view:
            case (str(), int(start), int(count)) if min(start, count) >= 0 and (start + count) * item <= stored.size:
                return Stored(stored.dtype, count * item, base=stored, start=start * item)
        raise MalformedError(f"it has a view of the storage {key!r:.80} that is not inside of it")


def load(storage: Storage, budget: Budget, max_decoded: int | None, *, inner: bool = False) -> Any:
    """The value in a plain pickle or in a stream, with records for tensors.

    Raises:
        MalformedError: damaged, cut off, or more than values and tensors.
    """

    def load_bytes(data: Storage) -> Any:
        with data.open() as fetch:
            start = read_bytes(fetch, data, 0, min(4, data.size))
        if start == b"PK\3\4":
            return torch_zip.load(zip_archive.members(data, max_decoded), budget)
        return load(data, budget, max_decoded, inner=True)

    value, at = run(storage, 0, Reader(budget, None if inner else load_bytes), budget)
    if type(value) is int and value == MAGIC:
        return _stream(storage, at, budget)
    if at != storage.size:
        raise MalformedError("bytes follow the end of its pickle")
    return value


def _stream(storage: Storage, at: int, budget: Budget) -> Any:
    plain, reader = Reader(budget), _Reader(budget)
    version, at = run(storage, at, plain, budget)
    facts, at = run(storage, at, plain, budget)
    if version != VERSION or not isinstance(facts, dict) or type(facts.get("little_endian")) is not bool:
        raise MalformedError(f"it is a stream of PyTorch of version {version!s:.20}; {VERSION} is read")
    value, at = run(storage, at, reader, budget)
    keys, at = run(storage, at, plain, budget)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or sorted(keys) != sorted(reader.found):
        raise MalformedError("its list of storages is not the list of those that its tensors name")
    little = facts["little_endian"]
    with storage.open() as fetch:
        for key in keys:
            stored = reader.found[key]
            item = DTYPES[stored.dtype].itemsize if stored.dtype else 1
            count = int.from_bytes(read_bytes(fetch, storage, at, 8), "little" if little else "big", signed=True)
            if count * item != stored.size:
                raise MalformedError(f"its storage {key!r:.80} has {count} values, not {stored.size // item}")
            stored.data, stored.big_endian = part(storage, at + 8, stored.size), not little
            at += 8 + stored.size
    if at != storage.size:
        raise MalformedError("bytes follow the last of its storages")
    return value


def open_pickle(storage: Storage, max_decoded: int | None) -> tuple[dict[str, Strided], dict[str, Any]]:
    """Tensors and other values of a file of pickles.

    Raises:
        MalformedError: see `load` and `plain.parted`.
    """
    budget = Budget(MEMORY + 3 * storage.size)
    return parted(load(storage, budget, max_decoded), budget, max_decoded)

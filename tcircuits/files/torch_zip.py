"""PyTorch's zip files: `NAME/data.pkl` says what there is, `NAME/data/KEY` are the storages, any NAME.

Source: what `torch.save` of PyTorch 1.6 to 2.13 writes.
"""

from collections.abc import Mapping
from typing import Any

from tcircuits.files.limits import Budget
from tcircuits.files.pickle_machine import run
from tcircuits.files.pickles import MEMORY, Reader, Stored, stored_of
from tcircuits.files.plain import parted
from tcircuits.files.storage import MalformedError, Storage, read_bytes
from tcircuits.files.strided import Strided

PICKLE = "/data.pkl"


class _Reader(Reader):
    """Storages are members of the archive."""

    def __init__(self, budget: Budget, folder: str, members: Mapping[str, Storage], swapped: bool) -> None:
        super().__init__(budget)
        self.folder, self.members, self.swapped = folder, members, swapped
        self.found: dict[str, Stored] = {}

    def persistent(self, name: Any) -> Stored:
        """The storage of that name.

        Raises:
            MalformedError: it is not there, or has another length than the pickle says.
        """
        key, stored, _ = stored_of(name)
        data = self.members.get(f"{self.folder}/data/{key}")
        if data is None or data.size != stored.size:
            size = "is missing" if data is None else f"has {data.size} bytes instead of {stored.size}"
            raise MalformedError(f"its storage {key!r:.80} {size}")
        stored.data, stored.big_endian = data, self.swapped
        return self.found.setdefault(f"{key} {stored.dtype}", stored)


def is_torch(members: Mapping[str, Storage]) -> bool:
    """Whether an archive is one of PyTorch."""
    return any(name.endswith(PICKLE) and name.count("/") == 1 for name in members)


def load(members: Mapping[str, Storage], budget: Budget) -> Any:
    """The value in the archive, with records for tensors.

    Raises:
        MalformedError: damaged, with a program inside (TorchScript), or more than values and tensors.
    """
    folders = [name.removesuffix(PICKLE) for name in members if name.endswith(PICKLE) and name.count("/") == 1]
    if len(folders) != 1:
        raise MalformedError(f"it has {len(folders)} files data.pkl; one is read")
    folder = folders[0]
    if f"{folder}/constants.pkl" in members:
        raise MalformedError(
            "it is a TorchScript program; save the state dict alone: torch.save(model.state_dict(), path)"
        )
    order = _small(members.get(f"{folder}/byteorder"))
    if order not in (b"", b"little", b"big"):
        raise MalformedError(f"it states the byte order {order!r}")
    pickle = members[folder + PICKLE]
    value, end = run(pickle, 0, _Reader(budget, folder, members, order == b"big"), budget)
    if end != pickle.size:
        raise MalformedError("bytes follow the end of its pickle")
    return value


def _small(member: Storage | None) -> bytes:
    if member is None:
        return b""
    with member.open() as fetch:
        return read_bytes(fetch, member, 0, min(member.size, 16))


def open_torch_zip(
    members: Mapping[str, Storage], size: int, max_decoded: int | None
) -> tuple[dict[str, Strided], dict[str, Any]]:
    """Tensors and other values of an archive out of a file of `size` bytes.

    Raises:
        MalformedError: see `load` and `plain.parted`.
    """
    budget = Budget(MEMORY + 3 * size)
    return parted(load(members, budget), budget, max_decoded)

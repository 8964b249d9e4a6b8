"""Zip archives: the list of members, checked whole before any of them is read.

Only what NumPy and PyTorch write is read: stored or deflated members in one file, listed at its end. Offsets and sizes
come from that list; each member's own header must agree in place and name, and members must not overlap.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tcircuits.files.storage import (
    MIB,
    Fetch,
    MalformedError,
    Storage,
    check_decoded,
    inflated,
    part,
    read_bytes,
    summed,
)

END, END64, LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
ENTRY, LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
ENCRYPTED, UTF8, STORED, DEFLATED = 1 | 1 << 5 | 1 << 6 | 1 << 13, 1 << 11, 0, 8
MAX_MEMBERS, MAX_LIST, MAX_NAME = 1 << 16, 16 * MIB, 1024
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Member:
    """One line of the list."""

    name: str
    raw_name: bytes
    method: int
    crc: int
    packed: int
    size: int
    start: int  # of its own header


class Members(Mapping[str, Storage]):
    """What each member decodes to, by name; made when asked for, since an archive may list tens of thousands."""

    def __init__(self, storage: Storage, entries: Mapping[str, tuple[_Member, int]]) -> None:
        self.storage, self.entries = storage, entries

    def __getitem__(self, name: str) -> Storage:
        """One member."""
        entry, start = self.entries[name]
        packed, what = part(self.storage, start, entry.packed), f"its member {name!r:.80}"
        if entry.method == DEFLATED:
            return inflated(packed, entry.size, entry.crc, what)
        # PyTorch writes 0 where it was told to leave out checksums; of other members one in four billion has that sum.
        return summed(packed, entry.crc, what) if entry.crc else packed

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self.entries)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.entries)


def members(storage: Storage, max_decoded: int | None) -> Members:
    """What each member decodes to, by name; folders are left out.

    Raises:
        MalformedError: a damaged, cut-off or hostile archive.
    """
    with storage.open() as fetch:
        entries, end = _entries(fetch, storage)
        found: dict[str, tuple[_Member, int]] = {}
        for entry in entries:
            if entry.name in found:
                raise MalformedError(f"its member {entry.name!r:.80} stands twice")
            found[entry.name] = entry, _data_start(fetch, storage, entry)
    deflated = [e for e in entries if e.method == DEFLATED]
    check_decoded(sum(e.size for e in deflated), sum(e.packed for e in deflated), max_decoded)
    entries.sort(key=lambda e: e.start)
    for entry, limit in zip(entries, [*(e.start for e in entries[1:]), end], strict=True):
        if found[entry.name][1] + entry.packed > limit:
            raise MalformedError(f"its member {entry.name!r:.80} overlaps the next one")
    return Members(storage, {name: x for name, x in found.items() if not name.endswith("/")})


def _data_start(fetch: Fetch, storage: Storage, entry: _Member) -> int:
    """Where a member's bytes begin, behind its own header."""
    what = f"its member {entry.name!r:.80}"
    header = read_bytes(fetch, storage, entry.start, LOCAL.size)
    sign, _, _, method, _, _, _, _, _, n_name, n_extra = LOCAL.unpack(header)
    if sign != b"PK\3\4" or method != entry.method or n_name != len(entry.raw_name):
        raise MalformedError(f"{what} is not where the archive's list says")
    if read_bytes(fetch, storage, entry.start + LOCAL.size, n_name) != entry.raw_name:
        raise MalformedError(f"{what} has another name than in the archive's list")
    return entry.start + LOCAL.size + n_name + n_extra


def _entries(fetch: Fetch, storage: Storage) -> tuple[list[_Member], int]:
    """The list of members, and where it begins."""
    count, start, size = _end(fetch, storage)
    if count > MAX_MEMBERS or size > MAX_LIST:
        raise MalformedError(
            f"its list has {count} members in {size} bytes; up to {MAX_MEMBERS} in {MAX_LIST} are read"
        )
    table = read_bytes(fetch, storage, start, size)
    entries, at = [], 0
    for _ in range(count):
        entry, at = _entry(table, at)
        entries.append(entry)
    if at != len(table):
        raise MalformedError("its list of members is longer than it declares")
    return entries, start


def _end(fetch: Fetch, storage: Storage) -> tuple[int, int, int]:
    """Number of members, place and length of their list, from the record at the end of the file."""
    tail = read_bytes(fetch, storage, storage.size - (n := min(storage.size, END.size + FULL16)), n)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + END.size > len(tail):
        raise MalformedError("it is a zip archive that was cut off: it has no list of members at its end")
    _, disk, first, here, count, size, start, comment = END.unpack_from(tail, at)
    if at + END.size + comment != len(tail) or (disk, first) != (0, 0) or here != count:
        raise MalformedError("the record at the end of the zip archive is damaged")
    where = storage.size - len(tail) + at
    if at >= LOCATOR.size and tail[at - LOCATOR.size :][:4] == b"PK\6\7":
        place = LOCATOR.unpack_from(tail, at - LOCATOR.size)[2]
        sign, _, _, _, _, _, _, count, size, start = END64.unpack(read_bytes(fetch, storage, place, END64.size))
        if sign != b"PK\6\6" or place + END64.size > where - LOCATOR.size:
            raise MalformedError("the record at the end of the zip archive is damaged")
        where = place
    if start + size != where:
        raise MalformedError("the zip archive's list of members is not where its end says")
    return count, start, size


def _entry(table: bytes, at: int) -> tuple[_Member, int]:
    """One line of the list, and where the next begins."""
    if at + ENTRY.size > len(table):
        raise MalformedError("its list of members is cut off")
    fields = ENTRY.unpack_from(table, at)
    sign, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, disk, _, _, start = fields
    end = at + ENTRY.size + n_name + n_extra + n_comment
    if sign != b"PK\1\2" or disk not in (0, FULL16) or end > len(table):
        raise MalformedError("its list of members is damaged")
    raw = table[at + ENTRY.size :][:n_name] if n_name <= MAX_NAME else b""
    extra = table[at + ENTRY.size + n_name : end - n_comment]
    size, packed, start = _wide(extra, size, packed, start)
    entry = _Member(_name(raw, flags), raw, method, crc, packed, size, start)
    if flags & ENCRYPTED or method not in (STORED, DEFLATED) or (method == STORED and packed != size):
        raise MalformedError(
            f"its member {entry.name!r:.80} is encrypted, damaged or compressed in a way that is not read"
        )
    return entry, end


def _wide(extra: bytes, size: int, packed: int, start: int) -> tuple[int, int, int]:
    """Sizes and place of a member, from the 64-bit field where they need one."""
    at, values = 0, [size, packed, start]
    while FULL32 in values and at + 4 <= len(extra):
        kind, n = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(n, len(extra) - at) // 8}Q", extra, at))
            size, packed, start = (next(wide, v) if v == FULL32 else v for v in values)
            break
        at += n
    return size, packed, start


def _name(raw: bytes, flags: int) -> str:
    """A member's name; only plain relative paths are allowed."""
    try:
        name = raw.decode("utf-8" if flags & UTF8 else "cp437")
    except UnicodeDecodeError:
        raise MalformedError("a member of the zip archive has a name that is no text") from None
    parts = name.removesuffix("/").split("/")
    if "\0" in name or "\\" in name or any(p in ("", ".", "..") for p in parts) or name[1:2] == ":":
        raise MalformedError(f"a member of the zip archive has the name {name!r:.80}, which is no plain relative path")
    return name

"""Bytes of known number, read a stretch at a time: a file, a part of one, or what a decoder makes of it.

All containers are read through this, so that none of them depends on where its bytes are, and every stretch is compared
with the bytes that exist before memory is asked for.
"""

import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20  # bytes that a decoder makes at a time
HEADER = 1 << 16  # bytes that may stand before the numbers of a member
MIB, GIB = 1 << 20, 1 << 30

Fetch = Callable[[int, memoryview], None]
"""Fills a buffer with the bytes from a place on."""


class MalformedError(Exception):
    """What is wrong with a file, in words; whoever knows the path makes an `InputError` of it."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that can be read.

    Attributes:
        size: how many there are.
        open: gives a `Fetch` for as long as the context lasts. Places that ascend are read in one pass; where a
            decoder stands between, going back starts it again.
    """

    size: int
    open: Callable[[], AbstractContextManager[Fetch]]


def of_file(path: Path) -> Storage:
    """A whole file, opened anew for each reading, so that no descriptor stays open.

    Raises:
        MalformedError: it is missing or no regular file.
    """
    try:
        if not path.is_file():
            raise MalformedError("there is no such file" if not path.exists() else "it is no file")
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise MalformedError(f"it cannot be read: {error}") from error

    @contextmanager
    def opened() -> Generator[Fetch]:
        with path.open("rb", buffering=0) as file:

            def fetch(at: int, buffer: memoryview) -> None:
                file.seek(at)
                while len(buffer):
                    n = file.readinto(buffer)
                    if not n:
                        raise MalformedError("it became shorter while it was read")
                    buffer = buffer[n:]

            yield fetch

    return Storage(size, opened)


def of_chunks(chunks: Sequence[bytes]) -> Storage:
    """Bytes in memory, in pieces of `CHUNK` (the last may be shorter)."""

    @contextmanager
    def opened() -> Generator[Fetch]:
        yield fetch

    def fetch(at: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            i, start = divmod(at + done, CHUNK)
            piece = memoryview(chunks[i])[start : start + len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    return Storage(sum(map(len, chunks)), opened)


def of_bytes(data: bytes) -> Storage:
    """Bytes in memory."""
    return of_chunks([data[i : i + CHUNK] for i in range(0, len(data), CHUNK)])


def part(storage: Storage, start: int, size: int) -> Storage:
    """A stretch of a storage.

    Raises:
        MalformedError: it is not all there.
    """
    if start < 0 or size < 0 or start + size > storage.size:
        raise MalformedError(f"it has {storage.size} bytes, and bytes {start} to {start + size} are asked for")

    @contextmanager
    def opened() -> Generator[Fetch]:
        with storage.open() as fetch:
            yield lambda at, buffer: fetch(start + at, buffer)

    return Storage(size, opened)


def read_bytes(fetch: Fetch, storage: Storage, start: int, size: int) -> bytes:
    """A few bytes.

    Raises:
        MalformedError: they are not all there.
    """
    if start < 0 or size < 0 or start + size > storage.size:
        raise MalformedError("it is cut off")
    buffer = bytearray(size)
    if size:
        fetch(start, memoryview(buffer))
    return bytes(buffer)


class _Summed:
    """Compares a checksum where all bytes pass in order, or all in one but a short header, which is read for that."""

    def __init__(self, fetch: Fetch, size: int, crc: int, what: str) -> None:
        self.fetch, self.size, self.crc, self.what = fetch, size, crc, what
        self.at, self.sum = 0, 0

    def pass_on(self, data: memoryview) -> None:
        self.at, self.sum = self.at + len(data), zlib.crc32(data, self.sum)
        if self.at == self.size and self.sum != self.crc:
            raise MalformedError(f"the checksum of {self.what} does not fit its bytes")

    def __call__(self, at: int, buffer: memoryview) -> None:
        self.fetch(at, buffer)
        if self.at == 0 < at <= HEADER and at + len(buffer) == self.size:
            header = memoryview(bytearray(at))
            self.fetch(0, header)
            self.pass_on(header)
        if at == self.at:
            self.pass_on(buffer)


def summed(storage: Storage, crc: int, what: str) -> Storage:
    """A storage whose CRC-32 is compared when a reader takes all of it."""

    @contextmanager
    def opened() -> Generator[Fetch]:
        with storage.open() as fetch:
            yield _Summed(fetch, storage.size, crc, what)

    return Storage(storage.size, opened)


class _Inflater:
    """Decodes a raw deflate stream from the start on, as far as somebody reads."""

    def __init__(self, fetch: Fetch, packed: int, size: int, crc: int, what: str) -> None:
        self.fetch, self.packed, self.size, self.crc, self.what = fetch, packed, size, crc, what
        self.restart()

    def restart(self) -> None:
        self.stream, self.input, self.taken = zlib.decompressobj(-zlib.MAX_WBITS), b"", 0
        self.at, self.sum = 0, 0

    def more(self, limit: int) -> bytes:
        """Up to `limit` further bytes; none at the end of the stream."""
        while True:
            if not self.input and self.taken < self.packed:
                block = bytearray(min(CHUNK // 4, self.packed - self.taken))
                self.fetch(self.taken, memoryview(block))
                self.input, self.taken = bytes(block), self.taken + len(block)
            try:
                data = self.stream.decompress(self.input, limit)
            except zlib.error as error:
                raise MalformedError(f"{self.what} is no intact deflate stream: {error}") from error
            self.input = self.stream.unconsumed_tail
            if data or self.stream.eof or (not self.input and self.taken >= self.packed):
                return data

    def __call__(self, at: int, buffer: memoryview) -> None:
        if at < self.at:
            self.restart()
        end = at + len(buffer)
        while self.at < end:
            data = self.more(min(CHUNK, (at if self.at < at else end) - self.at))
            if not data:
                raise MalformedError(f"{self.what} decodes to {self.at} bytes, not to the {self.size} that it declares")
            if self.at >= at:
                buffer[self.at - at : self.at - at + len(data)] = data
            self.at, self.sum = self.at + len(data), zlib.crc32(data, self.sum)
        if self.at == self.size:
            self.finish()

    def finish(self) -> None:
        if self.more(1) or not self.stream.eof:
            raise MalformedError(f"{self.what} decodes to other than the {self.size} bytes that it declares")
        if self.sum != self.crc:
            raise MalformedError(f"the checksum of {self.what} does not fit its bytes")


def inflated(storage: Storage, size: int, crc: int, what: str) -> Storage:
    """What a raw deflate stream decodes to; size and CRC-32 are compared at its end."""

    @contextmanager
    def opened() -> Generator[Fetch]:
        with storage.open() as fetch:
            yield _Inflater(fetch, storage.size, size, crc, what)

    return Storage(size, opened)


def check_decoded(size: int, packed: int, max_decoded: int | None) -> None:
    """Refuse `size` bytes out of `packed` ones where that is more than a caller allows, or plausible without a word.

    Raises:
        MalformedError: too much; the message names the option.
    """
    allowed = min(8 * GIB, 1000 * packed + 64 * MIB) if max_decoded is None else max_decoded
    if size > allowed:
        raise MalformedError(
            f"it has {packed} bytes and would decode to {size} or more; above {allowed} give max_decoded= as many "
            "bytes as you expect"
        )


def gunzipped(storage: Storage, max_decoded: int | None) -> Storage:
    """All that a gzip file decodes to, held in memory once.

    Raises:
        MalformedError: damaged or cut off, or more than `check_decoded` allows.
    """
    chunks, open_chunk, size = [], bytearray(), 0
    with storage.open() as fetch:
        for data in _gunzip(fetch, storage.size):
            size += len(data)
            check_decoded(size, storage.size, max_decoded)
            open_chunk += data
            while len(open_chunk) >= CHUNK:
                chunks.append(bytes(open_chunk[:CHUNK]))
                del open_chunk[:CHUNK]
    return of_chunks([*chunks, bytes(open_chunk)])


def first_gunzipped(storage: Storage, n: int) -> bytes:
    """The first `n` bytes that a gzip file decodes to, or what `CHUNK` / 4 packed bytes give of them.

    Raises:
        MalformedError: it is damaged there.
    """
    with storage.open() as fetch:
        packed = read_bytes(fetch, storage, 0, min(CHUNK // 4, storage.size))
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, n)
    except zlib.error as error:
        raise MalformedError(f"it is no intact gzip file: {error}") from error


def _gunzip(fetch: Fetch, size: int) -> Iterator[bytes]:
    """The decoded bytes of all members, at most `CHUNK` at a time; zeros may follow the last."""
    stream, at, block, data = zlib.decompressobj(zlib.MAX_WBITS | 16), 0, b"", b""
    while at < size or block or (data and not stream.eof):
        if not block and at < size:
            buffer = bytearray(min(CHUNK // 4, size - at))
            fetch(at, memoryview(buffer))
            block, at = bytes(buffer), at + len(buffer)
        if stream.eof:
            block, data = block.lstrip(b"\0"), b""
            if not block:
                continue
            stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            data = stream.decompress(block, CHUNK)
        except zlib.error as error:
            raise MalformedError(f"it is no intact gzip file: {error}") from error
        block = stream.unused_data if stream.eof else stream.unconsumed_tail
        if data:
            yield data
    if not stream.eof:
        raise MalformedError("it is a gzip file that was cut off")

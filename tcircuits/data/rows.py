"""Token ids as rows of equal length, reached by number: row 12,345,678 costs no more than row 0.

All documents of a part (training, held out) follow one another, each with the separator that the file gives it; that
stream is cut into pieces of `context - 1` tokens, and a row is the BOS token and one piece. What a row holds is a pure
function of the file, the context, the seed and the row's number: row r is piece p_e(r mod n) of epoch e = r div n, with
n pieces and a permutation p_e for each epoch. So the data position of a run is one integer, and any process can read
any rows. The tokens after the last whole piece (fewer than `context`) are in no row.

Position 0 of every row is excluded from losses and figures. Where the tokenizer has no BOS token, pieces have `context`
tokens and their first takes that place: it is read, but nothing is trained or measured at it.

    train, held_out = train_and_held_out(open_tokens("prose.tokens"), 128)
    train.rows(0, 32)  # [32, 128]
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from tcircuits.data.permute import key_of, permuted
from tcircuits.data.tokens import TokenFile
from tcircuits.types import InputError

Part = Literal["all", "train", "held_out"]
Bos = Literal["auto", "add", "none"]
PARTS, BOS = ("all", "train", "held_out"), ("auto", "add", "none")
LARGEST = 2**62  # row numbers are below it
SHUFFLE, SPLIT = 1, 2  # what a key is for


class RowSource(Protocol):
    """Whatever gives rows by number: `Rows`, `Mixture`."""

    @property
    def context(self) -> int:
        """Tokens in a row."""
        ...

    @property
    def vocab_size(self) -> int:
        """All ids are below it."""
        ...

    @property
    def first_token(self) -> int | None:
        """The BOS token that every row begins with; None where rows begin with text."""
        ...

    def rows(self, first: int, n: int) -> np.ndarray:
        """Rows `first` to `first + n - 1`: int32 [n, context]."""
        ...

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of any numbers, int64 [n]: int32 [n, context]."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that decides what rows hold, as plain values: a run that resumes compares it."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one file.

    Args:
        tokens: the file.
        context: tokens in a row, the BOS token included.
        seed: of the order of rows, below 2**64.
        part: `train` and `held_out` share no document; `all` takes every one.
        held_out: share of the documents that are held out.
        split_seed: which ones; the same for every `seed`, so that runs are evaluated on what none of them saw.
        bos: `auto` begins rows with the BOS token where there is one, `none` never, `add` demands one.

    Raises:
        InputError: a context below 2, shares or seeds out of range, a part that does not fill one row.
    """

    tokens: TokenFile
    context: int
    seed: int = 0
    part: Part = "all"
    held_out: float = 0.05
    split_seed: int = 0
    bos: Bos = "auto"
    # The stream: where each stretch of neighbouring documents begins in it, and how far it is from there to the file.
    _starts: np.ndarray = field(init=False, repr=False)
    _shifts: np.ndarray = field(init=False, repr=False)
    _length: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        starts, shifts, length = _stretches(self.tokens.ends, self.documents())
        for name, value in (("_starts", starts), ("_shifts", shifts), ("_length", length)):
            object.__setattr__(self, name, value)
        if not self.per_epoch:
            whose = {"all": "", "train": "the training part of ", "held_out": "the held-out part of "}[self.part]
            raise InputError(
                f"{whose}{self.tokens.path} has {length:,} tokens; one row of context {self.context} needs "
                f"{self.piece:,}: give more text, {'another share held out, ' if whose else ''}or a shorter context"
            )

    @property
    def first_token(self) -> int | None:
        """The BOS token that every row begins with; None where rows begin with text."""
        return None if self.bos == "none" else self.tokens.bos_id

    @property
    def vocab_size(self) -> int:
        """All ids are below it."""
        return self.tokens.vocab_size

    @property
    def piece(self) -> int:
        """Tokens of the text in each row."""
        return self.context if self.first_token is None else self.context - 1

    @property
    def per_epoch(self) -> int:
        """Rows that hold the whole part once."""
        return self._length // self.piece

    @property
    def n_tokens(self) -> int:
        """Tokens of the part, separators included."""
        return self._length

    def documents(self) -> np.ndarray:
        """Numbers of the documents of this part, ascending: int64 [*]."""
        if self.part == "all":
            return np.arange(self.tokens.n_documents)
        held = _held_out(self.tokens.hashes, self.held_out, self.split_seed)
        return np.flatnonzero(held if self.part == "held_out" else ~held)

    def rows(self, first: int, n: int) -> np.ndarray:
        """Rows `first` to `first + n - 1`: int32 [n, context].

        Raises:
            InputError: as `take`.
        """
        return self.take(in_order(first, n))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of any numbers, int64 [n]: int32 [n, context].

        Raises:
            InputError: a number below 0, or ids outside the vocabulary, which a damaged file can hold.
        """
        epoch, number = np.divmod(checked(numbers), self.per_epoch)
        ids = self._read(permuted(number, self.per_epoch, key_of(SHUFFLE, self.seed, epoch)))
        if ids.size and int(ids.max()) >= self.vocab_size:
            raise InputError(f"{self.tokens.path} is damaged: id {ids.max()} is outside 0..{self.vocab_size - 1}")
        if self.first_token is None:
            return ids
        return np.concatenate([np.full((len(ids), 1), self.first_token, np.int32), ids], axis=1)

    def describe(self) -> dict[str, Any]:
        """All that decides what rows hold, as plain values: a run that resumes compares it."""
        options = {name: getattr(self, name) for name in ("context", "seed", "part", "held_out", "split_seed", "bos")}
        return {"tokens": self.tokens.name, "digest": self.tokens.digest} | options

    def _read(self, pieces: np.ndarray) -> np.ndarray:
        """Ids of pieces of the stream [n]: int32 [n, piece]."""
        at = pieces[:, None] * self.piece + np.arange(self.piece)
        if len(self._starts) > 1:
            at = at + self._shifts[np.searchsorted(self._starts, at, side="right") - 1]
        else:
            at = at + self._shifts[0]
        return self.tokens.ids[at].astype(np.int32)


def train_and_held_out(
    tokens: TokenFile,
    context: int,
    seed: int = 0,
    *,
    held_out: float = 0.05,
    split_seed: int = 0,
    bos: Bos = "auto",
) -> tuple[Rows, Rows]:
    """Rows to train on and rows to evaluate on; no document, nor two equal documents, are in both.

    Raises:
        InputError: as `Rows`.
    """
    shared = (held_out, split_seed, bos)
    return Rows(tokens, context, seed, "train", *shared), Rows(tokens, context, seed, "held_out", *shared)


def local_rows(rows: RowSource, first: int, n: int, process_index: int, process_count: int) -> np.ndarray:
    """The part of rows `first` to `first + n - 1` that one process reads: int32 [n / process_count, context].

    The parts of all processes, one after the other, are `rows.rows(first, n)`.

    Raises:
        InputError: `n` is no multiple of the number of processes.
    """
    if not 0 <= process_index < process_count:
        raise InputError(f"process {process_index} is outside 0..{process_count - 1}")
    if n % process_count:
        raise InputError(f"{n} rows cannot be split evenly over {process_count} processes: give a multiple of them")
    share = n // process_count
    return rows.rows(first + process_index * share, share)


def in_order(first: int, n: int) -> np.ndarray:
    """The numbers `first` to `first + n - 1`, int64 [n].

    Raises:
        InputError: they leave 0..2**62.
    """
    if first < 0 or n < 0 or first + n > LARGEST:
        raise InputError(f"rows {first}..{first + n - 1}: numbers run from 0")
    return np.arange(first, first + n, dtype=np.int64)


def checked(numbers: np.ndarray) -> np.ndarray:
    """Row numbers, int64 [n].

    Raises:
        InputError: one is below 0.
    """
    numbers = np.asarray(numbers, np.int64)
    if numbers.size and int(numbers.min()) < 0:
        raise InputError(f"row {numbers.min()}: numbers run from 0")
    return numbers


def check_seed(name: str, seed: int) -> None:
    """Refuse what is no seed.

    Raises:
        InputError: a number outside 0..2**64 - 1.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"{name}={seed}: seeds are integers in 0..2**64 - 1")


def _check(rows: Rows) -> None:
    for name in ("seed", "split_seed"):
        check_seed(name, getattr(rows, name))
    if rows.part not in PARTS or rows.bos not in BOS:
        raise InputError(f"part={rows.part!r}, bos={rows.bos!r}; there are {', '.join(PARTS)}; {', '.join(BOS)}")
    if rows.context < 2:
        raise InputError(f"context={rows.context}: a row has at least 2 tokens, since the first is excluded")
    if rows.part != "all" and not 0 < rows.held_out < 1:
        raise InputError(f"held_out={rows.held_out} is a share of the documents: give a number between 0 and 1")
    if rows.bos == "add" and rows.tokens.bos_id is None:
        raise InputError(f"bos='add', but {rows.tokens.path} has no BOS token: use 'none'")


def _held_out(hashes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which documents are held out: bool [n_documents], at least one; equal documents always go together."""
    rank = key_of(SPLIT, seed, np.asarray(hashes))
    count = max(1, round(share * len(rank)))
    return rank <= np.partition(rank, count - 1)[count - 1]


def _stretches(ends: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The stream of some documents: starts in it, and shifts to the file, of their stretches [*]; its length."""
    if documents.size == 0:
        return np.zeros(1, np.int64), np.zeros(1, np.int64), 0
    begins = np.flatnonzero(np.diff(documents, prepend=-2) > 1)  # a stretch is of neighbours in the file
    head, last = documents[begins], documents[np.append(begins[1:], documents.size) - 1]
    from_ = np.where(head > 0, ends[np.maximum(head - 1, 0)], 0).astype(np.int64)
    lengths = ends[last].astype(np.int64) - from_
    starts = np.cumsum(lengths) - lengths
    return starts, from_ - starts, int(lengths.sum())

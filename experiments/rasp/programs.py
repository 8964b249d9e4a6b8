"""RASP programs by name: how each is written, and on which inputs it runs.

Programs marked `lib` are tracr's own (its `compiler.lib`), the others are written here. Nothing here imports tracr:
`Program.build` is given its modules (`rasp` the language, `lib` the library) by `experiments.rasp.compile`.

Sizes are chosen so that all inputs can be enumerated: every sequence over the vocabulary, or those that `keep` takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Program:
    """A program and its inputs.

    Attributes:
        build: makes the program from tracr's modules `rasp` and `lib`.
        vocab: its tokens.
        length: tokens of an input; the beginning-of-sequence token, which tracr asks for, comes on top.
        causal: queries see no later keys.
        keep: which of all sequences are inputs.
    """

    build: Callable[[Any, Any], Any]
    vocab: tuple[Any, ...] = ("a", "b", "c")
    length: int = 4
    causal: bool = False
    keep: Callable[[tuple[Any, ...]], bool] = lambda tokens: True

    @property
    def inputs(self) -> list[tuple[Any, ...]]:
        """All inputs, in the order of the vocabulary."""
        return [tokens for tokens in product(self.vocab, repeat=self.length) if self.keep(tokens)]


def _unique(tokens: tuple[Any, ...]) -> bool:
    return len(set(tokens)) == len(tokens)


def _clear(tokens: tuple[Any, ...]) -> bool:
    """What followed each token is the same at all its earlier places, so that induction has one answer."""
    followers = ({tokens[j + 1] for j in range(i) if tokens[j] == token} for i, token in enumerate(tokens))
    return all(len(f) <= 1 for f in followers)


def _broadcast(r: Any, sop: Any, position: int) -> Any:
    """The value at one position, everywhere."""
    return r.Aggregate(r.Select(r.indices, r.indices, lambda k, q: k == position), sop)


def _number(r: Any, flags: Any) -> Any:
    """How many positions have a flag, everywhere."""
    return r.SelectorWidth(r.Select(flags, r.tokens, lambda k, q: bool(k)))


def _shift(r: Any, sop: Any, offset: int) -> Any:
    return r.Aggregate(r.Select(r.indices, r.indices, lambda k, q: q == k + offset), sop, default=None)


def _parity(r: Any, lib: Any) -> Any:
    return r.Map(lambda n: n % 2, lib.make_count(r.tokens, 1))


def _has_duplicate(r: Any, lib: Any) -> Any:
    return r.Map(lambda n: n > 0, _number(r, r.Map(lambda n: n > 1, lib.make_hist())))


def _most_frequent(r: Any, lib: Any) -> Any:
    return _broadcast(r, lib.make_sort_freq(4), 0)


def _induction(r: Any, lib: Any) -> Any:
    return r.Aggregate(r.Select(_shift(r, r.tokens, 1), r.tokens, lambda k, q: k == q), r.tokens)


def _palindrome(r: Any, lib: Any) -> Any:
    apart = r.SequenceMap(lambda a, b: a != b, lib.make_reverse(r.tokens), r.tokens)
    return r.Map(lambda n: n == 0, _number(r, apart))


def _majority(r: Any, lib: Any) -> Any:
    return r.SequenceMap(lambda x, y: x > y, lib.make_count(r.tokens, "a"), lib.make_count(r.tokens, "b"))


def _sorted(r: Any, lib: Any) -> Any:
    falls = r.SequenceMap(lambda before, now: before is not None and before > now, _shift(r, r.tokens, 1), r.tokens)
    return r.Map(lambda n: n == 0, _number(r, falls))


def _largest(r: Any, lib: Any) -> Any:
    return _broadcast(r, lib.make_sort(r.tokens, r.tokens, max_seq_len=4, min_key=1), 3)


def _share(r: Any, lib: Any) -> Any:
    everywhere = r.Select(r.indices, r.indices, r.Comparison.TRUE)
    return r.numerical(r.Aggregate(everywhere, r.numerical(r.Map(lambda t: float(t == "a"), r.tokens)), default=0))


def _difference(r: Any, lib: Any) -> Any:
    return r.SequenceMap(lambda x, y: x - y, lib.make_count(r.tokens, "a"), lib.make_count(r.tokens, "b"))


def _has_pattern(r: Any, lib: Any) -> Any:
    found = r.SequenceMap(lambda before, now: before == "a" and now == "b", _shift(r, r.tokens, 1), r.tokens)
    return r.Map(lambda n: n > 0, _number(r, found))


PROGRAMS: dict[str, Program] = {
    "length": Program(lambda r, lib: lib.make_length()),
    "reverse": Program(lambda r, lib: lib.make_reverse(r.tokens)),
    "frac_prevs": Program(lambda r, lib: lib.make_frac_prevs(r.tokens == "a")),
    "hist": Program(lambda r, lib: lib.make_hist()),
    "double_hist": Program(lambda r, lib: r.SelectorWidth(r.Select(lib.make_hist(), lib.make_hist(), r.Comparison.EQ))),
    "sort_unique": Program(lambda r, lib: lib.make_sort_unique(r.tokens, r.tokens), (1, 2, 3, 4, 5), keep=_unique),
    "sort": Program(lambda r, lib: lib.make_sort(r.tokens, r.tokens, max_seq_len=4, min_key=1), (1, 2, 3)),
    "sort_freq": Program(lambda r, lib: lib.make_sort_freq(4)),
    "pair_balance": Program(lambda r, lib: lib.make_pair_balance(r.tokens, "(", ")"), ("(", ")", "a")),
    "shuffle_dyck": Program(lambda r, lib: lib.make_shuffle_dyck(["()"]), ("(", ")"), 6),
    "shuffle_dyck2": Program(lambda r, lib: lib.make_shuffle_dyck2(), ("(", ")", "{", "}")),
    "count": Program(lambda r, lib: lib.make_count(r.tokens, "a")),
    "count_less_freq": Program(lambda r, lib: lib.make_count_less_freq(2)),
    "detect_pattern": Program(lambda r, lib: lib.detect_pattern(r.tokens, "ab")),
    "next_token": Program(lambda r, lib: lib.shift_by(-1, r.tokens)),
    "prev_token": Program(lambda r, lib: _shift(r, r.tokens, 1), causal=True),
    "induction": Program(_induction, (1, 2, 3), 5, causal=True, keep=_clear),
    "parity": Program(_parity, (0, 1), 6),
    "has_duplicate": Program(_has_duplicate, ("a", "b", "c", "d"), 3),
    "most_frequent": Program(_most_frequent),
    "first_token": Program(lambda r, lib: _broadcast(r, r.tokens, 0)),
    "last_token": Program(lambda r, lib: r.Aggregate(r.Select(r.indices, lib.length - 1, r.Comparison.EQ), r.tokens)),
    "palindrome": Program(_palindrome),
    "majority": Program(_majority),
    "sorted": Program(_sorted, (1, 2, 3)),
    "largest": Program(_largest, (1, 2, 3)),
    "share": Program(_share),
    "difference": Program(_difference),
    "has_pattern": Program(_has_pattern),
    "unique_here": Program(lambda r, lib: r.Map(lambda n: n == 1, lib.make_hist())),
    "class_of_token": Program(lambda r, lib: r.Map(lambda t: t in "ae", r.tokens), ("a", "b", "c", "e"), 3),
    "add_index": Program(lambda r, lib: r.SequenceMap(lambda t, i: (t + i) % 3, r.tokens, r.indices), (0, 1, 2)),
}

"""A behaviour: what a model is asked, what it is asked instead, which answers are right, and how that is measured.

A prompt and its counterfactual are as long as each other. Prompts of one split are padded on the left, so that the
answer follows the last position; a model that answers at every position is asked once for each (`Prompts.back`). No
text stands in two splits: what finds a circuit (`attribution`), what chooses among circuits (`selection`) and what they
are reported on (`report`) are apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from os import PathLike
from typing import Any, Literal, get_args

import numpy as np

from tcircuits.files.archive import fitting, read_all
from tcircuits.files.record import read_record, write_record
from tcircuits.files.storage import MalformedError
from tcircuits.files.typed import checked
from tcircuits.types import Bool, InputError, Int

Metric = Literal["logit_difference", "probability_difference"]
SPLITS = ("attribution", "selection", "report")
AXES = {"clean": "NT", "other": "NT", "padding": "N", "right": "NA", "wrong": "NW"}
ARRAYS = tuple(AXES)
HEAD = {"name": str, "model": str, "metric": Metric, "about": dict}
VERSION = 1


@dataclass(frozen=True)
class Prompts:
    """N prompts of at most T tokens.

    Attributes:
        clean: the prompts, [N, T].
        other: their counterfactuals, [N, T]: the answer that is wrong after `clean` is right after these.
        padding: how many positions at the start are none, [N].
        right, wrong: token ids of right and wrong answers, [N, A] and [N, W], filled up with -1.
        back: how far before the last position the answer is read, [N]; None reads it at the last everywhere.
    """

    clean: Int[np.ndarray, "N T"]
    other: Int[np.ndarray, "N T"]
    padding: Int[np.ndarray, " N"]
    right: Int[np.ndarray, "N A"]
    wrong: Int[np.ndarray, "N W"]
    back: Int[np.ndarray, " N"] | None = None

    @property
    def n(self) -> int:
        """How many prompts."""
        return len(self.clean)

    @property
    def valid(self) -> Bool[np.ndarray, "N T"]:
        """Which positions are tokens."""
        return np.arange(self.clean.shape[1]) >= self.padding[:, None]

    @property
    def at(self) -> Int[np.ndarray, " N"]:
        """The position of each answer."""
        last = np.full(self.n, self.clean.shape[1] - 1, np.int32)
        return last if self.back is None else last - self.back

    def part(self, start: int, n: int) -> "Prompts":
        """The n from `start` on, as far as there are any."""
        back = None if self.back is None else self.back[start : start + n]
        return Prompts(*[getattr(self, name)[start : start + n] for name in ARRAYS], back=back)

    def take(self, n: int) -> "Prompts":
        """The first n."""
        return self.part(0, n)


@dataclass(frozen=True)
class Behaviour:
    """Prompts in three splits and what is measured on them.

    Attributes:
        name: of the task.
        model: name of the model whose tokens these are.
        metric: `logit_difference`, of the mean right and the mean wrong answer; `probability_difference`, of their
            sums.
        splits: `SPLITS` by name.
        about: how it was made.
    """

    name: str
    model: str
    metric: Metric
    splits: Mapping[str, Prompts]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of the longest prompt of all splits."""
        return max(p.clean.shape[1] for p in self.splits.values())

    def __getitem__(self, split: str) -> Prompts:
        """The prompts of a split.

        Raises:
            InputError: there is none of this name.
        """
        if split not in self.splits:
            raise InputError(f"split {split!r} is unknown; there are {', '.join(self.splits)}")
        return self.splits[split]


def check_behaviour(b: Behaviour, d_vocab: int | None = None) -> None:
    """Raise for a behaviour whose parts do not fit together; all problems at once.

    Raises:
        InputError: see above.
    """
    wrong = [] if b.metric in get_args(Metric) else [f"metric {b.metric!r} is none of {', '.join(get_args(Metric))}"]
    if sorted(b.splits) != sorted(SPLITS):
        wrong.append(f"splits are {sorted(b.splits)}, not {sorted(SPLITS)}")
    seen: dict[str, np.ndarray] = {}
    for name, p in b.splits.items():
        wrong += [f"{name}: {what}" for what in _problems(p, d_vocab)]
        if wrong:
            continue
        own = _digests(p)
        wrong += [f"a prompt of {name} is in {other} as well" for other, x in seen.items() if np.isin(own, x).any()]
        seen[name] = own
    if wrong:
        raise InputError(f"behaviour {b.name!r}: " + "; ".join(dict.fromkeys(wrong)))


def _digests(p: Prompts) -> np.ndarray:
    """A hash of each text, prompts and counterfactuals [2 N]: the texts would take more memory than their ids."""
    rows = (row[n:] for tokens in (p.clean, p.other) for row, n in zip(tokens, p.padding, strict=True))
    hashes = (blake2b(row.astype("<i8").tobytes(), digest_size=8).digest() for row in rows)
    return np.fromiter((int.from_bytes(digest, "little") for digest in hashes), np.uint64, 2 * p.n)


def _both(p: Prompts) -> int | None:
    """The first prompt that has an answer which is right and wrong."""
    pairs = enumerate(zip(p.right, p.wrong, strict=True))
    return next((i for i, (right, wrong) in pairs if np.isin(right[right >= 0], wrong).any()), None)


def _problems(p: Prompts, d_vocab: int | None) -> list[str]:
    shapes = {name: getattr(p, name).shape for name in ARRAYS}
    ranks = {"padding": 1}
    if (
        any(len(s) != ranks.get(name, 2) or s[0] != p.n for name, s in shapes.items())
        or shapes["clean"] != shapes["other"]
    ):
        return [f"arrays of shapes {shapes} do not belong to the same prompts"]
    if not p.n:
        return ["no prompts"]
    wrong = []
    if ((p.padding < 0) | (p.padding >= p.clean.shape[1])).any():
        wrong.append(f"padding {p.padding.min()}..{p.padding.max()} leaves no token of {p.clean.shape[1]}")
    if p.back is not None and (p.back.shape != (p.n,) or (p.back < 0).any() or (p.at < p.padding).any()):
        wrong.append(f"answers {p.back.tolist()[:8]} positions before the last one lie outside the prompts")
    top = np.iinfo(np.int32).max if d_vocab is None else d_vocab
    for name in ("clean", "other"):
        ids = getattr(p, name)
        if ids.min() < 0 or ids.max() >= top:
            wrong.append(f"{name} has ids {ids.min()}..{ids.max()}, outside the vocabulary 0..{top - 1}")
    for name in ("right", "wrong"):
        ids = getattr(p, name)
        if (ids.max(1, initial=-1) < 0).any():
            wrong.append(f"a prompt has no {name} answer")
        if ids.min(initial=0) < -1 or ids.max(initial=0) >= top:
            wrong.append(f"{name} has ids {ids.min()}..{ids.max()}, outside the vocabulary 0..{top - 1}")
    if (both := _both(p)) is not None:
        wrong.append(f"prompt {both} has an answer that is right and wrong")
    return wrong


def save_behaviour(b: Behaviour, path: str | PathLike[str]) -> None:
    """Write PATH.json and PATH.npz (`path` may end in .json); each appears whole or not at all.

    Raises:
        InputError: see `check_behaviour`.
    """
    check_behaviour(b)
    arrays = {f"{split}.{name}": getattr(p, name) for split, p in b.splits.items() for name in ARRAYS}
    arrays |= {f"{split}.back": p.back for split, p in b.splits.items() if p.back is not None}
    head = {"name": b.name, "model": b.model, "metric": b.metric, "about": dict(b.about)}
    write_record(path, "behaviour", VERSION, head, arrays)


def load_behaviour(path: str | PathLike[str]) -> Behaviour:
    """Read what `save_behaviour` wrote.

    Raises:
        InputError: a file is missing, damaged or of another kind.
    """
    head, file = read_record(path, "behaviour", VERSION)
    try:
        said = checked({name: head[name] for name in HEAD if name in head}, HEAD, frozenset({"about"}))
        wanted = {f"{s}.{name}": ("iu", tuple(f"{s}.{x}" for x in AXES[name])) for s in SPLITS for name in ARRAYS}
        early = [s for s in SPLITS if f"{s}.back" in file.headers]
        wanted |= {f"{s}.back": ("iu", tuple(f"{s}.{x}" for x in AXES["padding"])) for s in early}
        fitting(file, wanted, {})
        found = read_all(file)
    except (InputError, MalformedError) as problem:
        raise InputError(f"the behaviour at {path} is damaged: {problem}") from None
    parts = {s: Prompts(*[found[f"{s}.{name}"] for name in ARRAYS], back=found.get(f"{s}.back")) for s in SPLITS}
    b = Behaviour(**said, splits=parts)
    check_behaviour(b)
    return b


def sizes(b: Behaviour) -> dict[str, int]:
    """Prompts by split."""
    return {name: p.n for name, p in b.splits.items()}


def told(b: Behaviour) -> dict[str, Any]:
    """What a result says of a behaviour."""
    return {"name": b.name, "model": b.model, "metric": b.metric, "prompts": sizes(b)} | dict(b.about)

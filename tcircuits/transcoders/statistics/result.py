"""What a pass found: figures of every feature, and the tokens of its examples, as arrays on the host; one file.

    density = activations / positions          mean = sum of values / activations          dead: no activation

Examples are numbers of tokens: token n is position n mod context of row n div context.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.archive import Wanted, fitting, open_archive, read_all
from tcircuits.files.storage import MalformedError
from tcircuits.files.typed import checked
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.statistics.keeping import EMPTY, N_BINS, Keeping, edges
from tcircuits.types import Bool, Float, InputError, Int

FORMAT, VERSION = "tcircuits.feature_statistics", 1
WANTED: Wanted = {
    "value": ("f", ("S", "F", "K")), "token": ("u", ("S", "F", "K")), "count": ("iu", ("S", "F", "H")),
    "in_bin": ("u", ("S", "F", "H")), "drawn": ("u", ("S", "F", "Q")), "total": ("f", ("S", "F")),
    "least": ("f", ("S", "F")),
}  # fmt: skip
ARRAYS = tuple(WANTED)
ABOUT = {
    "model": str, "dictionary": str, "n_rows": int, "context": int, "corpus": str, "cfg": TranscoderConfig,
    "keeping": Keeping,
}  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """By slot of `cfg.layers` (S) and feature (F). Absent examples have the token `EMPTY`, absent values are 0.

    Attributes:
        model: name of the model.
        dictionary: where the dictionaries came from.
        cfg: of the dictionaries.
        keeping: what was kept.
        n_rows: rows that were read.
        context: tokens of a row; its first is in no figure.
        corpus: digest of the rows.
        value: the strongest activations, falling.
        token: where they are.
        count: activations by bin of `keeping.edges`.
        in_bin: a token drawn from each bin.
        drawn: tokens drawn from all activations, in random order: any first few are a sample too.
        total: sum of all activations.
        least: smallest activation (0 where there is none).
    """

    model: str
    dictionary: str
    cfg: TranscoderConfig
    keeping: Keeping
    n_rows: int
    context: int
    corpus: str
    value: Float[np.ndarray, "S F K"]
    token: Int[np.ndarray, "S F K"]
    count: Int[np.ndarray, "S F H"]
    in_bin: Int[np.ndarray, "S F H"]
    drawn: Int[np.ndarray, "S F Q"]
    total: Float[np.ndarray, "S F"]
    least: Float[np.ndarray, "S F"]

    @property
    def n_positions(self) -> int:
        """Positions that count."""
        return self.n_rows * (self.context - 1)

    @property
    def n_active(self) -> Int[np.ndarray, "S F"]:
        """How often each feature is on."""
        return self.count.sum(-1, dtype=np.int64)

    @property
    def density(self) -> Float[np.ndarray, "S F"]:
        """Share of positions where a feature is on."""
        return self.n_active / self.n_positions

    @property
    def dead(self) -> Bool[np.ndarray, "S F"]:
        """Features that are never on."""
        return self.n_active == 0

    @property
    def largest(self) -> Float[np.ndarray, "S F"]:
        """Largest activation; 0 of dead features."""
        return self.value[..., 0]

    @property
    def mean(self) -> Float[np.ndarray, "S F"]:
        """Mean of the activations of a feature where it is on; 0 of dead features."""
        return self.total / np.maximum(self.n_active, 1)

    @property
    def l0(self) -> Float[np.ndarray, " S"]:
        """Features that are on for a token."""
        return self.density.sum(-1)

    def slot(self, layer: int) -> int:
        """The slot of a layer.

        Raises:
            InputError: it has no dictionary.
        """
        if layer not in self.cfg.layers:
            raise InputError(f"layer {layer} has no dictionary; there are {list(self.cfg.layers)}")
        return self.cfg.layers.index(layer)

    def check(self, layer: int, feature: int) -> int:
        """The slot of a layer that has this feature.

        Raises:
            InputError: there is no such layer or feature.
        """
        slot = self.slot(layer)
        if not 0 <= feature < self.cfg.d_feature:
            raise InputError(f"feature {feature} of layer {layer}: features are 0..{self.cfg.d_feature - 1}")
        return slot

    def quantiles(self, shares: Any) -> Float[np.ndarray, "S F *X"]:
        """Quantiles of the activations of each feature where it is on, from its histogram: within a third of an octave.

        Within a bin activations count as evenly spread; the least and the largest activation bound them. 0 where a
        feature is dead.
        """
        share = np.atleast_1d(np.asarray(shares, float))
        inner = edges(np.float64)
        top, least = self.largest[..., None].astype(float), self.least[..., None].astype(float)
        ends = np.broadcast_to(inner, (*self.dead.shape, len(inner)))
        low = np.clip(np.concatenate([np.broadcast_to(least, top.shape), ends], -1), least, top)
        high = np.clip(np.concatenate([ends, top], -1), least, top)
        until = np.cumsum(self.count, -1)
        wanted = share * until[..., -1:]
        out = np.zeros((*self.dead.shape, len(share)))
        for i in range(len(share)):
            bin_ = np.minimum((until < wanted[..., i : i + 1]).sum(-1), N_BINS - 1)[..., None]
            inside = np.take_along_axis(self.count, bin_, -1)
            begun = np.take_along_axis(until, bin_, -1) - inside
            part = np.clip((wanted[..., i : i + 1] - begun) / np.maximum(inside, 1), 0, 1)
            a, b = np.take_along_axis(low, bin_, -1), np.take_along_axis(high, bin_, -1)
            out[..., i] = (a + part * (b - a))[..., 0]
        return np.where(self.dead[..., None], 0.0, out)

    def tokens_of(self, layer: int, feature: int) -> dict[str, Int[np.ndarray, " *N"]]:
        """The examples of one feature: `top` by falling activation, `drawn` at random, `levels` by rising bin.

        Raises:
            InputError: as `check`.
        """
        at = self.check(layer, feature), feature
        found = {"top": self.token[at], "drawn": self.drawn[at], "levels": self.in_bin[at]}
        return {name: tokens[tokens != EMPTY] for name, tokens in found.items()}

    def table(self) -> list[dict[str, Any]]:
        """Figures of each layer as plain numbers."""
        rows = []
        for slot, layer in enumerate(self.cfg.layers):
            on = self.density[slot][~self.dead[slot]]
            rows.append(
                {
                    "layer": layer,
                    "features": self.cfg.d_feature,
                    "dead": int(self.dead[slot].sum()),
                    "l0": float(self.l0[slot]),
                    "median_density": float(np.median(on)) if len(on) else 0.0,
                    "largest": float(self.largest[slot].max()),
                }
            )
        return rows

    def save(self, path: Path) -> None:
        """Write `path` (.npz), which appears whole or not at all."""
        about = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*ARRAYS, "cfg", "keeping")}
        about |= {"format": FORMAT, "version": VERSION, "cfg": asdict(self.cfg), "keeping": asdict(self.keeping)}
        draft = path.with_name(f".{path.name}")
        with draft.open("wb") as file:
            np.savez_compressed(file, about=json.dumps(about), **{name: getattr(self, name) for name in ARRAYS})
        draft.replace(path)


def load_statistics(path: Path, *, max_decoded: int | None = None) -> Statistics:
    """What `Statistics.save` wrote.

    Args:
        path: the file.
        max_decoded: how many bytes its arrays may decode to; None: as of `files.opening.open_tensors`.

    Raises:
        InputError: another file, or a damaged one.
    """
    try:
        about, file = open_archive(path, "about", FORMAT, VERSION, max_decoded=max_decoded)
        said = checked(about, ABOUT)
        cfg, keeping = said["cfg"], said["keeping"]
        sizes = {"S": len(cfg.layers), "F": cfg.d_feature, "K": keeping.top, "H": N_BINS, "Q": keeping.drawn}
        fitting(file, WANTED, sizes)
        found = Statistics(**said | read_all(file))
        _check(found)
    except (InputError, MalformedError) as problem:
        raise InputError(f"{path} cannot be read as statistics of features: {problem}") from None
    return found


def _check(found: Statistics) -> None:
    """Raise where values of a file cannot be.

    Raises:
        MalformedError: naming what is wrong.
    """
    if found.n_rows < 1 or found.context < 2 or found.n_rows * found.context >= EMPTY:
        raise MalformedError(f"{found.n_rows} rows of {found.context} tokens")
    for name in ("token", "in_bin", "drawn"):
        tokens = getattr(found, name)
        if tokens.dtype != EMPTY.dtype or (tokens[tokens != EMPTY] >= found.n_rows * found.context).any():
            raise MalformedError(f"{name} has tokens outside of {found.n_rows} rows of {found.context}")
    if (found.count < 0).any() or not all(np.isfinite(getattr(found, n)).all() for n in ("value", "total", "least")):
        raise MalformedError("it has negative counts, or values that are not finite")


def origin(path: Path) -> str:
    """Where the dictionaries came from that saved statistics are of; reads nothing else.

    Raises:
        InputError: another file, or a damaged one.
    """
    try:
        about, _ = open_archive(path, "about", FORMAT, VERSION)
        return checked(about, ABOUT)["dictionary"]
    except (InputError, MalformedError) as problem:
        raise InputError(f"{path} cannot be read as statistics of features: {problem}") from None

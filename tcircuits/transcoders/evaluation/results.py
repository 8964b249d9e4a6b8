"""What an evaluation found: sums kept as they are, figures and intervals computed from them, and their JSON."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.evaluation.intervals import LEVEL, Interval, interval, resampled
from tcircuits.transcoders.evaluation.measure import FIRST, LayerSums
from tcircuits.types import Float

EDGES = np.linspace(-8.0, 0.0, 33)  # of the density histogram, in log10 of the share of positions
NAMES = ("dictionary", "zero", "mean")  # the first axis of `Losses`
VERSION = 1


@dataclass(frozen=True)
class Losses:
    """Means over each row's predictions: cross-entropy of the original, and of every way (W) and set (N) of replacing.

    `kl` is KL(original || replaced) in nats, `agree` the share of predictions with the same most likely token.
    """

    original: Float[np.ndarray, " R"]
    ce: Float[np.ndarray, "W N R"]
    kl: Float[np.ndarray, "W N R"]
    agree: Float[np.ndarray, "W N R"]


@dataclass(frozen=True)
class Replaced:
    """A set of layers replaced by the dictionary, by zero and by the mean; dicts have these three names.

    `delta` is CE - CE of the original. `recovered` (by `zero` and `mean`) is the share of the ablation's loss that the
    dictionary recovers: None where the ablation itself makes no difference that the rows can tell from zero.
    """

    layers: tuple[int, ...]
    ce: dict[str, float]
    kl: dict[str, float]
    agree: dict[str, float]
    delta: dict[str, Interval]
    recovered: dict[str, Interval | None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that one pass over a corpus says of a set of dictionaries. Figures by layer follow `cfg.layers`.

    Attributes:
        model: name of the model.
        dictionary: where the set came from.
        cfg: its configuration.
        about: keep_first, precision, draws, seed, and `corpus`, the digest of the rows.
        n_rows: rows, each of `context` tokens.
        context: tokens of a row.
        sets: the sets of layers that were replaced.
        sums: sums over positions, float64.
        largest: the largest activation of each feature [S, F].
        losses: by row.
    """

    model: str
    dictionary: str
    cfg: TranscoderConfig
    about: dict[str, Any]
    n_rows: int
    context: int
    sets: tuple[tuple[int, ...], ...]
    sums: LayerSums
    largest: Float[np.ndarray, "S F"]
    losses: Losses

    @property
    def n_positions(self) -> int:
        """Positions that the figures by layer are over."""
        return self.n_rows * (self.context - FIRST)

    @property
    def n_predictions(self) -> int:
        """Predictions that the losses are over."""
        return self.n_rows * (self.context - FIRST - 1)

    @cached_property
    def variance(self) -> Float[np.ndarray, " S"]:
        """Sum of |y - mean y|^2."""
        return _about_mean(self.sums.spread, self.sums.drift, self.n_positions)

    @cached_property
    def fvu(self) -> Float[np.ndarray, " S"]:
        """Fraction of variance unexplained, by layer; NaN where a target does not vary."""
        return _ratio(self.sums.error, self.variance)

    @property
    def l0(self) -> Float[np.ndarray, " S"]:
        """Active features at a position, by layer."""
        return np.asarray(self.sums.active) / self.n_positions

    @property
    def frequency(self) -> Float[np.ndarray, "S F"]:
        """Share of positions at which each feature is active."""
        return np.asarray(self.sums.fired) / self.n_positions

    @property
    def dead(self) -> Float[np.ndarray, " S"]:
        """Share of features that are never active on these positions, by layer."""
        return np.mean(np.asarray(self.sums.fired) == 0, -1)

    @property
    def histogram(self) -> Float[np.ndarray, "S N"]:
        """Features by log10 of their frequency, between neighbours of `EDGES`; dead ones are in none."""
        low = 10.0 ** EDGES[0]
        alive = [np.log10(np.maximum(f[f > 0], low)) for f in self.frequency]
        return np.stack([np.histogram(x, EDGES)[0] for x in alive])

    @property
    def bias(self) -> Float[np.ndarray, " S"]:
        """Relative reconstruction bias: below 1 the reconstructions are too short."""
        return _ratio(self.sums.guess_square, self.sums.product)

    @property
    def l2_ratio(self) -> Float[np.ndarray, " S"]:
        """Mean of |reconstruction| / |target|."""
        return np.asarray(self.sums.ratio) / self.n_positions

    @property
    def shrinkage(self) -> Float[np.ndarray, " S"]:
        """By how much the spread about the mean is smaller than the target's."""
        guess = _about_mean(self.sums.guess_spread, self.sums.guess_drift, self.n_positions)
        return 1 - np.sqrt(_ratio(guess, self.variance))

    @property
    def mean_active(self) -> Float[np.ndarray, "S F"]:
        """Mean value of each feature where it is active; 0 of dead ones."""
        fired = np.asarray(self.sums.fired)
        return np.asarray(self.sums.total) / np.maximum(fired, 1)

    @property
    def ce_original(self) -> float:
        """Cross-entropy of the original model, nats a token."""
        return float(self.losses.original.mean())

    @cached_property
    def replaced(self) -> tuple[Replaced, ...]:
        """Losses of every set, with intervals over rows."""
        base = self.losses.original
        both = np.concatenate([base[None], self.losses.ce.reshape(-1, self.n_rows)]).T
        drawn = resampled(both, self.about["draws"], self.about["seed"])
        drawn = (drawn[:, 1:] - drawn[:, :1]).reshape(-1, *self.losses.ce.shape[:2])  # draws, ways, sets
        delta = (self.losses.ce - base).mean(-1)
        return tuple(self._replaced(j, delta[:, j], drawn[:, :, j]) for j in range(len(self.sets)))

    def _replaced(self, j: int, delta: np.ndarray, drawn: np.ndarray) -> Replaced:
        def means(x: np.ndarray) -> dict[str, float]:
            return {name: float(x[i, j].mean()) for i, name in enumerate(NAMES)}

        deltas = {name: interval(delta[i], drawn[:, i], self.n_rows) for i, name in enumerate(NAMES)}
        recovered: dict[str, Interval | None] = {}
        for i, name in enumerate(NAMES[1:], 1):
            told = deltas[name].excludes_zero or (self.n_rows == 1 and deltas[name].value != 0)
            share = 1 - drawn[:, 0] / np.where(drawn[:, i] == 0, np.nan, drawn[:, i])
            recovered[name] = interval(1 - delta[0] / delta[i], share, self.n_rows) if told else None
        told_of = self.losses
        return Replaced(self.sets[j], means(told_of.ce), means(told_of.kl), means(told_of.agree), deltas, recovered)

    def replacing(self, layers: tuple[int, ...]) -> Replaced:
        """The losses of one set that was replaced.

        Raises:
            KeyError: it was not.
        """
        if layers not in self.sets:
            raise KeyError(f"layers {layers} were not replaced together; these were: {self.sets}")
        return self.replaced[self.sets.index(layers)]

    def to_json(self) -> dict[str, Any]:
        """Everything but sums and rows, as plain values; what is undefined is None."""
        c, s = self.cfg, self
        by_layer = zip(c.layers, s.fvu, s.l0, s.dead, s.bias, s.l2_ratio, s.shrinkage, s.histogram, strict=True)
        names = ("layer", "fvu", "l0", "dead", "bias", "l2_ratio", "shrinkage", "density")
        told = {
            "version": VERSION,
            "model": s.model,
            "dictionary": s.dictionary,
            "kind": c.kind,
            "reads": c.reads,
            "writes": c.writes,
            "activation": c.activation,
            "skip": c.skip,
            "d_feature": c.d_feature,
            "n_layers": c.n_layers,
            **s.about,
            "level": LEVEL,
            "n_rows": s.n_rows,
            "context": s.context,
            "n_positions": s.n_positions,
            "n_predictions": s.n_predictions,
            "overall": {
                "fvu": np.mean(s.fvu),
                "fvu_pooled": np.sum(s.sums.error) / np.sum(s.variance),
                "l0": np.mean(s.l0),
                "dead": np.mean(s.dead),
            },
            "density_edges": EDGES,
            "by_layer": [dict(zip(names, values, strict=True)) for values in by_layer],
            "ce_original": s.ce_original,
            "replaced": [vars(r) | {"all": len(r.layers) == c.n_layers} for r in s.replaced],
        }
        return _plain(told)


def _about_mean(spread: Any, drift: Any, n: int) -> np.ndarray:
    """Sum of |y - mean y|^2 from the sums about another point."""
    return np.maximum(np.asarray(spread) - np.sum(np.square(np.asarray(drift)), -1) / n, 0.0)


def _ratio(a: Any, b: Any) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) != 0)


def _plain(x: Any) -> Any:
    """Values that JSON has."""
    if isinstance(x, dict):
        return {name: _plain(value) for name, value in x.items()}
    if isinstance(x, Interval):
        return _plain(vars(x))
    if isinstance(x, np.ndarray | list | tuple):
        return [_plain(value) for value in x]
    if isinstance(x, np.integer):
        return int(x)
    if isinstance(x, float | np.floating):
        return float(x) if np.isfinite(x) else None
    return x

"""The tensors of clt-training (see `clt_training`) as rows of our arrays: norms, scales and tied decoders folded.

With in_l = in_norm / sqrt(D), out_m = out_norm / sqrt(D) of layers l and m (1 without `normalize_io`):

    w_enc = encoder.weight / in_l,    w_dec[l -> m] = out_m s_lt W_lm / q,    w_skip = out_m W_skip^T / in_m,
    b_dec = out_m (b_m + sum of b_decs.{t} of earlier layers / q),    b_enc = encoder.bias + post_enc
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.derived import Read, Sum, WithoutPreBias
from tcircuits.transcoders.dictionary import pair
from tcircuits.transcoders.formats.found import FoundSet
from tcircuits.transcoders.pieces import Piece, read_piece

UNFOLDABLE = {
    "offset": "an offset, for one target, of the features that are on",
    "w_skip": "an affine path to a later layer",
}


@dataclass(frozen=True)
class Coder:
    """What the configuration of one layer says.

    Attributes:
        targets: how many layers it writes to, its own the first; 0 is its own, in a set that is not cross-layer.
        tied: whose decoder is used: `none` one of the pair, `source` the source's, `concat` the target's, `per-layer` a
            block of the target's.
        normalised: inputs and outputs are divided by their average length over sqrt(D).
        scaled: features have factors on their way to each target.
        divided: what comes from earlier layers is divided by their number.
        blocks: of its decoder, where it is made of those of several sources.
    """

    targets: int
    tied: str
    normalised: bool
    scaled: bool
    divided: bool
    blocks: int

    def reaches(self, step: int) -> bool:
        """Whether it writes to the layer that is `step` above its own."""
        return step < max(1, self.targets)


def weave(
    coders: Mapping[int | None, Coder], cfg: TranscoderConfig, found: FoundSet, problems: list[str]
) -> Mapping[str, tuple[Piece, ...]]:
    """The pieces of our arrays; a problem for each layer with something that does not fold.

    `coders` has one for each layer, or for None where the caller says which layer it is.
    """
    fold = Fold({layer: coders[layer if layer in coders else None] for layer in cfg.layers}, cfg, found)
    pieces: dict[str, list[Piece]] = {}
    wrong = [fault for layer in cfg.layers for fault in fold.faults(layer)]
    if wrong:
        problems += wrong
        return {}
    for slot, layer in enumerate(cfg.layers):
        for name, rows in fold.pieces(slot, layer).items():
            pieces.setdefault(name, []).extend(rows)
    return {name: tuple(rows) for name, rows in pieces.items()}


@dataclass(frozen=True)
class Fold:
    """A set whose files are open, and how its layers are tied."""

    coders: Mapping[int, Coder]
    cfg: TranscoderConfig
    found: FoundSet

    def pieces(self, slot: int, layer: int) -> dict[str, list[Piece]]:
        """What one layer adds to each of our arrays."""
        inside, out = 1 / self.norm(layer, "in_norm"), self.norm(layer, "out_norm")
        b_enc: list[Read] = [self.reader(layer, "b_enc")]
        if "pre_bias" in self.found.layers[layer]:
            pre, w_enc = self.reader(layer, "pre_bias", 1 / inside), self.reader(layer, "w_enc", inside)
            without = WithoutPreBias(b_enc[0], pre, w_enc, self.cfg.d_model)
            b_enc = [lambda index: without(index[0])]
        rows = {"w_enc": [self.piece(layer, "w_enc", slot, scale=inside)]}
        if self.cfg.gated:
            rows["threshold"] = [self.piece(layer, "offset", slot)]
            b_enc.append(self.reader(layer, "offset"))
        rows["b_enc"] = [self.piece(layer, "b_enc", slot, rule=Sum(tuple(b_enc)))]
        last = self.cfg.n_layers if self.cfg.kind == "clt" else layer + 1
        targets = range(layer, last)
        rows["w_dec"] = [self.decoder(layer, m, pair(self.cfg, slot, slot + m - layer)) for m in targets]
        rows["b_dec"] = [self.bias(layer, slot)]
        if self.cfg.skip:
            rows["w_skip"] = [self.piece(layer, "w_skip", slot, scale=out * inside, transposed=True)]
        return rows

    def sources(self, layer: int) -> list[int]:
        """The layers that write to one, ascending."""
        return [i for i in self.cfg.layers if i <= layer and self.coders[i].reaches(layer - i)]

    def norm(self, layer: int, name: str) -> float:
        """The data's average length of inputs or outputs, over sqrt(D)."""
        f = self.found.layers[layer].get(name)
        if not self.coders[layer].normalised:
            return 1.0
        value = 1.0 if f is None else float(np.asarray(self.found.files[f.path].read(f.tensor, None)).item())
        return value / math.sqrt(self.cfg.d_model)

    def divisor(self, layer: int) -> float:
        """What contributions of earlier layers are divided by."""
        return max(1, len(self.sources(layer)) - 1) if self.coders[layer].divided else 1

    def decoder(self, source: int, target: int, row: int) -> Piece:
        """The decoder of a pair of layers."""
        mine, step, tensors = self.coders[source], target - source, self.found.layers[source]
        nothing = self.piece(source, "w_dec", row, scale=0.0)
        scale, factors = self.norm(target, "out_norm"), None
        if mine.tied in ("none", "source") and step:
            scale /= self.divisor(target)
        if mine.scaled and f"scale.{step}" in tensors:
            factors = by_slice(self.reader(source, f"scale.{step}"))
        elif not mine.reaches(step) or (mine.scaled and step):  # the trainer starts the other factors at 0
            return nothing
        if mine.targets and mine.tied in ("concat", "per-layer"):
            start = self.sources(target).index(source) * self.cfg.d_feature if mine.tied == "per-layer" else 0
            return self.piece(target, "w_dec", row, scale=scale, factors=factors, start=start)
        name = f"w_dec.{step}" if f"w_dec.{step}" in tensors and mine.tied == "none" else "w_dec"
        if name == "w_dec" and step and mine.tied == "none":  # one decoder alone was given to the trainer
            return nothing
        return self.piece(source, name, row, scale=scale, factors=factors)

    def bias(self, layer: int, row: int) -> Piece:
        """What is written at a layer whatever is active; earlier layers have biases for it too."""
        out, tied = self.norm(layer, "out_norm"), self.coders[layer].tied
        terms = [self.reader(layer, "b_dec", out)]
        if tied in ("none", "source"):
            earlier = [(i, f"b_dec.{layer - i}") for i in self.sources(layer) if i < layer]
            scale = out / self.divisor(layer)
            terms += [self.reader(i, name, scale) for i, name in earlier if name in self.found.layers[i]]
        return self.piece(layer, "b_dec", row, rule=Sum(tuple(terms)))

    def faults(self, layer: int) -> list[str]:
        """Why a layer cannot be folded: lengths that divide nothing, too few decoders, parts that are not zero."""
        norms = [name for name in ("in_norm", "out_norm") if not 0 < self.norm(layer, name) < math.inf]
        wrong = [f"{name} of layer {layer} is no number above zero" for name in norms]
        tied, rows = self.coders[layer].tied, self.found.layers[layer]["w_dec"].header.shape[0]
        if tied == "per-layer" and rows < len(self.sources(layer)) * self.cfg.d_feature:
            wrong.append(f"W_dec of layer {layer} has {rows} rows, but {len(self.sources(layer))} layers write there")
        for name, f in sorted(self.found.layers[layer].items()):
            kind, _, step = name.partition(".")
            meant = step and (kind == "offset" or (kind == "w_skip" and int(step) > 0))
            if meant and np.asarray(self.found.files[f.path].read(f.tensor, None)).any():
                wrong.append(
                    f"{f.tensor} of layer {layer} is not zero: {UNFOLDABLE[kind]}, which cannot be represented"
                )
        return wrong[:2]

    def piece(self, layer: int, name: str, row: int, **more: Any) -> Piece:
        """One of our rows, from one tensor of a layer."""
        f = self.found.layers[layer][name]
        return Piece(f.path, f.tensor, row, **more)

    def reader(self, layer: int, name: str, scale: float = 1.0) -> Read:
        """Reads parts of a tensor of a layer."""
        return partial(read_piece, self.found.files, self.piece(layer, name, 0, scale=scale))


def by_slice(read: Read) -> Callable[[slice], np.ndarray]:
    """A reader of rows as one of features."""
    return lambda features: read((features,))

"""All that is shown of the features of one layer, and its two forms: a record of the viewers' file, a part of a page.

Examples come in groups: the strongest activations; quarters of a uniform sample of all activations, by value; and
levels, drawn from the bins of the histogram within each fifth of the largest activation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcircuits.attribution.feature_words import Words, deembedded_words, promoted_words
from tcircuits.models.model import Model
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.corpus import corpus
from tcircuits.transcoders.statistics.contexts import windows
from tcircuits.transcoders.statistics.keeping import EMPTY
from tcircuits.transcoders.statistics.neighbours import decoders, encoders, nearest
from tcircuits.transcoders.statistics.result import Statistics
from tcircuits.types import Float, Int

TOP, QUARTERS, LEVELS = "Top activations", 4, 5
SHARES = np.arange(21) / 20  # quantiles in a record
EACH = 5  # examples of a quarter, and of a level


@dataclass(frozen=True)
class Layer:
    """The features of one layer.

    Attributes:
        slot: of the layer.
        begin: examples of feature f are begin[f]..begin[f + 1] - 1.
        token: of each example, by rising number within a feature.
        window: activations around it, the middle one at the token.
        promoted: tokens that features promote and suppress; None for SAEs.
        embedded: tokens whose embeddings they read.
        near: nearest features by cosine: (`decoder`, `encoder`) -> numbers and cosines.
    """

    found: Statistics
    slot: int
    begin: Int[np.ndarray, " F1"]
    token: Int[np.ndarray, " N"]
    window: Float[np.ndarray, "N W"]
    promoted: Words | None
    embedded: Words
    near: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def layer(self) -> int:
        """Its number in the model."""
        return self.found.cfg.layers[self.slot]

    def groups(self, feature: int) -> list[tuple[str, list[int]]]:
        """Names of the groups of a feature's examples, and the examples' numbers; without empty groups."""
        s, at = self.found, (self.slot, feature)
        first, last = self.begin[feature : feature + 2]
        own = self.token[first:last]

        def numbers(tokens: np.ndarray) -> np.ndarray:
            return first + np.searchsorted(own, tokens[tokens != EMPTY])

        middle = self.window.shape[1] // 2
        drawn, levels = numbers(s.drawn[at]), numbers(s.in_bin[at])
        drawn = drawn[np.argsort(-self.window[drawn, middle], kind="stable")]
        levels = levels[np.argsort(-self.window[levels, middle], kind="stable")]
        out = [(TOP, numbers(s.token[at]).tolist())]
        for i, part in enumerate(np.array_split(drawn, QUARTERS)):
            high = 100 - 100 * i // QUARTERS
            out.append((f"Quantiles {high - 100 // QUARTERS}-{high} %", part[:EACH].tolist()))
        share = self.window[levels, middle] / max(float(s.largest[at]), 1e-30)
        for i in reversed(range(LEVELS)):
            inside = levels[(share > i / LEVELS) & (share <= (i + 1) / LEVELS)]
            out.append(
                (f"Level {100 * i // LEVELS}-{100 * (i + 1) // LEVELS} % of the largest", inside[:EACH].tolist())
            )
        return [(name, some) for name, some in out if some]


def collect(
    model: Model,
    d: Transcoders,
    rows: Any,
    found: Statistics,
    *,
    width: int = 10,
    words: int = 10,
    near: int = 5,
    batch: int = 8,
    precision: str = "highest",
    progress: Callable[[int, int], None] | None = None,
) -> list[Layer]:
    """Examples with their surroundings, words and neighbours of all features of all layers, as the pass had them."""
    slots, keys = range(len(found.cfg.layers)), []
    for slot in slots:
        keys.append(_examples(found, slot))
    sizes = [len(k) for k in keys]
    every = np.concatenate(keys)
    slot_of = np.repeat(np.arange(len(sizes)), sizes)
    feature, token = (every >> 32).astype(np.int64), (every & 0xFFFFFFFF).astype(np.int64)
    options = {"width": width, "batch": batch, "precision": precision, "progress": progress}
    values = windows(model, d, rows, found, slot_of, feature, token, **options)
    ends = np.cumsum([0, *sizes])
    out = []
    for slot in slots:
        own = slice(ends[slot], ends[slot + 1])
        begin = np.searchsorted(feature[own], np.arange(found.cfg.d_feature + 1))
        around = {
            "decoder": nearest(decoders(model.params, d, slot), near),
            "encoder": nearest(encoders(model.params, d, slot), near),
        }
        lists = promoted_words(model, d, slot, words), deembedded_words(model, d, slot, words)
        out.append(Layer(found, slot, begin, token[own], values[own], *lists, around))
    return out


def _examples(found: Statistics, slot: int) -> Int[np.ndarray, " N"]:
    """Feature (upper 32 bits) and token of all examples of a slot, each once, ascending."""
    tokens = np.concatenate([found.token[slot], found.drawn[slot], found.in_bin[slot]], 1).astype(np.uint64)
    number = np.arange(len(tokens), dtype=np.uint64)[:, None] << np.uint64(32)
    return np.unique((number | tokens)[tokens != EMPTY])


class Texts:
    """Token ids of the rows that examples come from, and the texts of tokens, each asked for once."""

    def __init__(self, model: Model, rows: Any, found: Statistics) -> None:
        self.model, self.context = model, found.context
        self.text = corpus(model.cfg, rows, found.n_rows * found.context)
        self._rows: dict[int, list[int]] = {}
        self._words: dict[int, str] = {}

    def row(self, number: int) -> list[int]:
        """Token ids of a row."""
        if number not in self._rows:
            self._rows[number] = np.asarray(self.text.read(number, 1))[0].tolist()
        return self._rows[number]

    def word(self, token: int) -> str:
        """The text of a token; characters that are no Unicode are replaced."""
        if token not in self._words:
            self._words[token] = self.model.token(token).encode(errors="replace").decode()
        return self._words[token]


def records(layer: Layer, texts: Texts) -> Iterator[dict[str, Any]]:
    """The records of a layer's features, for `viewer_file.write_features`."""
    s = layer.found
    quantiles = s.quantiles(SHARES)[layer.slot]
    for f in range(s.cfg.d_feature):
        at = layer.slot, f
        seen: set[int] = set()
        groups = []
        for name, numbers in layer.groups(f):
            groups.append({"quantile_name": name, "examples": [_example(layer, texts, i, i in seen) for i in numbers]})
            seen |= set(numbers)
        lists: tuple[Sequence[int], ...] = ((), ())
        if layer.promoted is not None:
            lists = layer.promoted.high[f].tolist(), layer.promoted.low[f].tolist()
        yield {
            "transcoder_id": str(layer.layer),
            "index": f,
            "examples_quantiles": groups,
            "top_logits": [texts.word(t) for t in lists[0]],
            "bottom_logits": [texts.word(t) for t in lists[1]],
            "act_min": short(s.least[at]),
            "act_max": short(s.largest[at]),
            "quantile_values": [short(x) for x in quantiles[f]],
            "histogram": s.count[at].tolist(),
            "activation_frequency": short(s.density[at]),
        }


def _example(layer: Layer, texts: Texts, number: int, repeated: bool) -> dict[str, Any]:
    row, pos = divmod(int(layer.token[number]), texts.context)
    window, middle = layer.window[number], layer.window.shape[1] // 2
    first, last = max(0, pos - middle), min(texts.context, pos + middle + 1)
    inside = window[first - pos + middle : last - pos + middle]
    return {
        "tokens": [texts.word(t) for t in texts.row(row)[first:last]],
        "tokens_acts_list": [short(x) for x in inside],
        "train_token_ind": pos - first,
        "is_repeated_datapoint": repeated,
    }


def short(x: Any) -> float:
    """A number with four digits."""
    return float(f"{float(x):.4g}")

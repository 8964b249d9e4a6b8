"""The pages of features: `index.html` lists all of them, `layer_N.html` shows those of a layer, each by its number.

Every page is one file that opens from disk and can reach no network, as the page of a graph (`view.page`). Tokens stand
in it once: examples name a row of text and a position in it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.attribution.feature_words import Words
from tcircuits.transcoders.statistics.keeping import LOWEST, PER_OCTAVE
from tcircuits.transcoders.statistics.result import Statistics
from tcircuits.transcoders.statistics.viewer_file import write_features
from tcircuits.view.feature_data import Layer, Texts, records, short
from tcircuits.view.page import filled, write_html

SCRIPTS = ("text.js", "featuremodel.js", "featuretable.js", "featuredetail.js", "featuremain.js")
LISTED = 60_000  # features in the index; of a larger set it lists those that are on most often, layers list all
WORDS = 3  # top tokens in a table


def write_dashboards(folder: Path, found: Statistics, layers: Iterable[Layer], texts: Texts) -> Path:
    """Write the viewers' files, a page for each layer, and the index last; returns its path."""
    layers = list(layers)
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder / "statistics.npz")
    write_features(folder, {layer.layer: records(layer, texts) for layer in layers})
    for layer in layers:
        write_html(layer_page(layer, texts), folder / f"layer_{layer.layer}.html")
    return write_html(index_page(layers, texts), folder / "index.html")


def layer_page(layer: Layer, texts: Texts) -> str:
    """The page of a layer."""
    words = Numbered(texts)
    features = [_detail(layer, words, f) for f in range(layer.found.cfg.d_feature)]
    table = _table(layer, words, np.arange(layer.found.cfg.d_feature))
    rows = {str(r): [words.word(t) for t in texts.row(r)] for r in sorted(words.rows)}
    data = {"table": table, "features": features, "rows": rows, "width": layer.window.shape[1] // 2}
    return _page(_about(layer.found, layer.layer) | data, words)


def index_page(layers: Iterable[Layer], texts: Texts) -> str:
    """The page that lists the features of all layers."""
    layers, words = list(layers), Numbered(texts)
    counts = np.concatenate([layer.found.n_active[layer.slot] for layer in layers])
    least = np.sort(counts)[-LISTED] if len(counts) > LISTED else -1
    tables = []
    for layer in layers:
        own = layer.found.n_active[layer.slot]
        tables.append(_table(layer, words, np.flatnonzero(own >= least)))
    table = {name: [x for t in tables for x in t[name]] for name in tables[0]}
    return _page(_about(layers[0].found, None) | {"table": table, "features": None, "rows": {}}, words)


class Numbered:
    """Texts of tokens by number, in the order in which a page first names them; and the rows that it shows."""

    def __init__(self, texts: Texts) -> None:
        self.texts, self.rows = texts, set[int]()
        self.number: dict[int, int] = {}

    def word(self, token: int) -> int:
        """The number of a token's text."""
        return self.number.setdefault(int(token), len(self.number))

    def all(self) -> list[str]:
        """The texts."""
        return [self.texts.word(t) for t in self.number]


def _page(data: Mapping[str, Any], words: Numbered) -> str:
    return filled("features.html", ("style.css", "features.css"), SCRIPTS, {**data, "words": words.all()})


def _about(found: Statistics, layer: int | None) -> dict[str, Any]:
    return {
        "layer": layer,
        "layers": found.table(),
        "model": found.model,
        "dictionary": found.dictionary,
        "positions": found.n_positions,
        "context": found.context,
        "bins": {"lowest": LOWEST, "perOctave": PER_OCTAVE},
    }


def _table(layer: Layer, words: Numbered, features: np.ndarray) -> dict[str, list[Any]]:
    """Columns of the table: figures, tokens where a feature is strongest, and those it promotes."""
    s, slot = layer.found, layer.slot
    return {
        "layer": [layer.layer] * len(features),
        "feature": features.tolist(),
        "density": [short(x) for x in s.density[slot][features]],
        "largest": [short(x) for x in s.largest[slot][features]],
        "mean": [short(x) for x in s.mean[slot][features]],
        "tokens": [[words.word(t) for t in _strongest(layer, words.texts, f)] for f in features.tolist()],
        "promoted": [_first(layer.promoted, words, f) for f in features.tolist()],
    }


def _strongest(layer: Layer, texts: Texts, feature: int) -> list[int]:
    """The first different tokens at which a feature is strongest."""
    tokens = layer.found.tokens_of(layer.layer, feature)["top"].tolist()
    found = dict.fromkeys(texts.row(t // texts.context)[t % texts.context] for t in tokens)
    return list(found)[:WORDS]


def _first(words: Words | None, numbered: Numbered, feature: int) -> list[int]:
    return [] if words is None else [numbered.word(t) for t in words.high[feature][:WORDS].tolist()]


def _detail(layer: Layer, words: Numbered, f: int) -> dict[str, Any]:
    s, at = layer.found, (layer.slot, f)
    filled_bins = np.flatnonzero(s.count[at])
    first, last = (int(filled_bins[0]), int(filled_bins[-1]) + 1) if len(filled_bins) else (0, 0)
    lists: dict[str, Any] = {"promotes": layer.promoted and (layer.promoted.high, layer.promoted.high_score)}
    lists["suppresses"] = layer.promoted and (layer.promoted.low, layer.promoted.low_score)
    lists["reads"] = layer.embedded.high, layer.embedded.high_score
    lists["against"] = layer.embedded.low, layer.embedded.low_score
    return {
        "count": int(s.n_active[at]),
        "least": short(s.least[at]),
        "bins": [first, s.count[at][first:last].tolist()],
        "groups": [[name, [_place(layer, words, i) for i in numbers]] for name, numbers in layer.groups(f)],
        "words": {name: _ranked(found, words, f) for name, found in lists.items() if found is not None},
        "near": {
            name: [[int(i), short(c)] for i, c in zip(index[f], cosine[f], strict=True)]
            for name, (index, cosine) in layer.near.items()
        },
    }


def _ranked(found: tuple[np.ndarray, np.ndarray], words: Numbered, f: int) -> list[list[Any]]:
    return [[words.word(t), short(x)] for t, x in zip(found[0][f].tolist(), found[1][f].tolist(), strict=True)]


def _place(layer: Layer, words: Numbered, number: int) -> list[Any]:
    """An example: row, position, and the activations around it that are not zero, as distance and value in turn."""
    row, pos = divmod(int(layer.token[number]), words.texts.context)
    words.rows.add(row)
    window = layer.window[number]
    on = np.flatnonzero(window)
    values = [v for i in on.tolist() for v in (i - len(window) // 2, short(window[i]))]
    return [row, pos, values]

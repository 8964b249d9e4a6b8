"""Do weights alone name the features that matter on text? Pullback against mean input x gradient, their top-k sets.

    python -m experiments.pullback_overlap

Dunefsky et al. 2024 compare two pairs of layers, one target feature each: of the k features with the largest weight to
the target (pullback), how many are among the k with the largest mean attribution over the positions where the target
is above the 20th percentile of its positive activations? Theirs: 30, 25, 14 % (k = 10, 20, 50; layer 2 to 8) and 60,
50, 44 % (layer 0 to 5), of 24,576 features. Here: many live targets of every layer of the embedded model, all earlier
layers, sets of 1,024 features; intervals by resampling targets. Only positive entries count, so a target that few
features excite on text shares less than k (`reachable`: what the k positive ones would give at best). Chance is k / F.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import save, show
from experiments.lm import rows
from experiments.tiny_dictionaries import ASSETS, CONTEXT
from tcircuits.attribution.corpus import corpus_effects, top_overlap
from tcircuits.attribution.frozen import read_by
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import encode
from tcircuits.transcoders.evaluation.intervals import interval, resampled

PAPER = {"layer 2 to 8": (0.30, 0.25, 0.14), "layer 0 to 5": (0.60, 0.50, 0.44)}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = ("tiny-transcoders", "tiny-skip", "tiny-clt")
    """Of the embedded model."""
    k: tuple[int, ...] = (10, 20, 50)
    """Sizes of the top sets."""
    features: int = 64
    """Live targets of each layer, drawn at random."""
    least: int = 50
    """A target is live where it is on at so many positions."""
    rows: int = 64
    """Held-out rows of 128 tokens."""
    chunk: int = 64
    """Targets in one pass over the rows."""
    seed: int = 0
    """Of the draw of targets."""


def counts(model: tc.Model, d: tc.Transcoders, text: np.ndarray) -> np.ndarray:
    """At how many positions but the first each feature is on [S, F]."""

    @jax.jit
    def of_row(params: Any, d: tc.Transcoders, row: jax.Array) -> jax.Array:
        x = read_by(model.cfg, params, d.cfg, row)
        return jnp.stack([(encode(d, s, x[s]) > 0)[1:].sum(0) for s in range(len(x))])

    return np.sum([host(of_row(model.params, d, jnp.asarray(row))) for row in text], axis=0)


def overlaps(model: tc.Model, d: tc.Transcoders, text: np.ndarray, cfg: Config) -> Iterator[dict[str, Any]]:
    """For every target layer: targets, and for each earlier layer the overlaps at each k, one value a target."""
    on, rng = counts(model, d, text), np.random.default_rng(cfg.seed)
    hold, number = tc.unit_hold(model.cfg), jnp.arange(d.cfg.d_feature)
    pull = jax.jit(tc.virtual_weights, static_argnames=("cfg",))
    for layer in range(1, model.cfg.n_layers):
        live = np.flatnonzero(on[layer] >= cfg.least)
        targets = np.sort(rng.permutation(live)[: cfg.features])
        for first in range(0, len(targets), cfg.chunk):
            some = targets[first : first + cfg.chunk]
            found = corpus_effects(model, d, text, layer, some.tolist(), batch=16)
            for source in range(layer):
                at = (jnp.asarray(layer), jnp.asarray(some)), (jnp.asarray(source), number)
                weights = np.asarray(pull(model.cfg, model.params, d, hold, *at))
                mean, twera = found.mean[source], found.twera[source]
                yield {
                    "layer": layer,
                    "source": source,
                    "first": first,
                    "overlap": np.stack([top_overlap(weights, mean, k) for k in cfg.k], -1),
                    "reachable": np.stack([np.minimum((mean > 0).sum(-1), k) / k for k in cfg.k], -1),
                    "twera": np.stack([top_overlap(weights, twera, k) for k in cfg.k], -1),
                }


def figures(parts: list[dict[str, Any]], k: tuple[int, ...]) -> list[dict[str, Any]]:
    """Means over targets with intervals, for each size of the top sets."""
    values, reachable, twera = (np.concatenate([p[n] for p in parts]) for n in ("overlap", "reachable", "twera"))
    drawn, out = resampled(values), []
    for i, size in enumerate(k):
        x = interval(float(values[:, i].mean()), drawn[:, i], len(values))
        row = {"k": size, "targets": len(values), "overlap": x.value, "low": x.low, "high": x.high}
        more = {"reachable": float(reachable[:, i].mean()), "with_twera": float(twera[:, i].mean())}
        out.append(row | more)
    return out


def by_target(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the source layers of each target, so that targets can be resampled."""
    out = []
    for layer, first in sorted({(p["layer"], p["first"]) for p in parts}):
        some = [p for p in parts if (p["layer"], p["first"]) == (layer, first)]
        out.append({n: np.mean([p[n] for p in some], 0) for n in ("overlap", "reachable", "twera")})
    return out


def main(cfg: Config) -> None:
    """Measure, print, write."""
    model = tc.load_model("tiny")
    text = rows.held_out(rows.text_of(ASSETS), cfg.rows, CONTEXT)
    found: dict[str, Any] = {}
    for name in cfg.sets:
        d = tc.load_transcoders(name, model=model)
        parts = list(overlaps(model, d, text, cfg))
        pairs = sorted({(p["source"], p["layer"]) for p in parts})
        by_pair = []
        for source, layer in pairs:
            some = [p for p in parts if (p["source"], p["layer"]) == (source, layer)]
            by_pair += [{"source": source, "layer": layer, **row} for row in figures(some, cfg.k)]
        found[name] = {
            "all": figures(by_target(parts), cfg.k),
            "by_pair": by_pair,
            "chance": [k / d.cfg.d_feature for k in cfg.k],
        }
        show(f"{name}: top-k overlap of pullback and mean input x gradient, all pairs of layers", found[name]["all"])
        show("by pair of layers", by_pair)
    save("pullback_overlap", cfg, {"paper": PAPER, "sets": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

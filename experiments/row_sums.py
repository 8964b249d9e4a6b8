"""Does every row of the attribution matrix balance: edges + unexpanded + bias = value?

    python -m experiments.row_sums

The gap of a row is |sum + bias - value| / (row L1 + |bias|), and `max_row_gap` is the largest over all rows:

1. random models of several families with every kind of dictionary, all active features expanded, float64 and float32;
2. pretrained models with their neurons, float32 and (in a process of its own) float64.

The package computes rows of layer 0 in float64 (`attribution.precise`). Why it must is shown here: the same rows as the
float32 cores give them, and `cancellation`, the sum of |products| inside the dot products that make up a row, over the
row's own total. Rounding is in proportion to the former, the gap is measured against the latter; layer 0's only sources
are tokens, a handful of dot products over the model's width that may nearly cancel. gap / (2^-24 cancellation) stays
of order one.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import fresh, save, show
from experiments.toys import FAMILIES, KINDS, random_dictionary, random_model
from tcircuits.attribution.attribute import freeze_prompt
from tcircuits.attribution.descent import Descent
from tcircuits.attribution.linear import token_vectors
from tcircuits.attribution.settings import Settings
from tcircuits.attribution.targets import feature_vectors

BOUND = {"float32": 1e-6, "float64": 1e-13}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """Random models."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Dictionaries on them."""
    dtypes: tuple[str, ...] = ("float64", "float32")
    """Of the random models."""
    length: int = 12
    """Tokens of the random prompts."""
    models: tuple[str, ...] = ("smollm2-135m", "glassllm")
    """Pretrained models; none skips the second part."""
    prompt: str = "The capital of France is"
    """For the pretrained models."""
    max_features: int = 2000
    """Expanded in float32."""
    max_features_float64: int = 500
    """Expanded in float64."""


def gaps(graph: tc.Graph) -> np.ndarray:
    """The gap of every row."""
    signed, mass = graph.row_sums()
    return np.abs(signed - graph.row_value) / np.maximum(mass, 1e-300)


def random_cases(families: list[str], kinds: list[str], dtype: str, length: int) -> list[dict[str, Any]]:
    """Every family with every dictionary, in one dtype."""
    return [random_case(family, kind, dtype, length) for family in families for kind in kinds]


def random_case(family: str, kind: str, dtype: str, length: int) -> dict[str, Any]:
    """One random model with one dictionary."""
    model = random_model(family, dtype=dtype)
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, length)
    d = random_dictionary(model, kind, tokens)
    # All rows of a layer in one chunk: one program to compile, for all positions.
    graph = tc.attribute(model, d, tokens, position_zero="nodes", chunk=length * d.cfg.d_feature)
    gap = float(gaps(graph).max())
    row = {"family": family, "dictionary": kind, "dtype": dtype, "features": graph.n_features, "max_row_gap": gap}
    return row | {"within": gap <= BOUND[dtype]}


def pretrained(model: str, dtype: str, prompt: str, max_features: int) -> dict[str, Any]:
    """A pretrained model with its neurons: the largest gap, where it is, and how many rows are above the bound."""
    loaded = tc.load_model(model, dtype=dtype)
    neurons = tc.load_transcoders("neurons", model=loaded)
    graph = tc.attribute(loaded, neurons, prompt, max_features=max_features)
    gap, layer = gaps(graph), graph.row_layer
    above = gap > BOUND[dtype]
    mass = graph.row_sums()[1]
    ratio = mass[: graph.n_features] / np.abs(graph.activations)
    return {
        "model": model,
        "dtype": dtype,
        "rows": len(gap),
        "max_row_gap": float(gap.max()),
        "median_row_gap": float(np.median(gap)),
        "above": int(above.sum()),
        "above_by_layer": {str(i): int(n) for i, n in zip(*np.unique(layer[above], return_counts=True), strict=True)},
        "max_by_layer": {str(i): float(gap[layer == i].max()) for i in np.unique(layer)},
        "worst_rows": worst_rows(graph, gap),
        "mass_over_value": {"median": float(np.median(ratio)), "largest": float(ratio.max())},
        "layer0": layer0(loaded, neurons, graph),
    }


def worst_rows(graph: tc.Graph, gap: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """The rows with the largest gaps."""
    signed, mass = graph.row_sums()
    rows = []
    for r in np.argsort(-gap, kind="stable")[:count]:
        where = graph.features[r] if r < graph.n_features else (graph.n_layers, graph.targets[0].pos, -1)
        place = dict(zip(("layer", "position", "feature"), map(int, where), strict=True))
        rows.append(place | {"gap": gap[r], "value": graph.row_value[r], "sum": signed[r], "mass": mass[r]})
    return rows


def layer0(model: tc.Model, neurons: tc.Transcoders, graph: tc.Graph) -> dict[str, Any]:
    """Layer 0's rows as the compiled cores give them, in the model's own dtype, and the cancellation inside them."""
    rows = np.flatnonzero(graph.features[:, 0] == 0)
    if not len(rows):
        return {}
    gap, cancelled = own_rows(model, neurons, graph, rows)
    dtype = model.params.embed.dtype
    above, epsilon = gap > BOUND[dtype.name], float(np.finfo(dtype).eps) / 2
    return {
        "rows": len(rows),
        "max_row_gap": float(gap.max()),
        "above": int(above.sum()),
        "cancellation_where_above": _range(cancelled[above]),
        "cancellation_elsewhere": _range(cancelled[~above]),
        "gap_over_epsilon_cancellation": _range(gap / (epsilon * cancelled)),
    }


def own_rows(model: tc.Model, neurons: tc.Transcoders, graph: tc.Graph, rows: np.ndarray) -> tuple[np.ndarray, Any]:
    """Gap and cancellation of rows of layer 0, computed without `precise`."""
    settings = Settings(max_features=None, position_zero=graph.settings["position_zero"])
    frozen = freeze_prompt(model, neurons, graph.tokens, settings)
    pos, slot = (jnp.asarray(graph.features[rows, i]) for i in (1, 2))

    @jax.jit
    def numbers(pos: jax.Array, slot: jax.Array) -> tuple[jax.Array, ...]:
        sweep = Descent(model.cfg, model.params, neurons, frozen, len(graph.tokens))
        zero = jnp.zeros_like(pos)
        vec, const, value = feature_vectors(model.cfg, model.params, neurons, frozen, zero, pos, slot)
        g, tokens = sweep.start(0, pos, vec), token_vectors(model.cfg, model.params, frozen.tokens)
        edges = jnp.einsum("TBD,TD->BT", g, tokens, precision="highest")
        bias = jnp.einsum("BD,BD->B", vec, (frozen.constant + frozen.origin)[0, pos], precision="highest") + const
        return edges, bias, value, jnp.einsum("TBD,TD->B", jnp.abs(g), jnp.abs(tokens))

    with jax.default_matmul_precision("highest"):
        edges, bias, value, products = (np.asarray(x, np.float64) for x in numbers(pos, slot))
    mass = np.abs(edges).sum(1) + np.abs(bias)
    return np.abs(edges.sum(1) + bias - value) / mass, products / mass


def _range(x: np.ndarray) -> dict[str, float] | None:
    return {"least": float(x.min()), "median": float(np.median(x)), "largest": float(x.max())} if len(x) else None


def _random(cfg: Config, dtype: str) -> list[dict[str, Any]]:
    arguments = {"families": cfg.families, "kinds": cfg.kinds, "dtype": dtype, "length": cfg.length}
    return fresh("experiments.row_sums", "random_cases", x64=dtype == "float64", **arguments)


def main(cfg: Config) -> None:
    """Measure, print, write."""
    with ThreadPoolExecutor(2) as pool:  # most of the time is compiling, on one core
        cases = [row for rows in pool.map(lambda dtype: _random(cfg, dtype), cfg.dtypes) for row in rows]
    show("random models, all active features expanded", cases)
    found = []
    for model in cfg.models:
        for dtype, n in (("float32", cfg.max_features), ("float64", cfg.max_features_float64)):
            arguments = {"model": model, "dtype": dtype, "prompt": cfg.prompt, "max_features": n}
            found.append(fresh("experiments.row_sums", "pretrained", x64=dtype == "float64", **arguments))
    names = ("model", "dtype", "rows", "max_row_gap", "median_row_gap", "above", "above_by_layer")
    show(f"pretrained models with neurons, {cfg.prompt!r}", [{k: row[k] for k in names} for row in found])
    names = ("rows", "max_row_gap", "above")
    own = [{k: row[k] for k in ("model", "dtype")} | {k: row["layer0"].get(k) for k in names} for row in found]
    show("rows of layer 0 as the cores give them, not in float64", own)
    largest = {d: max((c["max_row_gap"] for c in cases if c["dtype"] == d), default=None) for d in cfg.dtypes}
    save("row_sums", cfg, {"random_max": largest, "random": cases, "pretrained": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

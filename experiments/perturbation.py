"""Do edits move every node by its edges: is the attribution graph what interventions do?

    python -m experiments.perturbation

For random models of every family with every kind of dictionary, in float64 and float32: all active features are nodes;
each source (feature, error, token) is added a random number of times in a run of `interventions.edited_run` in which
patterns, norm denominators, gates and MLPs are held; every target (all features, all logits of the graph) must move by
that number times its edge. The gap is |moved - edge| / (row L1 + |bias|), where 1e-13 and 1e-6 are asked for.

Targets in layer 0 are listed apart: their rows are a few dot products with token embeddings, whose products may nearly
cancel. The graph has those rows in float64 (`attribution.precise`), so what they are compared with (`gap_layer0`) is a
run in float64 as well, of the same weights with the same clean run held. The run in the model's own dtype rounds in
proportion to the products and not to the row: `gap_layer0_own`, `above_layer0_own`; `products_gap` says that it is no
more than that.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import fresh, save, show
from experiments.row_sums import BOUND, own_rows
from experiments.toys import FAMILIES, KINDS, random_dictionary, random_model
from tcircuits.attribution.frozen import freeze
from tcircuits.attribution.linear import token_vectors
from tcircuits.interventions import FeatureEdit, clean_run, edited_run
from tcircuits.models.edits import Edit


@dataclass(frozen=True)
class Config:
    """What to measure."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """Random models."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Dictionaries on them."""
    dtypes: tuple[str, ...] = ("float64", "float32")
    """Of the models and of the runs."""
    length: int = 6
    """Tokens of the random prompts."""


def lanes(
    graph: tc.Graph, site: str, vectors: np.ndarray, times: np.ndarray, dtype: Any
) -> tuple[tuple[FeatureEdit], tuple[Edit, ...]]:
    """One lane a source, after one without edits: a feature scaled by 1 + times, an error or token added `times`.

    `vectors` [L * T + T, D] are those of errors, which are added where the dictionary writes (`site`), and of tokens.
    """
    n, T, L = graph.n_features, len(graph.tokens), graph.n_layers
    size = 1 + graph.n_sources
    layer, position, feature, value = np.full(size, -1), np.zeros(size, int), np.zeros(size, int), np.zeros(size)
    layer[1 : n + 1], position[1 : n + 1], feature[1 : n + 1] = graph.features.T
    value[1 : n + 1] = 1 + times[:n]
    at, start, stop, number = (jnp.asarray(x, jnp.int32)[:, None] for x in (layer, position, position + 1, feature))
    features = FeatureEdit("scale", at, start, stop, number, jnp.asarray(value, dtype)[:, None])
    vectors = vectors * times[n:, None]

    def sites(site: str, first: int, count: int, layers: np.ndarray) -> Edit:
        where, place = np.full(size, -1), np.zeros(size, int)
        added = np.zeros((size, vectors.shape[1]))
        rows = slice(1 + n + first, 1 + n + first + count)
        where[rows], place[rows], added[rows] = layers, np.arange(count) % T, vectors[first : first + count]
        at, start, stop = (jnp.asarray(x, jnp.int32)[:, None] for x in (where, place, place + 1))
        return Edit(site, "add", at, start, stop, jnp.asarray(added, dtype)[:, None])

    errors = sites(site, 0, L * T, np.arange(L * T) // T)
    return (features,), (sites("resid_pre", L * T, T, np.zeros(T, int)), errors)


@partial(jax.jit, static_argnames=("cfg", "pairs"))
def _values(
    cfg: Any, params: Any, d: Any, clean: Any, tokens: Any, features: Any, sites: Any, where: Any, pairs: Any
) -> Any:
    """[lanes, targets]: linear values of the features at `where` [3, n], and the demeaned logits of `pairs`."""
    held = jnp.ones(cfg.n_layers)

    def one(edits: Any) -> Any:
        out = edited_run(cfg, params, d, tokens, clean, *edits, hold_mlps=held, freeze_norms=True)
        pos, token = jnp.asarray(pairs).T
        raw = out.logits
        if cfg.final_softcap is not None:
            raw = cfg.final_softcap * jnp.arctanh(raw / cfg.final_softcap)
        return jnp.concatenate([out.linear[*where], raw[pos, token] - raw[pos].mean(-1)])

    return jax.lax.map(one, (features, sites), batch_size=128)


def case(family: str, kind: str, dtype: str, length: int) -> dict[str, Any]:
    """One random model with one dictionary."""
    model = random_model(family, dtype=dtype)
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, length)
    d = random_dictionary(model, kind, tokens)
    graph = tc.attribute(model, d, tokens, position_zero="nodes", chunk=length * d.cfg.d_feature)
    times = np.random.default_rng(3).uniform(-2, 2, graph.n_sources)
    frozen = jax.jit(freeze, static_argnums=0)(model.cfg, model.params, d, jnp.asarray(tokens))
    words = token_vectors(model.cfg, model.params, frozen.tokens)
    vectors = np.concatenate([np.asarray(a, np.float64).reshape(-1, model.cfg.d_model) for a in (frozen.error, words)])
    pairs = tuple((t.pos, t.token) for t in graph.targets if t.token is not None)
    where = jnp.asarray(graph.features.T)
    clean = jax.jit(clean_run, static_argnums=0)(model.cfg, model.params, d, jnp.asarray(tokens))
    arrays = model.params, d, clean, jnp.asarray(tokens)
    edges = graph.dense()[graph.row_nodes, : graph.n_sources].astype(np.float64)
    mass = np.maximum(graph.row_sums()[1], 1e-300)

    def gaps(arrays: Any, dtype: Any) -> np.ndarray:
        edits = lanes(graph, d.cfg.writes, vectors, times, dtype)
        found = np.asarray(_values(model.cfg, *arrays, *edits, where, pairs), np.float64)
        return np.abs((found[1:] - found[0]).T - edges * times).max(1) / mass

    gap = gaps(arrays, model.params.embed.dtype)
    first = np.flatnonzero(graph.features[:, 0] == 0)
    later = np.delete(gap, first)
    with jax.enable_x64(True):
        exact = gaps(jax.tree.map(_widened, arrays), jnp.float64)[first]
    _, cancelled = own_rows(model, d, graph, first) if len(first) else (None, np.ones(0))
    return {
        "family": family,
        "dictionary": kind,
        "dtype": dtype,
        "targets": len(gap),
        "sources": graph.n_sources,
        "gap": float(later.max()),
        "gap_layer0": float(exact.max(initial=0.0)),
        "gap_layer0_own": float(gap[first].max(initial=0.0)),
        "above_layer0_own": int((gap[first] > BOUND[dtype]).sum()),
        "rows_layer0": len(first),
        "products_gap": float((gap[first] / cancelled).max(initial=0.0)),
        "within": bool(max(later.max(), exact.max(initial=0.0)) <= BOUND[dtype]),
    }


def _widened(x: Any) -> Any:
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def cases(families: list[str], kinds: list[str], dtype: str, length: int) -> list[dict[str, Any]]:
    """Every family with every dictionary, in one dtype."""
    found = []
    for family in families:
        for kind in kinds:
            found.append(case(family, kind, dtype, length))
            jax.clear_caches()  # hundreds of programs would exhaust a process's memory mappings
    return found


def main(cfg: Config) -> None:
    """Measure, print, write."""
    rest = {"families": cfg.families, "kinds": cfg.kinds, "length": cfg.length}
    with ThreadPoolExecutor(2) as pool:  # most of the time is compiling, on one core
        parts = pool.map(
            lambda dtype: fresh("experiments.perturbation", "cases", x64=dtype == "float64", dtype=dtype, **rest),
            cfg.dtypes,
        )
        rows = [row for part in parts for row in part]
    show("edits against edges, everything held", rows)
    summary = {dtype: _summary([r for r in rows if r["dtype"] == dtype]) for dtype in cfg.dtypes}
    show("largest", [{"dtype": k} | v for k, v in summary.items()])
    save("perturbation", cfg, {"summary": summary, "cases": rows})


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    top = {name: max(r[name] for r in rows) for name in ("gap", "gap_layer0", "gap_layer0_own", "products_gap")}
    counts = {name: sum(r[name] for r in rows) for name in ("targets", "rows_layer0", "above_layer0_own")}
    return top | counts | {"cases": len(rows), "within": sum(r["within"] for r in rows)}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

"""Do edges of the attribution graph say what happens when one is patched in the model itself?

    python -m experiments.edge_patching

An edge is computed with attention patterns and norms held at their values on the prompt. Here each source (a feature,
an MLP error, a token's embedding) is taken out of the model while every MLP writes what it wrote, so that only direct
effects remain, and targets are read: features' values before the activation function, the graph's logits less the
vocabulary's mean, and the difference of the first two:

    held       patterns and norms held: what the edge is defined as; the gap measures arithmetic alone
    norms      norms are computed anew
    free       patterns too: exact patching of the direct path in the model as it is

Pearson correlation of -edge with the change, over all pairs of source and target with an edge, by kind; `slope` is the
regression of the change on the edge. A norm that is computed anew scales whatever is read: a logit far from the mean
moves with every source's part of the stream's length, which no edge holds, a difference of logits less so. Prompts are
those of the embedded model's tasks. The bar is .97 to .99, published for RelP with exact patching of whole components
(arXiv 2508.21258).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import save, show
from experiments.perturbation import lanes
from tcircuits.attribution.frozen import freeze
from tcircuits.attribution.linear import token_vectors
from tcircuits.interventions import clean_run, edited_run
from tcircuits.transcoders.evaluation.intervals import Interval, interval, resampled

WAYS = {"held": (True, True), "norms": (True, False), "free": (False, False)}


@dataclass(frozen=True)
class Config:
    """What to patch."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    transcoders: tuple[str, ...] = ("tiny-transcoders", "neurons")
    """Sets, each measured by itself."""
    tasks: tuple[str, ...] = ("ioi", "greater_than", "agreement", "induction")
    """Of `tcircuits.tasks.TASKS`."""
    prompts: int = 4
    """Of each task."""
    max_features: int = 400
    """Sources and targets of each graph."""
    seed: int = 0
    """Of the prompts."""


@partial(jax.jit, static_argnames=("cfg", "attention", "norms"))
def _changes(
    cfg: Any,
    params: Any,
    d: Any,
    clean: Any,
    tokens: Any,
    edits: Any,
    where: Any,
    pairs: Any,
    attention: bool,
    norms: bool,
) -> Any:
    """[lanes, targets]: values of the features at `where` [3, n] and demeaned logits, one lane an edit."""
    held = jnp.ones(cfg.n_layers)

    def one(edits: Any) -> Any:
        how: Any = {"hold_mlps": held, "freeze_attention": attention, "freeze_norms": norms}
        out = edited_run(cfg, params, d, tokens, clean, *edits, **how)
        return jnp.concatenate([out.linear[*where], out.logits[pairs[0], pairs[1]] - out.logits[pairs[0]].mean(-1)])

    return jax.lax.map(one, edits, batch_size=32)


def case(cfg: Config, model: tc.Model, d: tc.Transcoders, tokens: np.ndarray) -> dict[str, Any]:
    """One prompt: edges, changes by way, kinds of sources and targets."""
    graph = tc.attribute(model, d, tokens, max_features=cfg.max_features, position_zero="nodes")
    times = np.full(graph.n_sources, -1.0)
    frozen = jax.jit(freeze, static_argnums=0)(model.cfg, model.params, d, jnp.asarray(tokens))
    words = token_vectors(model.cfg, model.params, frozen.tokens)
    vectors = np.concatenate([np.asarray(a, np.float64).reshape(-1, model.cfg.d_model) for a in (frozen.error, words)])
    edits = lanes(graph, d.cfg.writes, vectors, times, model.params.embed.dtype)
    logits = [(t.pos, t.token) for t in graph.targets if t.token is not None]
    where, pairs = jnp.asarray(graph.features.T), jnp.asarray(np.array(logits).T)
    clean = jax.jit(clean_run, static_argnums=0)(model.cfg, model.params, d, jnp.asarray(tokens))
    edges = graph.dense()[graph.row_nodes, : graph.n_sources].astype(np.float64)
    found: dict[str, Any] = {"edges": _with_difference(edges, len(logits))}
    for name, (attention, norms) in WAYS.items():
        arrays = model.cfg, model.params, d, clean, jnp.asarray(tokens)
        values = np.asarray(_changes(*arrays, edits, where, pairs, attention, norms), np.float64)
        found[name] = _with_difference((values[1:] - values[0]).T, len(logits))
    n, errors = len(graph.features), model.cfg.n_layers * len(tokens)
    found["source"] = np.repeat(["feature", "error", "token"], [n, errors, len(words)])
    found["target"] = np.repeat(["feature", "logit", "difference"], [n, len(logits), int(len(logits) > 1)])
    return found


def _with_difference(rows: np.ndarray, logits: int) -> np.ndarray:
    """A row more where there are two logits: the first less the second (the last `logits` rows)."""
    return (
        rows
        if logits < 2
        else np.concatenate([rows, rows[len(rows) - logits][None] - rows[len(rows) - logits + 1][None]])
    )


def correlations(cases: list[dict[str, Any]], way: str) -> list[dict[str, Any]]:
    """By kind of source and target, over prompts."""
    rows = []
    for source in ("all", "feature", "error", "token"):
        for target in ("all", "feature", "logit", "difference"):
            each, slopes, pairs = [], [], 0
            for c in cases:
                keep = (c["edges"] != 0) & _chosen(c["source"], source)[None] & _chosen(c["target"], target)[:, None]
                x, y = -c["edges"][keep], c[way][keep]
                if len(x) > 2 and x.std() > 0 and y.std() > 0:
                    each.append(np.corrcoef(x, y)[0, 1])
                    slopes.append(np.polyfit(x, y, 1)[0])
                    pairs += len(x)
            if each:
                mean = _interval(np.array(each))
                row = {"way": way, "source": source, "target": target, "pairs": pairs, "pearson": mean.value}
                rows.append(row | {"low": mean.low, "high": mean.high, "slope": float(np.mean(slopes))})
    return rows


def _chosen(kinds: np.ndarray, wanted: str) -> np.ndarray:
    return np.ones(len(kinds), bool) if wanted == "all" else kinds == wanted


def _interval(values: np.ndarray) -> Interval:
    return interval(float(values.mean()), resampled(values), len(values))


def main(cfg: Config) -> None:
    """Measure, print, write."""
    model, found = tc.load_model(cfg.model), []
    sizes = {"attribution": 1, "selection": 1, "report": cfg.prompts}
    behaviours = {task: tc.make_behaviour(model, task, sizes=sizes, seed=cfg.seed) for task in cfg.tasks}
    for name in cfg.transcoders:
        d, cases = tc.load_transcoders(name, model=model), []
        for behaviour in behaviours.values():
            p = behaviour["report"]
            cases += [case(cfg, model, d, row[start:]) for row, start in zip(p.clean, p.padding, strict=True)]
        rows = [row for way in WAYS for row in correlations(cases, way)]
        found += [{"transcoders": name} | row for row in rows]
        show(name, rows)
        save("edge_patching", cfg, {"rows": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

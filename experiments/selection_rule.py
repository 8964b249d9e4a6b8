"""How much influence do N selected features carry, by each rule, against the best N there are?

    python -m experiments.selection_rule

On prompts short enough to expand every active neuron, the influence of each feature is exact. Rules then choose N
features without it; what counts is the sum of true influence over the chosen ones, over that of the N most influential
(the oracle). Rules:

- `sketch R`: the default, influence estimated with R random probes (`attribution.sketch`);
- `effect`: |activation x total derivative| of the targets (`attribution.rows.effects`);
- `direct`: the targets' own rows, no path through other features;
- `rounds Q`: the public tracer's rounds of Q features (`attribution.reference_selection`): rows of the features found
  so far rank the next Q. It needs the rows of all features that it visits; its time here is that of ranking alone;
- `random`: any N, the mean of some draws.

All get the same targets and prompts. Times of the package's cores are the best of two calls, compiled.

A model too large to be expanded whole has no oracle; there the share of influence that ends in features that are not
expanded (`unexpanded_share`) compares the package's two rules.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import save, show, timed
from tcircuits.attribution.attribute import freeze_prompt
from tcircuits.attribution.descent import Descent
from tcircuits.attribution.outputs import resolve
from tcircuits.attribution.prune import scores as host_scores
from tcircuits.attribution.prune import series
from tcircuits.attribution.rows import effects
from tcircuits.attribution.settings import Settings
from tcircuits.attribution.sketch import influence_sketch

PROMPTS = (
    "In the beginning there",
    "Once upon a time there was",
    "She looked out of the window and",
    "The king said to his men that",
    "It was the best of times, it was the worst of",
)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    model: str = "glassllm"
    """A model that is small enough for all of its neurons to be expanded."""
    prompts: tuple[str, ...] = PROMPTS
    """What to explain the next token of."""
    sizes: tuple[int, ...] = (250, 500, 1000, 2000, 4000)
    """Features selected."""
    probes: tuple[int, ...] = (16, 64, 256)
    """Of the sketch; 64 is the package's default."""
    queues: tuple[int, ...] = (256, 2048)
    """Features visited a round; 2048 is the public tracer's default (4 batches of 512)."""
    draws: int = 20
    """Of the random rule."""
    large: str | None = "smollm2-135m"
    """A model without an oracle; None skips it."""
    large_prompt: str = "The capital of France is"
    """Its prompt."""
    large_sizes: tuple[int, ...] = (500, 2000)
    """Features selected in it."""


@dataclass(frozen=True)
class Case:
    """One prompt: its graph with every feature expanded, and what the rules work on."""

    model: tc.Model
    neurons: tc.Transcoders
    graph: tc.Graph
    frozen: Any
    targets: Any

    @property
    def influence(self) -> np.ndarray:
        """True influence of every active feature."""
        return self.graph.influence[: self.graph.n_features]

    def scores(self, core: Any, **static: Any) -> tuple[np.ndarray, float]:
        """Score of every active feature by a core of the package, and the seconds that it takes."""
        f = jax.jit(partial(core, self.model.cfg, **static))
        done = timed(lambda: f(self.model.params, self.neurons, self.frozen, self.targets), 2)
        return np.asarray(done.value)[np.asarray(self.frozen.valid)], done.best


def make_case(model: tc.Model, prompt: str) -> tuple[Case, float]:
    """Expand a prompt whole; also the seconds that its rows took."""
    neurons, times = tc.load_transcoders("neurons", model=model), tc.Timings()
    graph = tc.attribute(model, neurons, prompt, timings=times)
    settings = Settings(max_features=None)
    frozen = freeze_prompt(model, neurons, graph.tokens, settings)
    (targets,), _ = resolve(model, neurons, frozen, None, settings)
    assert graph.n_features == int(frozen.valid.sum())
    return Case(model, neurons, graph, frozen, targets), times["attribute"]


def direct(cfg: Any, params: Any, dictionary: tc.Transcoders, frozen: Any, targets: Any) -> jax.Array:
    """Weighted |edge| from every feature to the targets [L, T, C]."""
    sweep = Descent(cfg, params, dictionary, frozen, frozen.tokens.shape[0])

    def chunk(total: jax.Array, t: Any) -> tuple[jax.Array, None]:
        def body(i: jax.Array, carry: Any) -> Any:
            g, acc, total = carry
            m = t.layer - 1 - i
            written = sweep.written(m, g)
            r, acc = sweep.reads(m, written, acc)
            edge = jnp.einsum("B,TBC->TC", t.weight, jnp.abs(r))
            return sweep.below(m, g, written), acc, total.at[m].add(edge)

        start = (sweep.start(t.layer, t.pos, t.vec), sweep.accumulator(t.pos.shape[0]), total)
        return jax.lax.fori_loop(0, t.layer, body, start)[2], None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(chunk, jnp.zeros_like(frozen.value), targets)[0]


def visiting_order(graph: tc.Graph, n_keep: int, queue: int) -> np.ndarray:
    """The first `n_keep` features in the order in which the rounds visit them."""
    n = graph.n_features
    known, order = np.zeros(n + len(graph.targets), bool), np.zeros(0, np.int64)
    known[n:] = True
    while len(order) < min(n_keep, n):
        score = series(graph, known).columns[:n]
        ranked = np.argsort(-score, kind="stable")
        fresh = ranked[~known[ranked]][: min(queue, n_keep - len(order))]
        known[fresh], order = True, np.concatenate([order, fresh])
    return order


def log_correlation(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Pearson correlation of logarithms, over features where both are positive."""
    both = (estimate > 0) & (truth > 0)
    return float(np.corrcoef(np.log(estimate[both]), np.log(truth[both]))[0, 1])


def orders(case: Case, cfg: Config) -> dict[str, tuple[np.ndarray, float, float | None]]:
    """By rule: features from best to worst, seconds, and the correlation of its score with influence."""
    cores: dict[str, tuple[Any, dict[str, Any]]] = {
        f"sketch {r}": (influence_sketch, {"n_probes": r}) for r in cfg.probes
    } | {"effect": (effects, {}), "direct": (direct, {})}
    found: dict[str, tuple[np.ndarray, float, float | None]] = {}
    for rule, (core, static) in cores.items():
        score, seconds = case.scores(core, **static)
        found[rule] = (np.argsort(-score, kind="stable"), seconds, log_correlation(score, case.influence))

    for queue in cfg.queues:
        done = timed(partial(visiting_order, case.graph, max(cfg.sizes), queue), 0)
        found[f"rounds {queue}"] = (done.value, done.best, None)
    return found


def captured(case: Case, cfg: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """About the prompt, and one row for each rule: the share of the oracle's influence that it captures, by N."""
    influence, total = case.influence, float(case.influence.sum())
    best = np.cumsum(np.sort(influence)[::-1])
    sizes = [n for n in cfg.sizes if n <= len(influence)]
    rows = []
    for rule, (order, seconds, correlation) in orders(case, cfg).items():
        got = np.cumsum(influence[order])
        shares = {str(n): float(got[n - 1] / best[n - 1]) for n in sizes}
        rows.append({"rule": rule, "of_oracle": shares, "seconds": seconds, "log_correlation": correlation})
    rng = np.random.default_rng(0)
    draws = [np.cumsum(influence[rng.permutation(len(influence))]) for _ in range(cfg.draws)]
    mean = np.mean(draws, 0)
    shares = {str(n): float(mean[n - 1] / best[n - 1]) for n in sizes}
    rows.append({"rule": "random", "of_oracle": shares, "seconds": None, "log_correlation": None})
    about = {
        "prompt": case.graph.prompt,
        "tokens": len(case.graph.tokens),
        "features": len(influence),
        "edges": len(case.graph.weight),
        "max_row_gap": case.graph.max_row_gap,
        "oracle_of_all": {str(n): float(best[n - 1] / total) for n in sizes},
    }
    return about, rows


def spread(values: list[float | None]) -> dict[str, float] | None:
    """Mean and range."""
    known = [v for v in values if v is not None]
    return {"mean": float(np.mean(known)), "least": min(known), "largest": max(known)} if known else None


def over_prompts(by_prompt: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean and range of each rule's figures over the prompts."""
    rows = []
    for same in zip(*by_prompt, strict=True):
        sizes = [n for n in same[0]["of_oracle"] if all(n in r["of_oracle"] for r in same)]
        row = {"rule": same[0]["rule"], "of_oracle": {n: spread([r["of_oracle"][n] for r in same]) for n in sizes}}
        rows.append(row | {name: spread([r[name] for r in same]) for name in ("seconds", "log_correlation")})
    return rows


def without_oracle(cfg: Config) -> list[dict[str, Any]]:
    """What stays unexpanded in the large model, by rule and N."""
    if cfg.large is None:
        return []
    model = tc.load_model(cfg.large)
    neurons, rows = tc.load_transcoders("neurons", model=model), []
    for n in cfg.large_sizes:
        for rule in ("influence", "effect"):
            graph = tc.attribute(model, neurons, cfg.large_prompt, max_features=n, selection=rule)
            found = host_scores(graph)
            rows.append({"rule": rule, "n": n, "active": graph.n_active, "unexpanded_share": found.unexpanded_share})
    return rows


def main(cfg: Config) -> None:
    """Measure, print, write."""
    model = tc.load_model(cfg.model)
    prompts, by_prompt = [], []
    for prompt in cfg.prompts:
        case, seconds = make_case(model, prompt)
        about, rows = captured(case, cfg)
        prompts.append(about | {"seconds_all_rows": seconds, "rules": rows})
        by_prompt.append(rows)
        del case
    summary = over_prompts(by_prompt)
    names = ("prompt", "tokens", "features", "edges", "max_row_gap", "seconds_all_rows")
    show("prompts, every neuron expanded", [{k: p[k] for k in names} for p in prompts])
    table = []
    for row in summary:
        shares = {f"N={n}": f"{s['mean']:.3f} ({s['least']:.3f})" for n, s in row["of_oracle"].items()}
        others = {k: None if row[k] is None else row[k]["mean"] for k in ("log_correlation", "seconds")}
        table.append({"rule": row["rule"]} | shares | others)
    show("share of the oracle's influence: mean over prompts (least)", table)
    large = without_oracle(cfg)
    show(f"{cfg.large}, {cfg.large_prompt!r}: influence that ends in features not expanded", large)
    save("selection_rule", cfg, {"summary": summary, "prompts": prompts, "without_oracle": large})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

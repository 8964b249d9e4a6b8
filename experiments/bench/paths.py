"""Path search with the paper's settings on a GPT-2-small-shaped model, against its reference algorithm in NumPy.

    python -m experiments.bench.paths

Random weights: 12 layers of width 768, 12 heads, 24,576 ReLU features a layer with biases such that the wanted number
is active at a position; a feature of layer 8 at the last position is the root, five iterations, fifteen branches,
positive contributions, no head to position 0, as in the paper. Every side starts from token ids and its weights in
memory and ends with its paths:

- `ours`: `find_paths`, compiled before; `search` of it is the search and the graph, the rest the frozen prompt, of
  which it runs the layers up to the root's.
- `reference`: the reference algorithm with its dense evaluations for every path and layer (`rival_paths.Reference`);
  `reference_row` the same but for attention, of which it makes the one row that it uses; `reference_restacked` also
  stacks attention's weights anew for every candidate, as the reference code does.
- `cached`: a fair version that encodes each layer once (`rival_paths.Cached`).

What the reference takes grows with the layers that it visits (`layer_visits`): paths go down several layers a step, so
that there are fewer than the 370 which a count of six layers for every path gives (`visits_counted`); `ratios_counted`
is what the ratios would be with so many at the measured time of a visit. Ours does not depend on it.

`same_paths` says that all found the same paths (each level's as a set) and `difference` how far contributions are
apart, relative to the largest of their level.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.bench.rival_paths import Cached, Path, Reference
from experiments.common import peak_rss_gb, save, show
from experiments.toys import random_model
from tcircuits.attribution.paths.filters import KINDS
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders

SIZES: dict[str, Any] = {
    "n_layers": 12, "d_model": 768, "n_heads": 12, "n_kv_heads": 12, "d_head": 64, "d_mlp": 3072, "d_vocab": 50_257,
    "n_ctx": 1024,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "n_layers": 9, "d_model": 32, "n_heads": 4, "n_kv_heads": 4, "d_head": 8, "d_mlp": 64, "d_vocab": 97, "n_ctx": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What to measure."""

    length: int = 40
    """Tokens of the prompt."""
    d_feature: int = 24_576
    """Features of a layer."""
    active: int = 64
    """Active features at a position, on average."""
    layer: int = 8
    """Of the root."""
    iterations: int = 5
    """Nodes below the root at most."""
    branches: int = 15
    """Paths kept at each level."""
    repeats: int = 5
    """Of our side and of the cached one; the best counts. The reference runs once."""
    small: bool = False
    """A small model instead, to see that it runs."""


def dictionary(model: tc.Model, cfg: Config, tokens: np.ndarray) -> Transcoders:
    """Random per-layer transcoders of which `active` features are on at a position, on average."""
    L, D, F = model.cfg.n_layers, model.cfg.d_model, cfg.d_feature
    rng = np.random.default_rng(1)

    def matrix() -> jax.Array:
        out = np.empty((L, F, D), np.float32)
        for m in range(L):
            rng.standard_normal(out=out[m], dtype=np.float32)
            out[m] /= np.float32(D**0.5)
        return jnp.asarray(out)

    w_enc, w_dec = matrix(), matrix()
    x = np.asarray(tc.forward(model.cfg, model.params, jnp.asarray(tokens[None]), sites=("mlp_in",)).acts["mlp_in"])
    pre = (x[m, 0, 1:] @ np.asarray(w_enc[m]).T for m in range(L))
    cut = np.array([np.quantile(p, 1 - cfg.active / F) for p in pre], np.float32)
    b_enc = jnp.broadcast_to(-jnp.asarray(cut)[:, None], (L, F))
    b_dec = jnp.asarray(0.1 * rng.standard_normal((L, D), np.float32))
    c = TranscoderConfig("transcoder", L, D, F, tuple(range(L)))
    return Transcoders(c, "random", w_enc, b_enc, w_dec, b_dec, None, None)


def clocked(f: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The best time of some calls, and what the last returned."""
    seconds, value = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        value = f()
        seconds.append(time.perf_counter() - start)
    return min(seconds), value


Found = list[dict[tuple, float]]


def of_graph(graph: tc.PathGraph) -> Found:
    """Each level's paths with their contributions."""
    name = [KINDS[k] for k in graph.kind]
    nodes = list(zip(name, graph.layer.tolist(), graph.pos.tolist(), graph.index.tolist(), strict=True))
    return [{tuple(nodes[j] for j in graph.chain(i)): float(graph.value[i]) for i in level} for level in graph.levels]


def of_rival(levels: list[list[Path]]) -> Found:
    """The same of a rival's."""
    return [{p.nodes: p.value for p in level} for level in levels]


def compare(ours: Found, theirs: Found) -> dict[str, Any]:
    """Whether two searches found the same paths, and how far their contributions are apart."""
    same = len(ours) == len(theirs) and all(a.keys() == b.keys() for a, b in zip(ours, theirs, strict=True))
    both = [(a[p], b[p], max(b.values())) for a, b in zip(ours, theirs, strict=False) for p in a.keys() & b.keys()]
    shared = len(both) / max(sum(len(level) for level in theirs), 1)
    apart = max((abs(x - y) / size for x, y, size in both), default=0.0)
    return {"same_paths": same, "shared": shared, "difference": apart}


def measure(cfg: Config) -> dict[str, Any]:
    """All sides on one prompt."""
    model = random_model("gpt2", **SMALL if cfg.small else SIZES)
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, cfg.length)
    d = dictionary(model, cfg, tokens)
    rival = Reference(model, d, tokens)
    rival.run()
    counts = np.stack([(rival.encode(m) > 0).sum(-1) for m in range(model.cfg.n_layers)])
    pos = cfg.length - 1
    root = (cfg.layer, pos, int(np.argmax(rival.encode(cfg.layer)[pos])))
    options: dict[str, Any] = {"iterations": cfg.iterations, "branches": cfg.branches}
    target = tc.Feature(cfg.layer, pos, root[2])

    def ours(times: tc.Timings | None = None) -> tc.PathGraph:
        asked = {"target": target, "positive": True, "bos_source": False, "timings": times}
        return tc.find_paths(model, d, tokens, **asked, **options)

    first, _ = clocked(ours, 1)
    seconds, graph = clocked(ours, cfg.repeats)
    times = tc.Timings()
    ours(times)
    found = of_graph(graph)
    cached_seconds, cached = clocked(lambda: Cached(model, d, tokens).search(root, **options), cfg.repeats)
    sides: dict[str, Any] = {"ours": {"seconds": seconds, "first": first, "search": times["search"]}}
    sides["cached"] = {"seconds": cached_seconds} | compare(found, of_rival(cached))
    kinds = {"reference_row": (False, False), "reference": (True, False), "reference_restacked": (True, True)}
    for name, (whole, restack) in kinds.items():
        side = Reference(model, d, tokens, whole_attention=whole, restack=restack)
        took, levels = clocked(lambda side=side: side.search(root, **options), 1)
        sides[name] = {"seconds": took, "layer_visits": side.visits, "stacks": side.stacks, "dense": side.dense}
        sides[name] |= compare(found, of_rival(levels))
    ratios = {name: side["seconds"] / seconds for name, side in sides.items() if name != "ours"}
    counted = cfg.layer + (cfg.iterations - 1) * cfg.branches * 6
    grown = {name: ratios[name] * counted / sides[name]["layer_visits"] for name in kinds}
    return {
        "active": {"mean": float(counts.mean()), "most": int(counts.max())},
        "root_activation": float(graph.value[0]),
        "n_paths": graph.n_paths,
        "max_gap": float(graph.gap.max()),
        "sides": sides,
        "ratios": ratios,
        "visits_counted": counted,
        "ratios_counted": grown,
        "peak_rss_gb": peak_rss_gb(),
    }


def main(cfg: Config) -> None:
    """Measure, print, write."""
    found = measure(cfg)
    rows = [{"side": n, "seconds": s["seconds"], "ratio": found["ratios"].get(n)} for n, s in found["sides"].items()]
    show(f"{found['active']['mean']:.0f} active features at a position, {cfg.length} tokens", rows)
    print(found)
    save("bench.paths", cfg, found)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

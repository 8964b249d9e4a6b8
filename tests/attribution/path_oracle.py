"""All paths of a small case by brute force, forward: what the last component writes is pushed up the path to its root.

A path is a tuple of components (kind, layer, position, index), root first. Float64, no transposes, no search.
"""

from typing import Any

import numpy as np

from ..reference import attribution as at
from ..reference import dictionary, model

FEATURE, HEAD, EMBED, ROOT = range(4)
Component = tuple[int, int, int, int]
Path = tuple[Component, ...]


class Oracle:
    """One frozen case; `read` is (target of `reference.attribution`) whose value paths make up."""

    def __init__(self, case: Any, target: at.Target) -> None:
        self.here = at.localise(case.cfg, case.params, case.d, case.tokens)
        self.target, self.cfg, self.params, self.d = target, case.cfg, case.params, case.d
        self.run, self.frozen = self.here.run, self.here.frozen
        if target.kind == "feature":
            self.root = (FEATURE, target.layer, target.position % self.here.length, target.feature)
        else:
            self.root = (ROOT, self.cfg.n_layers, target.position % self.here.length, -1)

    def part(self, layer: int, name: str) -> Any:
        return model.layer_of(self.params["blocks"][name], layer)

    def norm(self, name: str, layer: int, t: int, x: np.ndarray) -> np.ndarray:
        """A frozen norm of one vector, without its bias."""
        p = self.part(layer, name)
        if p is None:
            return x
        return model.centre(self.cfg, x) / self.frozen.scales[name][layer][t] * p["w"]

    def value_of(self, layer: int, head: int, s: int, x: np.ndarray, biases: bool) -> np.ndarray:
        """[K]: the value vector that a head makes of the stream `x` at s."""
        attn, g = self.part(layer, "attn"), head // (self.cfg.n_heads // self.cfg.n_kv_heads)
        y, norm = self.norm("norm1", layer, s, x), self.part(layer, "norm1")
        if biases and norm is not None and norm["b"] is not None:
            y = y + norm["b"]
        v = y @ attn["w_v"][:, g]
        return v + attn["b_v"][g] if biases and attn["b_v"] is not None else v

    def head_writes(self, layer: int, head: int, s: int, t: int, value: np.ndarray) -> np.ndarray:
        out = self.frozen.pattern[layer][head, t, s] * value @ self.part(layer, "attn")["w_o"][head]
        return self.norm("norm1_post", layer, t, out)

    def local(self, t: int, start: np.ndarray, attn: np.ndarray, mlp: np.ndarray) -> tuple[Any, Any, np.ndarray]:
        """Push one position's stream up: (resid_pre, what features read) by layer, and the final norm's output."""
        cfg, x, before, readings = self.cfg, start, [], []
        for layer in range(cfg.n_layers):
            before.append(x)
            middle = x if cfg.parallel else x + attn[layer]
            site = dictionary.reads(self.d, layer)
            bare = middle
            if self.part(layer, "norm2") is not None:
                bare = model.centre(cfg, middle) / self.frozen.scales["norm2"][layer][t]
            readings.append(
                {"resid_mid": middle, "normalized": bare, "mlp_in": self.norm("norm2", layer, t, middle)}[site]
            )
            w = dictionary.skip(self.d, layer)
            written = mlp[layer] if w is None else mlp[layer] + readings[-1] @ w
            if dictionary.writes(self.d, layer) == "mlp_raw":
                written = self.norm("norm2_post", layer, t, written)
            x = x + attn[layer] + written
        final = self.params["final_norm"]
        if final is not None:
            return before, readings, model.centre(cfg, x) / self.frozen.scales["final_norm"][t] * final["w"]
        return before, readings, x

    def writes(self, c: Component, t: int, given: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a component writes at t: (embedding [D], attention outputs [L, D], MLP outputs [L, D]).

        `given` is what it reads along a path (a number, or a head's stream), None for all that it really reads.
        """
        kind, layer, pos, index = c
        L, D = self.cfg.n_layers, self.cfg.d_model
        start, attn, mlp = np.zeros(D), np.zeros((L, D)), np.zeros((L, D))
        if kind == EMBED:
            start = self.run.sites["resid_pre"][0][pos]
        elif kind == FEATURE:
            amount = self.here.values[layer][pos, index] if given is None else given
            for out, rows in dictionary.decoders(self.params, self.d, layer):
                mlp[out] = amount * rows[index]
        else:
            x = self.run.sites["resid_pre"][layer][pos] if given is None else given
            attn[layer] = self.head_writes(layer, index, pos, t, self.value_of(layer, index, pos, x, given is None))
        return start, attn, mlp

    def reads(self, c: Component, before: Any, readings: Any, final: np.ndarray) -> Any:
        """What a component reads of streams at its position."""
        kind, layer, pos, index = c
        if kind == HEAD:
            return before[layer]
        if kind == FEATURE:
            rows, _ = dictionary.encoder(self.cfg, self.params, self.d, self.run, layer)
            return float(readings[layer] @ rows[pos, index])
        t = self.target
        return float(final @ (t.vector if t.kind == "direction" else at.demeaned(self.here, t.token)[0]))

    def contribution(self, path: Path) -> float:
        """Of the last component, along the path, to the root."""
        given = None
        for above, c in zip(path[-2::-1], path[::-1], strict=False):
            streams = self.local(above[2], *self.writes(c, above[2], given))
            given = self.reads(above, *streams)
        assert isinstance(given, float)
        return given

    def continuations(self, c: Component) -> list[Component]:
        """All that a component reads directly."""
        kind, layer, pos, _ = c
        if kind == EMBED:
            return []
        attn = layer + 1 if kind == FEATURE and not self.cfg.parallel else layer
        out: list[Component] = [(EMBED, 0, pos, 0)]
        out += [(FEATURE, int(m), pos, int(f)) for m, p, f in self.here.features if m < layer and p == pos]
        pattern = self.frozen.pattern
        heads = range(self.cfg.n_heads)
        out += [(HEAD, m, s, h) for m in range(attn) for h in heads for s in range(pos + 1) if pattern[m][h, pos, s]]
        return out

    def paths(self, most: int) -> dict[Path, float]:
        """Every path of at most `most` components below the root, and its contribution; those of exactly 0 are none."""
        found, level = {}, [(self.root,)]
        for _ in range(most):
            level = [(*p, c) for p in level for c in self.continuations(p[-1])]
            found |= {p: v for p in level if (v := self.contribution(p)) != 0}
            level = [p for p in level if p in found]
        return found


def of_graph(graph: Any) -> dict[Path, float]:
    """The paths of a graph in the same form; the root's index is -1 unless it is a feature."""
    nodes = list(zip(graph.kind.tolist(), graph.layer.tolist(), graph.pos.tolist(), graph.index.tolist(), strict=True))
    chains = {i: tuple(nodes[j] for j in graph.chain(i)) for i in range(1, len(nodes)) if graph.listed[i]}
    return {chain: float(graph.value[i]) for i, chain in chains.items()}

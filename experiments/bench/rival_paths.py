"""The paper's path search in NumPy, on a GPT-2-shaped model: as its reference code does it, and with a cache.

`Reference` makes, for every path and every layer below it, two passes through the whole dictionary (encode and decode
of all tokens) and one through the MLP, and multiplies all decoder rows; nothing is kept from one path to the next.
These are the dense evaluations that `circuit_analysis.py` makes, and no others. Its attention scores are made from all
heads' outputs for every pair of positions, of which one row is used; `whole_attention=False` makes that row alone.
With `restack` it also does what `model.OV` does there: the value and output weights of all layers are stacked anew for
every head that is a candidate.

`Cached` encodes each layer once, keeps the active features, and reads their decoder rows alone.

Both follow algorithm 1 of Dunefsky et al. 2024 (arXiv 2406.11944) with norms as frozen linear maps, so that they find
the paths that the package finds; the limit of twelve heads a layer and other faults of the reference are left out.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray
Component = tuple[str, int, int, int]  # kind, layer, position, feature or head


@dataclass
class Path:
    """Components root first, the contribution of the last one, and where it stands."""

    nodes: tuple[Component, ...]
    value: float
    vec: Array
    top: int
    attn: int
    pos: int


@dataclass
class Reference:
    """One prompt on a model (`tcircuits.Model` of the family gpt2) with ReLU transcoders that read `mlp_in`."""

    model: Any
    d: Any
    tokens: Array
    whole_attention: bool = True
    restack: bool = False
    visits: int = 0
    stacks: int = 0
    dense: dict[str, int] = field(default_factory=lambda: {"dictionary": 0, "mlp": 0})

    def __post_init__(self) -> None:
        p, c = self.model.params, self.model.cfg
        self.cfg, self.block = c, p.blocks
        self.arrays = {name: np.asarray(getattr(self.d, name)) for name in ("w_enc", "b_enc", "w_dec", "b_dec")}
        attn = p.blocks.attn
        self.attn = {name: np.asarray(getattr(attn, name)) for name in ("w_q", "w_k", "w_v", "w_o")}
        self.bias = {name: np.asarray(getattr(attn, name)) for name in ("b_q", "b_k", "b_v", "b_o")}
        self.mlp = {name: np.asarray(getattr(p.blocks.mlp, name)) for name in ("w_in", "b_in", "w_out", "b_out")}
        self.norms = {n: (np.asarray(x.w), np.asarray(x.b)) for n, x in (("1", p.blocks.norm1), ("2", p.blocks.norm2))}
        self.embed, self.pos_embed = np.asarray(p.embed), np.asarray(p.pos_embed)

    def run(self) -> None:
        """The forward pass, and what it leaves in its cache."""
        T, c = len(self.tokens), self.cfg
        x = self.embed[self.tokens] + self.pos_embed[:T]
        self.start, self.cache = x, []
        for m in range(c.n_layers):
            scale1, y = self.norm("1", m, x)
            q, k, v = (
                np.tensordot(y, self.attn[w][m], 1) + self.bias[b][m]
                for w, b in (("w_q", "b_q"), ("w_k", "b_k"), ("w_v", "b_v"))
            )
            score = np.einsum("thk,shk->hts", q, k, optimize=True) / np.float32(c.d_head**0.5)
            score = np.where(np.tri(T, dtype=bool), score, -np.inf)
            pattern = np.exp(score - score.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            z = np.einsum("hts,shk->thk", pattern, v, optimize=True)
            middle = x + np.tensordot(z, self.attn["w_o"][m], 2) + self.bias["b_o"][m]
            scale2, u = self.norm("2", m, middle)
            self.cache.append({"pattern": pattern, "v": v, "scale1": scale1, "scale2": scale2, "u": u})
            x = middle + self.mlp_forward(m, u)

    def norm(self, which: str, m: int, x: Array) -> tuple[Array, Array]:
        """Denominators and output of a layer norm."""
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1) + np.float32(self.cfg.norm_eps))
        w, b = self.norms[which]
        return scale, centred / scale[:, None] * w[m] + b[m]

    def pulled(self, which: str, m: int, scale: Any, g: Array) -> Array:
        """Transpose of a layer norm with its denominator frozen."""
        g = g * self.norms[which][0][m]
        return (g - g.mean()) / scale

    def mlp_forward(self, m: int, u: Array) -> Array:
        """The MLP on all tokens."""
        h = u @ self.mlp["w_in"][m] + self.mlp["b_in"][m]
        a = 0.5 * h * (1 + np.tanh(np.float32(0.7978845608) * (h + np.float32(0.044715) * h**3)))
        return a @ self.mlp["w_out"][m] + self.mlp["b_out"][m]

    def encode(self, m: int) -> Array:
        """Activations [T, F] of a layer."""
        return np.maximum(self.cache[m]["u"] @ self.arrays["w_enc"][m].T + self.arrays["b_enc"][m], 0)

    def features(self, m: int, path: Path) -> tuple[Array, Array]:
        """(numbers, contributions) of a layer's features: (W_dec v) a, with all that the reference evaluates for it."""
        for _ in range(2):
            a = self.encode(m)
            self.reconstruction = a @ self.arrays["w_dec"][m] + self.arrays["b_dec"][m]
        self.error = self.mlp_forward(m, self.cache[m]["u"]) - self.reconstruction
        self.dense["dictionary"] += 2
        self.dense["mlp"] += 1
        return np.arange(a.shape[1]), (self.arrays["w_dec"][m] @ path.vec) * a[path.pos]

    def heads(self, m: int, path: Path) -> Array:
        """Contributions [H, T] of a layer's heads by source."""
        pattern, v = self.cache[m]["pattern"], self.cache[m]["v"]
        if not self.whole_attention:
            read = self.attn["w_o"][m] @ path.vec
            return pattern[:, path.pos] * np.einsum("shk,hk->hs", v, read)
        written = np.einsum("shk,hkd->hsd", v, self.attn["w_o"][m], optimize=True)
        return ((pattern[..., None] * written[:, None]) @ path.vec)[:, path.pos]

    def activation(self, m: int, pos: int, number: int) -> float:
        """One feature's activation."""
        a, u = self.arrays, self.cache[m]["u"][pos]
        return float(max(a["w_enc"][m, number] @ u + a["b_enc"][m, number], 0))

    def root(self, layer: int, pos: int, number: int) -> Path:
        """A feature as the root."""
        vec = self.pulled("2", layer, self.cache[layer]["scale2"][pos], self.arrays["w_enc"][layer, number])
        value = self.activation(layer, pos, number)
        return Path((("feature", layer, pos, number),), value, vec, layer, layer + 1, pos)

    def continued(self, path: Path, branches: int) -> list[Path]:
        """The best continuations of one path."""
        found: list[tuple[float, Component]] = []
        for m in range(path.top):
            self.visits += 1
            numbers, values = self.features(m, path)
            found += [(float(values[i]), ("feature", m, path.pos, int(numbers[i]))) for i in largest(values, branches)]
        for m in range(path.attn):
            values = self.heads(m, path)[:, 1:].copy()  # the reference never follows position 0
            values[:, path.pos :] = 0
            flat = [divmod(int(i), values.shape[1]) for i in largest(values.ravel(), branches)]
            found += [(float(values[h, s]), ("head", m, s + 1, h)) for h, s in flat]
            for _ in flat if self.restack else ():
                self.stacked = [np.stack(list(self.attn[name])) for name in ("w_v", "w_o")]
                self.stacks += 1
        found.append((float(path.vec @ self.start[path.pos]), ("embed", 0, path.pos, 0)))
        best = sorted((x for x in found if x[0] > 0), key=lambda x: -x[0])[:branches]
        return [self.extended(path, value, node) for value, node in best]

    def extended(self, path: Path, value: float, node: Component) -> Path:
        """The path with one more component, which is read from there on."""
        kind, m, pos, index = node
        nodes = (*path.nodes, node)
        if kind == "embed":
            return Path(nodes, value, path.vec, 0, 0, pos)
        here = self.cache[m]
        if kind == "feature":
            read = self.arrays["w_dec"][m, index] @ path.vec
            vec = self.pulled("2", m, here["scale2"][pos], read * self.arrays["w_enc"][m, index])
            return Path(nodes, value, vec, m, m + 1, pos)
        alpha = here["pattern"][index, path.pos, pos]
        into = self.attn["w_v"][m, :, index] @ (alpha * (self.attn["w_o"][m, index] @ path.vec))
        return Path(nodes, value, self.pulled("1", m, here["scale1"][pos], into), m, m, pos)

    def search(self, root: tuple[int, int, int], iterations: int, branches: int) -> list[list[Path]]:
        """Levels of paths, from tokens on."""
        self.run()
        level, levels = [self.root(*root)], []
        for _ in range(iterations):
            every = [p for path in level if path.nodes[-1][0] != "embed" for p in self.continued(path, branches)]
            level = sorted(every, key=lambda p: -p.value)[:branches]
            levels.append(level)
        return levels


class Cached(Reference):
    """Each layer is encoded once; of the decoder only the rows of active features are read."""

    def run(self) -> None:
        """The forward pass, and each layer's active features by position."""
        super().run()
        self.whole_attention, self.active = False, []
        for m in range(self.cfg.n_layers):
            a = self.encode(m)
            self.dense["dictionary"] += 1
            self.active.append([(np.flatnonzero(row), row[row > 0]) for row in a])

    def features(self, m: int, path: Path) -> tuple[Array, Array]:
        """(numbers, contributions) of a layer's active features."""
        numbers, a = self.active[m][path.pos]
        return numbers, (self.arrays["w_dec"][m, numbers] @ path.vec) * a


def largest(values: Array, n: int) -> Array:
    """Places of the n largest, in no order."""
    return np.arange(len(values)) if len(values) <= n else np.argpartition(values, -n)[-n:]

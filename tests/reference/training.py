"""NumPy float64 of the training losses, one token and one layer at a time, and their gradient by finite differences.

What the package detaches (the residual that AuxK explains, the features that a prediction aims at) is computed here
from `fixed`, a second set of weights: the derivative by the first at equal weights is then the one that training uses.
"""

import numpy as np

Array = np.ndarray


def features(recipe, w, x: Array, slot: int) -> tuple[Array, Array]:
    """Pre-activations and features [B, F] of one layer."""
    inward = x if w["b_in"] is None else x - w["b_in"][slot]
    pre = inward @ w["w_enc"][slot].T + w["b_enc"][slot]
    up = np.maximum(pre, 0)
    match recipe.dictionary.activation:
        case "relu":
            return pre, up
        case "jumprelu":
            return pre, np.where(pre > np.exp(w["log_threshold"][slot]), pre, 0)
        case "topk":
            kept = np.argsort(-up, axis=1, kind="stable")[:, : recipe.dictionary.k]
            f = np.zeros_like(up)
            np.put_along_axis(f, kept, np.take_along_axis(up, kept, 1), 1)
            return pre, f
        case "batchtopk":
            size = up * norms(recipe, w, slot) if recipe.objective.by_norm else up
            cut = np.sort(size.ravel())[::-1][round(recipe.objective.k * len(up)) - 1]
            return pre, np.where(size >= max(cut, 1e-300), up, 0)


def decoder(recipe, w, i: int, m: int) -> Array | None:
    """The matrix from layer i to layer m, None where there is none."""
    if recipe.dictionary.kind != "clt":
        return w["w_dec"][m] if i == m else None
    reach = len(w["b_enc"]) if recipe.band is None else recipe.band
    if not 0 <= m - i < reach:
        return None
    edges = [(a, b) for b in range(len(w["b_enc"])) for a in range(max(0, b - reach + 1), b + 1)]
    p = edges.index((i, m))
    return w["w_dec"][p] if w["gain"] is None else w["gain"][p] * w["w_dec"][i]


def output(recipe, w, f: list[Array], x: Array, m: int, stop: int | None = None) -> Array:
    """What the first `stop` features write to layer m [B, D]."""
    total = np.tile(w["b_dec"][m], (len(x), 1))
    if w["w_skip"] is not None:
        total = total + x @ w["w_skip"][m]
    for i, values in enumerate(f):
        own = decoder(recipe, w, i, m)
        if own is not None:
            total = total + values[:, :stop] @ own[:stop]
    return total


def error(recipe, y: Array, guess: Array) -> float:
    """One layer's error of a batch."""
    squared = (y - guess) ** 2
    match recipe.objective.error:
        case "squared":
            return squared.sum(1).mean()
        case "reference":
            return (squared / np.linalg.norm(y, axis=1)[:, None]).mean()
        case "fvu":
            return squared.sum() / ((y - y.mean(0)) ** 2).sum()


def norms(recipe, w, i: int) -> Array:
    """How much each feature of layer i writes in all."""
    if recipe.decoder_norm == "unit":
        return np.ones(w["b_enc"].shape[1])
    own = [decoder(recipe, w, i, m) for m in range(len(w["b_enc"]))]
    return np.sqrt(sum((d**2).sum(1) for d in own if d is not None))


def sparsity(recipe, w, pre: Array, f: Array, i: int, strength: float) -> float:
    """The terms of one layer that want fewer or smaller features; counts are left out (they have no derivative)."""
    o, n = recipe.objective, norms(recipe, w, i)
    total = o.l1 * (n * np.abs(f)).sum(1).mean() + o.tanh * np.tanh(o.tanh_scale * n * f).sum(1).mean()
    floor = 0.0 if w["log_threshold"] is None else np.exp(w["log_threshold"][i])
    total += o.preactivation * (n * np.maximum(floor - pre, 0)).sum(1).mean()
    return strength * total


def counted(recipe, f: Array) -> float:
    """JumpReLU's terms that count features."""
    o = recipe.objective
    share = (f != 0).mean(0)
    l0 = share.sum()
    first = o.l0 * (l0 if o.l0_target is None else (l0 / o.l0_target - 1) ** 2)
    return first + o.frequency * np.maximum(share - o.frequency_limit, 0).sum()


def auxiliary(recipe, w, fixed, x: list[Array], y: list[Array], dead: Array, slot: int) -> float:
    """AuxK of one layer."""
    f = [features(recipe, fixed, x[i], i)[1] for i in range(len(x))]
    residual = y[slot] - output(recipe, fixed, f, x[slot], slot)
    revived = []
    for i in range(len(x)):
        up = np.where(dead[i], np.maximum(features(recipe, w, x[i], i)[0], 0), 0)
        count = recipe.objective.k_aux or min(x[0].shape[1] // 2, up.shape[1])
        kept = np.argsort(-up, axis=1, kind="stable")[:, :count]
        g = np.zeros_like(up)
        np.put_along_axis(g, kept, np.take_along_axis(up, kept, 1), 1)
        revived.append(g)
    bare = w | {"b_dec": np.zeros_like(w["b_dec"]), "w_skip": None}
    return error(recipe, residual, output(recipe, bare, revived, x[slot], slot))


def prediction(recipe, w, fixed, x: list[Array], slot: int) -> float:
    """HAGD's term of one layer."""
    if slot == len(x) - 1:
        return 0.0
    source = features(recipe, w if recipe.objective.cross_grad else fixed, x[slot], slot)[1]
    target = features(recipe, fixed, x[slot + 1], slot + 1)[1]
    h = w["head"]
    hidden = np.maximum(source @ h["v"][slot] + h["c"][slot], 0)
    guess = np.maximum(hidden @ h["u"][slot] + h["b"][slot], 0)
    return ((target - guess) ** 2).sum(1).mean()


def overlap(recipe, w, m: int) -> float:
    """The overlap of one layer's decoder rows, pair by pair."""
    rows = [d / np.linalg.norm(d) for d in w["w_dec"][m]]
    total = 0.0
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if i != j:
                total += max(abs(one @ other) - recipe.objective.overlap_free, 0) ** 2
    return total / len(rows)


def loss(recipe, w, x: list[Array], y: list[Array], dead: Array, strength: float = 1.0, fixed=None) -> Array:
    """The loss of each layer."""
    o, fixed = recipe.objective, w if fixed is None else fixed
    both = [features(recipe, w, x[i], i) for i in range(len(x))]
    f, out = [values for _, values in both], []
    for m in range(len(x)):
        stops = [*o.nested, None]
        total = np.mean([error(recipe, y[m], output(recipe, w, f, x[m], m, stop)) for stop in stops])
        total += sparsity(recipe, w, *both[m], m, strength)
        if recipe.dictionary.activation == "jumprelu":
            total += strength * counted(recipe, f[m])
        if o.auxk and dead.any():
            total += o.auxk * auxiliary(recipe, w, fixed, x, y, dead, m)
        if o.prediction:
            total += o.prediction * prediction(recipe, w, fixed, x, m)
        if o.overlap:
            total += o.overlap * overlap(recipe, w, m)
        out.append(total)
    return np.array(out)


def derivative(recipe, w, way, x, y, dead, strength: float = 1.0, h: float = 1e-6) -> float:
    """The slope of the summed loss along `way` (a tree like `w`), by central differences of fourth order."""

    def at(t: float) -> float:
        moved = {k: _moved(w[k], way[k], t) for k in w}
        return float(loss(recipe, moved, x, y, dead, strength, fixed=w).sum())

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def _moved(a, b, t):
    if a is None:
        return None
    return {k: a[k] + t * b[k] for k in a} if isinstance(a, dict) else a + t * b

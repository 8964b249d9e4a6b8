"""The adjacency matrix computed forward: each source is pushed alone through the frozen network, read at every target.

Patterns, norm denominators and gates are constants; mean subtraction, gains, post-norms, OV maps and affine skips are
linear maps; a feature's output is a source of its own, so nothing passes through MLP features. The constants
(position embeddings, b_V, b_O, norm biases, b_dec or b_out) are one more source, whose reading, plus b_enc or the
demeaned b_U, is a target's bias. Source: Ameisen et al. 2025 (transformer-circuits.pub/2025/attribution-graphs).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import dictionary, model
from .dictionary import Dictionary

Array = np.ndarray


@dataclass
class Target:
    """A row of the logits block. `kind`: logit (`token`), direction (`vector` [D] on final_norm) or feature."""

    kind: str
    position: int
    token: int = -1
    vector: Array | None = None
    layer: int = -1
    feature: int = -1
    weight: float = 1.0


@dataclass
class Attribution:
    """Nodes in the order features, errors (layer-major), tokens, targets; `A[t, s]` is the edge from s to t.

    `bias` holds all that no node explains, `bos` the part of it that position 0 wrote (`position_zero='constant'`),
    `values` what `A[t].sum() + bias[t]` must be: pre-activations (b_enc in) and demeaned logits before the soft cap;
    0 for sources without inputs.
    """

    features: Array
    activations: Array
    A: Array
    bias: Array
    values: Array
    bos: Array
    weights: Array
    n_layers: int
    length: int
    targets: list[Target] = field(default_factory=list)

    @property
    def n_features(self) -> int:
        return len(self.features)

    @property
    def n_errors(self) -> int:
        return self.n_layers * self.length

    def gap(self) -> float:
        """The largest failure of the row identity, relative to the row's L1 and bias."""
        size = np.abs(self.A).sum(1) + np.abs(self.bias)
        return float((np.abs(self.A.sum(1) + self.bias - self.values) / np.maximum(size, 1e-300)).max())


@dataclass
class Local:
    """One prompt's run with its features: what sources and targets are made of."""

    cfg: Any
    params: dict
    d: Any  # a Dictionary, or None for a model without MLPs
    tokens: Array
    run: model.Run
    frozen: model.Frozen
    values: list[Array]
    pre: list[Array]
    errors: Array
    position_zero: str
    features: Array

    @property
    def length(self) -> int:
        return len(self.tokens)


def localise(
    cfg: Any,
    params: dict,
    d: Dictionary | None,
    tokens: Any,
    position_zero: str = "attribute",
    frozen: model.Frozen | None = None,
) -> Local:
    """Run the model, encode, and list the active features by (layer, position, index).

    With `position_zero='constant'` position 0 has no features and no errors: all that its MLPs write (but for an
    affine skip) is a constant. The run uses `frozen` in the place of its own patterns and denominators.
    """
    r, own = model.freeze(cfg, params, tokens)
    if frozen is None:
        frozen = own
    else:
        r = model.run(cfg, params, tokens, frozen)
    encoded = [dictionary.encode(cfg, params, d, r, layer) for layer in range(cfg.n_layers)] if d else []
    values, pre = [v for v, _ in encoded], [p for _, p in encoded]
    first = 1 if position_zero == "constant" else 0
    listed = [
        (layer, p, f) for layer, v in enumerate(values) for p in range(first, len(tokens)) for f in np.flatnonzero(v[p])
    ]
    features = np.array(listed, int).reshape(-1, 3)
    errors = dictionary.errors(cfg, params, d, r, values)
    return Local(cfg, params, d, np.asarray(tokens), r, frozen, values, pre, errors, position_zero, features)


def n_sources(here: Local) -> int:
    """Features, errors and tokens."""
    return len(here.features) + (here.cfg.n_layers + 1) * here.length


def source(here: Local, s: int) -> tuple[Array, Array]:
    """What source number s writes: (at the embedding [T,D], at each layer's MLP output [L,T,D])."""
    cfg, length, n = here.cfg, here.length, len(here.features)
    embed, mlp = np.zeros((length, cfg.d_model)), np.zeros((cfg.n_layers, length, cfg.d_model))
    if s < n:
        layer, p, f = here.features[s]
        for out, weights in dictionary.decoders(here.params, here.d, layer):
            mlp[out, p] = here.values[layer][p, f] * weights[f]
    elif s < n + cfg.n_layers * length:
        layer, p = divmod(s - n, length)
        if not (p == 0 and here.position_zero == "constant"):
            mlp[layer, p] = here.errors[layer, p]
    else:
        p = s - n - cfg.n_layers * length
        embed[p] = cfg.embed_scale * here.params["embed"][here.tokens[p]]
    return embed, mlp


def position_zero_output(here: Local) -> Array:
    """[L,T,D]: all that the MLPs wrote at position 0, less the affine skips, if that is a constant; else zero."""
    mlp = np.zeros((here.cfg.n_layers, here.length, here.cfg.d_model))
    if here.position_zero == "constant" and here.d is not None:
        for layer in range(here.cfg.n_layers):
            mlp[layer, 0] = here.run.sites[dictionary.writes(here.d, layer)][layer][0]
            w = dictionary.skip(here.d, layer)
            if w is not None:
                mlp[layer, 0] -= here.run.sites[dictionary.reads(here.d, layer)][layer][0] @ w
    return mlp


def linear_norm(cfg: Any, p: dict | None, scale: Array, x: Array, constants: bool) -> tuple[Array, Array]:
    """A frozen norm of [S,T,D] (without gain, with gain); its bias is added only for the constants."""
    if p is None:
        return x, x
    bare = model.centre(cfg, x) / scale[:, None]
    full = bare * p["w"]
    return bare, (full + p["b"] if constants and p["b"] is not None else full)


def push(
    here: Local, frozen: model.Frozen, embed: Array, mlp: Array, constants: bool = False
) -> tuple[list[Array], Array]:
    """Send [S,T,D] from the embedding and [L,S,T,D] from the MLPs' outputs through the frozen network, all S apart.

    Returns what each layer's features read ([L] of [S,T,D]) and the final norm's output [S,T,D]. With `constants`
    every bias is added on the way.
    """
    cfg, blocks, d, x = here.cfg, here.params["blocks"], here.d, embed
    readings = []
    for layer in range(cfg.n_layers):
        part = {name: model.layer_of(p, layer) for name, p in blocks.items()}
        at = {name: frozen.scales[name][layer] for name in model.NORMS}
        _, y = linear_norm(cfg, part["norm1"], at["norm1"], x, constants)
        v = np.einsum("std,dhk->sthk", y, part["attn"]["w_v"])
        v = model.plus(v, part["attn"]["b_v"]) if constants else v
        attn = np.einsum("sthk,hkd->std", model.mix(cfg, frozen.pattern[layer], v), part["attn"]["w_o"])
        attn = model.plus(attn, part["attn"]["b_o"]) if constants else attn
        _, attn = linear_norm(cfg, part["norm1_post"], at["norm1_post"], attn, constants)
        middle = x if cfg.parallel else x + attn
        if d is None:
            x = x + attn
            continue
        normalized, mlp_in = linear_norm(cfg, part["norm2"], at["norm2"], middle, constants)
        reading = {"resid_mid": middle, "normalized": normalized, "mlp_in": mlp_in}[dictionary.reads(d, layer)]
        readings.append(reading)
        w = dictionary.skip(d, layer)
        written = mlp[layer] if w is None else mlp[layer] + reading @ w
        written = model.plus(written, dictionary.constant(here.params, d, layer)) if constants else written
        if dictionary.writes(d, layer) == "mlp_raw":
            _, written = linear_norm(cfg, part["norm2_post"], at["norm2_post"], written, constants)
        x = x + attn + written
    final = here.params["final_norm"]
    return readings, linear_norm(cfg, final, frozen.scales["final_norm"], x, constants)[1]


def demeaned(here: Local, token: int) -> tuple[Array, float]:
    """A logit less the mean logit: its direction on the final norm's output, and its bias."""
    u, b = model.unembedding(here.params), here.params["b_unembed"]
    return u[:, token] - u.mean(1), 0.0 if b is None else float(b[token] - b.mean())


def read_targets(
    here: Local, targets: list[Target], readings: list[Array], final: Array, offsets: bool, absolute: bool = False
) -> Array:
    """[N,S]: the readings at every node (zero for errors and tokens); `offsets` adds b_enc and the demeaned b_U.

    `absolute` sums the absolute values of the products instead.
    """
    size = np.abs if absolute else np.asarray
    readings, final = [size(x) for x in readings], size(final)
    n, length, n_layers = len(here.features), here.length, here.cfg.n_layers
    out = np.zeros((n_sources(here) + len(targets), final.shape[0]))
    encoders = (
        [dictionary.encoder(here.cfg, here.params, here.d, here.run, m) for m in range(n_layers)] if here.d else []
    )

    def feature(layer: int, p: int, f: int) -> Array:
        rows, b = encoders[layer]
        return readings[layer][:, p] @ size(rows[p, f]) + (size(b[p, f]) if offsets else 0.0)

    for i, (layer, p, f) in enumerate(here.features):
        out[i] = feature(layer, p, f)
    for i, t in enumerate(targets):
        row = n + (n_layers + 1) * length + i
        if t.kind == "feature":
            out[row] = feature(t.layer, t.position, t.feature)
        else:
            vector, b = (t.vector, 0.0) if t.kind == "direction" else demeaned(here, t.token)
            out[row] = final[:, t.position] @ size(vector) + (size(b) if offsets else 0.0)
    return out


def products(here: Local, targets: list[Target]) -> Array:
    """[N]: the sum of |products| inside the dot products that make up each row and its bias.

    Rounding is in proportion to it: a row whose products nearly cancel keeps fewer digits.
    """
    sources = [source(here, s) for s in range(n_sources(here))]
    embed, mlp = np.stack([e for e, _ in sources]), np.stack([m for _, m in sources], 1)
    of_sources = read_targets(here, targets, *push(here, here.frozen, embed, mlp), offsets=False, absolute=True)
    start = np.zeros((1, *embed.shape[1:]))
    if here.params["pos_embed"] is not None:
        start[0] = here.params["pos_embed"][: here.length]
    constant = push(here, here.frozen, start, np.zeros((here.cfg.n_layers, *start.shape)), constants=True)
    return of_sources.sum(1) + read_targets(here, targets, *constant, offsets=True, absolute=True)[:, 0]


def true_values(here: Local, targets: list[Target], r: model.Run, pre: list[Array]) -> Array:
    """[N]: pre-activations of the features and demeaned, uncapped logits of a run; what each row sums to."""
    out = np.zeros(n_sources(here) + len(targets))
    for i, (layer, p, f) in enumerate(here.features):
        out[i] = pre[layer][p, f]
    for i, t in enumerate(targets):
        row = n_sources(here) + i
        if t.kind == "feature":
            out[row] = pre[t.layer][t.position, t.feature]
        elif t.kind == "direction":
            out[row] = r.sites["final_norm"][t.position] @ t.vector
        else:
            out[row] = r.raw[t.position, t.token] - r.raw[t.position].mean()
    return out


def top_logits(r: model.Run, position: int = -1, max_n: int = 10, mass: float = 0.95) -> list[Target]:
    """The smallest set of most likely tokens with at least this probability, at most `max_n`, weighted by it."""
    position = position % len(r.logits)
    z = r.logits[position]
    p = np.exp(z - z.max())
    p = p / p.sum()
    order = sorted(range(len(p)), key=lambda v: (-p[v], v))[:max_n]
    chosen, total = [], 0.0
    for v in order:
        if total >= mass:
            break
        chosen.append(Target("logit", position, token=v, weight=float(p[v])))
        total += p[v]
    return chosen


def attribute(
    cfg: Any,
    params: dict,
    d: Dictionary | None,
    tokens: Any,
    targets: list[Target] | None = None,
    position_zero: str = "attribute",
    frozen: model.Frozen | None = None,
    leave_out: str | None = None,
) -> Attribution:
    """The whole graph. `frozen` stands in for the run's own patterns and denominators (for mutants).

    `leave_out` drops one constant by name (`b_v`, `b_o`, `norm1`, `pos_embed`, `b_dec` ...) from the bias: the row
    identity must break.
    """
    here = localise(cfg, params, d, tokens, position_zero)
    targets = top_logits(here.run) if targets is None else targets
    return rows(here, targets, here.frozen if frozen is None else frozen, leave_out)


def rows(here: Local, targets: list[Target], frozen: model.Frozen, leave_out: str | None = None) -> Attribution:
    """The graph of a prompt that was localised."""
    sources = [source(here, s) for s in range(n_sources(here))]
    embed, mlp = np.stack([e for e, _ in sources]), np.stack([m for _, m in sources], 1)
    n_all = n_sources(here) + len(targets)
    adjacency = np.zeros((n_all, n_all))
    adjacency[:, : n_sources(here)] = read_targets(here, targets, *push(here, frozen, embed, mlp), offsets=False)
    bias, bos = constants(here, targets, frozen, leave_out)
    values = true_values(here, targets, here.run, here.pre)
    weights = np.array([t.weight for t in targets])
    activations = np.array([here.values[layer][p, f] for layer, p, f in here.features])
    return Attribution(
        here.features, activations, adjacency, bias, values, bos, weights, here.cfg.n_layers, here.length, targets
    )


def constants(here: Local, targets: list[Target], frozen: model.Frozen, leave_out: str | None) -> tuple[Array, Array]:
    """(bias [N], the part of it that position 0's MLPs wrote [N])."""
    changed = Local(**vars(here))
    changed.params, changed.d = without(here.params, leave_out), without_dictionary(here.d, leave_out)
    embed = np.zeros((1, here.length, here.cfg.d_model))
    if changed.params["pos_embed"] is not None:
        embed[0] = changed.params["pos_embed"][: here.length]
    nothing = np.zeros((here.cfg.n_layers, *embed.shape))
    plain = read_targets(changed, targets, *push(changed, frozen, embed, nothing, constants=True), offsets=True)[:, 0]
    if here.position_zero != "constant" or here.d is None:
        return plain, np.zeros_like(plain)
    whole = position_zero_output(here)
    twice = np.zeros_like(whole)  # b_dec at position 0: part of what was written there, and of the constants above
    for layer in range(here.cfg.n_layers):
        c = dictionary.constant(changed.params, changed.d, layer)
        twice[layer, 0] = 0.0 if c is None else c
    pushed = push(here, frozen, np.zeros((2, *embed.shape[1:])), np.stack([whole, twice], 1))
    bos, counted = read_targets(here, targets, *pushed, offsets=False).T
    return plain + bos - counted, bos


def without(params: dict, name: str | None) -> dict:
    """The parameters with one bias (or one norm's bias, or the position embeddings) set to zero."""
    if name is None:
        return params

    def zero(tree: Any, key: str) -> Any:
        if isinstance(tree, dict):
            if key == name and "b" in tree:  # a norm
                return tree if tree["b"] is None else tree | {"b": np.zeros_like(tree["b"])}
            return {k: zero(v, k) for k, v in tree.items()}
        return np.zeros_like(tree) if key == name and tree is not None else tree

    return zero(params, "")


def without_dictionary(d: Dictionary | None, name: str | None) -> Dictionary | None:
    """The dictionary with one of its offsets set to zero."""
    if d is None or name is None or d.arrays.get(name) is None:
        return d
    return Dictionary(d.cfg, d.arrays | {name: np.zeros_like(d.arrays[name])})


def perturb(here: Local, targets: list[Target], s: int, size: float = 1.0) -> Array:
    """[N]: how far every target moves when source s is added `size` times in a real forward pass, everything frozen.

    Patterns, denominators, gates and what the MLPs write are held at their values (the skips answer to their inputs).
    """
    embed, mlp = source(here, s)
    return moved(here, targets, size * embed, size * mlp)


def moved(here: Local, targets: list[Target], embed: Array, mlp: Array) -> Array:
    """As `perturb`, for vectors added at the embedding [T,D] and at the MLPs' outputs [L,T,D]."""
    d, base = here.d, here.run

    def held(layer: int, reads: dict[str, Array]) -> tuple[str, Array]:
        site = dictionary.writes(d, layer)
        value = base.sites[site][layer] + mlp[layer]
        w, name = dictionary.skip(d, layer), dictionary.reads(d, layer)
        return site, value if w is None else value + (reads[name] - base.sites[name][layer]) @ w

    r = model.run(here.cfg, here.params, here.tokens, here.frozen, held if d else None, embed)
    pre = []
    for layer in range(here.cfg.n_layers if d else 0):
        rows, b = dictionary.encoder(here.cfg, here.params, d, base, layer)
        pre.append(np.einsum("tfd,td->tf", rows, r.sites[dictionary.reads(d, layer)][layer]) + b)
    return true_values(here, targets, r, pre) - true_values(here, targets, base, here.pre)


def restrict(a: Attribution, keep: Array) -> tuple[Attribution, Array, Array]:
    """The graph with only the features in `keep` (ascending numbers) as nodes, and its unexpanded leaves.

    Returns (graph, signed sums [N,L,T], absolute mass [N,L,T]) of the edges from the features left out, by their
    layer and position.
    """
    left = np.setdiff1d(np.arange(a.n_features), keep)
    nodes = np.concatenate([np.asarray(keep, int), np.arange(a.n_features, len(a.A))])
    signed, mass = np.zeros((2, len(nodes), a.n_layers, a.length))
    for f in left:
        layer, p, _ = a.features[f]
        signed[:, layer, p] += a.A[nodes, f]
        mass[:, layer, p] += np.abs(a.A[nodes, f])
    small = Attribution(
        a.features[keep], a.activations[keep], a.A[np.ix_(nodes, nodes)], a.bias[nodes], a.values[nodes], a.bos[nodes],
        a.weights, a.n_layers, a.length, a.targets,
    )  # fmt: skip
    return small, signed, mass

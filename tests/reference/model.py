"""The forward pass of one sequence, from the definition, with every site by name and every norm's denominator.

`cfg` is any object with the attributes of the package's `ModelConfig`. `params` is nested dicts of float64 arrays
with the package's names and shapes: `embed [V,D]`, `pos_embed [n_ctx,D]`, `blocks` (`norm1`, `attn`, `norm1_post`,
`norm2`, `mlp`, `norm2_post`, each array with layers first), `final_norm`, `unembed [D,V]`, `b_unembed [V]`; absent
parts are None.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
NORMS = ("norm1", "norm1_post", "norm2", "norm2_post")


@dataclass
class Run:
    """Logits [T,V] (`raw`: before the soft cap), sites stacked by layer, denominators [L,T] (`final_norm` [T]).

    `sites`: resid_pre, attn_in, q, k (before rotary), v, pattern [L,H,T,T], z, attn_out, resid_mid (what the MLP's
    norm reads: with parallel blocks that is resid_pre), normalized (that norm without gain and bias), mlp_in, mlp_raw
    (before a post-norm), mlp_out, resid_post, final_norm [T,D], logits [T,V].
    """

    logits: Array
    raw: Array
    sites: dict[str, Array]
    scales: dict[str, Array]


@dataclass
class Frozen:
    """Attention patterns [L,H,T,T] and norm denominators that a run uses instead of its own."""

    pattern: Array
    scales: dict[str, Array]


MlpOverride = Callable[[int, dict[str, Array]], tuple[str, Array]]
"""(layer, {resid_mid, normalized, mlp_in}) -> (site written: mlp_raw or mlp_out, value [T,D])."""

Edit = Callable[[str, int, Array], Array]
"""(site, layer, value) -> what the run goes on with."""


def act_slope(kind: str, h: Array) -> Array:
    """s with act(h) = h s(h)."""
    if kind == "relu":
        return (h > 0).astype(float)
    if kind == "silu":
        return 1.0 / (1.0 + np.exp(-h))
    if kind == "gelu":
        return np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2.0)), otypes=[float])(h)
    if kind == "gelu_tanh":
        return 0.5 * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * h**3)))
    raise ValueError(kind)


def centre(cfg: Any, x: Array) -> Array:
    """Only layer norms subtract the mean."""
    return x - x.mean(-1, keepdims=True) if cfg.norm == "layer" else x


def denominator(cfg: Any, x: Array) -> Array:
    """Standard deviation or root mean square over the last axis, with epsilon inside the root."""
    if cfg.norm == "none":
        return np.ones(x.shape[:-1])
    return np.sqrt((centre(cfg, x) ** 2).mean(-1) + cfg.norm_eps)


def gain(p: dict | None, x: Array) -> Array:
    """Gain and bias of a norm."""
    if p is None:
        return x
    return x * p["w"] if p["b"] is None else x * p["w"] + p["b"]


def layer_of(part: dict | None, layer: int) -> Any:
    """One layer's arrays of a stacked part."""
    return None if part is None else {name: None if a is None else a[layer] for name, a in part.items()}


def plus(x: Array, b: Array | None) -> Array:
    """`x` and a bias that may be absent."""
    return x if b is None else x + b


def softcap(x: Array, cap: float | None) -> Array:
    """`cap tanh(x / cap)`."""
    return x if cap is None else cap * np.tanh(x / cap)


def head_norm(cfg: Any, x: Array, w: Array | None) -> Array:
    """The RMS norm over a head's width, or over all heads together; `x` is [T,H,K]."""
    if w is None:
        return x
    axes = (-2, -1) if cfg.qk_norm_whole else -1
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + cfg.norm_eps) * w


def window_of(cfg: Any, layer: int) -> int:
    """How many positions back a layer sees; 0 is all."""
    return cfg.windows[layer] if cfg.windows else 0


def rotary_frequencies(cfg: Any, layer: int) -> Array:
    """Radians per position of each rotating pair."""
    local = window_of(cfg, layer) > 0 and cfg.rope_theta_local is not None
    theta = cfg.rope_theta_local if local else cfg.rope_theta
    freqs = np.array([theta ** (-2.0 * i / cfg.rotary_dim) for i in range(cfg.rotary_dim // 2)])
    s = cfg.rope_scaling
    if s is None or local:
        return freqs
    if s.kind == "linear":
        return freqs / s.factor
    out = []
    for f in freqs:
        turns = s.original_n_ctx * f / (2 * math.pi)  # full turns within the original context
        if turns > s.high_freq_factor:
            out.append(f)
        elif turns < s.low_freq_factor:
            out.append(f / s.factor)
        else:
            part = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
            out.append(part * f + (1 - part) * f / s.factor)
    return np.array(out)


def rotate(x: Array, freqs: Array) -> Array:
    """Turn the pairs (i, i + half) of every head [T,H,K] by position * frequency."""
    out, half = x.copy(), len(freqs)
    for t in range(x.shape[0]):
        for i, f in enumerate(freqs):
            c, s = math.cos(t * f), math.sin(t * f)
            a, b = x[t, :, i], x[t, :, i + half]
            out[t, :, i], out[t, :, i + half] = a * c - b * s, b * c + a * s
    return out


def pattern_of(cfg: Any, layer: int, q: Array, k: Array) -> Array:
    """Attention [H,T,T]: softmax over the keys that each query may see."""
    length, group = q.shape[0], cfg.n_heads // cfg.n_kv_heads
    scale = 1 / math.sqrt(cfg.d_head) if cfg.attn_scale is None else cfg.attn_scale
    window = window_of(cfg, layer)
    out = np.zeros((cfg.n_heads, length, length))
    for h in range(cfg.n_heads):
        for t in range(length):
            seen = [
                s for s in range(length) if (s <= t or not cfg.causal) and (window == 0 or abs(t - s) < window)
            ]  # fmt: skip
            scores = np.array([softcap(q[t, h] @ k[s, h // group] * scale, cfg.attn_softcap) for s in seen])
            weights = np.exp(scores - scores.max())
            out[h, t, seen] = weights / weights.sum()
    return out


def mix(cfg: Any, pattern: Array, v: Array) -> Array:
    """z [...,T,H,K]: every head's average of its value head [...,T,G,K]."""
    group = cfg.n_heads // cfg.n_kv_heads
    heads = [np.einsum("ts,...sk->...tk", pattern[h], v[..., h // group, :]) for h in range(cfg.n_heads)]
    return np.stack(heads, -2)


def neurons(cfg: Any, p: dict, x: Array) -> tuple[Array, Array]:
    """(frozen factor, linear part) [T,M] of the MLP's hidden layer: its values are their product."""
    up = plus(x @ p["w_in"], p["b_in"])
    if not cfg.gated:
        return act_slope(cfg.activation, up), up
    gate = plus(x @ p["w_gate"], p["b_gate"])
    return gate * act_slope(cfg.activation, gate), up


def feed_forward(cfg: Any, p: dict, x: Array) -> Array:
    """The MLP of one layer, before a post-norm."""
    factor, linear = neurons(cfg, p, x)
    return plus((factor * linear) @ p["w_out"], p["b_out"])


def unembedding(params: dict) -> Array:
    """[D,V], tied or not."""
    return params["embed"].T if params["unembed"] is None else params["unembed"]


def run(
    cfg: Any,
    params: dict,
    tokens: list[int] | Array,
    frozen: Frozen | None = None,
    mlp: MlpOverride | None = None,
    add_embed: Array | None = None,
    edit: Edit | None = None,
) -> Run:
    """The forward pass; `frozen` gives patterns and denominators, `mlp` replaces MLPs, `add_embed` [T,D] is added.

    `edit` changes the value of any site (layer 0 for final_norm and logits; with parallel blocks not resid_mid).
    """
    length, blocks = len(tokens), params["blocks"]
    kept: dict[str, list[Array]] = {}
    scales: dict[str, Array] = {name: np.ones((cfg.n_layers, length)) for name in NORMS}

    def keep(site: str, value: Array) -> Array:
        layers = kept.setdefault(site, [])
        layers.append(value if edit is None else edit(site, len(layers), value))
        return layers[-1]

    def norm(name: str, layer: int, x: Array) -> tuple[Array, Array]:
        p = layer_of(blocks[name], layer)
        if p is None:
            return x, x
        scales[name][layer] = denominator(cfg, x) if frozen is None else frozen.scales[name][layer]
        bare = centre(cfg, x) / scales[name][layer][:, None]
        return bare, gain(p, bare)

    def attention(layer: int, x: Array) -> Array:
        p = layer_of(blocks["attn"], layer)
        q = keep("q", head_norm(cfg, plus(np.einsum("td,dhk->thk", x, p["w_q"]), p["b_q"]), p["q_norm"]))
        k = keep("k", head_norm(cfg, plus(np.einsum("td,dhk->thk", x, p["w_k"]), p["b_k"]), p["k_norm"]))
        v = keep("v", plus(np.einsum("td,dhk->thk", x, p["w_v"]), p["b_v"]))
        if cfg.position == "rotary" and layer not in cfg.unrotated:
            freqs = rotary_frequencies(cfg, layer)
            q, k = rotate(q, freqs), rotate(k, freqs)
        pattern = keep("pattern", pattern_of(cfg, layer, q, k) if frozen is None else frozen.pattern[layer])
        z = keep("z", mix(cfg, pattern, v))
        return plus(np.einsum("thk,hkd->td", z, p["w_o"]), p["b_o"])

    def written(layer: int, middle: Array) -> Array:
        normalized, mlp_in = norm("norm2", layer, middle)
        normalized, mlp_in = keep("normalized", normalized), keep("mlp_in", mlp_in)
        raw = feed_forward(cfg, layer_of(blocks["mlp"], layer), mlp_in)
        if mlp is not None:
            site, value = mlp(layer, {"resid_mid": middle, "normalized": normalized, "mlp_in": mlp_in})
            if site == "mlp_out":
                keep("mlp_raw", raw)
                return keep("mlp_out", value)
            raw = value
        return keep("mlp_out", norm("norm2_post", layer, keep("mlp_raw", raw))[1])

    x = np.stack([cfg.embed_scale * params["embed"][t] for t in tokens])
    if params["pos_embed"] is not None:
        x = x + params["pos_embed"][:length]
    x = x if add_embed is None else x + add_embed
    for layer in range(cfg.n_layers):
        x = keep("resid_pre", x)
        attn = attention(layer, keep("attn_in", norm("norm1", layer, x)[1]))
        attn = keep("attn_out", norm("norm1_post", layer, attn)[1])
        after = x + attn
        if not cfg.attn_only:
            middle = keep("resid_mid", x if cfg.parallel else after)
            after = (after if cfg.parallel else middle) + written(layer, middle)
        x = keep("resid_post", after)
    if params["final_norm"] is None:
        final, scales["final_norm"] = x, np.ones(length)
    else:
        scales["final_norm"] = denominator(cfg, x) if frozen is None else frozen.scales["final_norm"]
        final = gain(params["final_norm"], centre(cfg, x) / scales["final_norm"][:, None])
    final = keep("final_norm", final)
    raw = plus(final @ unembedding(params), params["b_unembed"])
    logits = keep("logits", softcap(raw, cfg.final_softcap))
    sites = {name: np.stack(values) for name, values in kept.items()}
    return Run(logits, raw, sites | {"final_norm": final, "logits": logits}, scales)


def freeze(cfg: Any, params: dict, tokens: list[int] | Array) -> tuple[Run, Frozen]:
    """A run, and its patterns and denominators."""
    r = run(cfg, params, tokens)
    return r, Frozen(r.sites["pattern"], r.scales)

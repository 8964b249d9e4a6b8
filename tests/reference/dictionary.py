"""Features of every layer: encoders, values, decoders, skips, constants and errors, from the definition.

A dictionary is `Dictionary(cfg, arrays)`: `cfg` any object with the attributes of the package's `TranscoderConfig`,
`arrays` a dict with `w_enc [S,F,D]`, `b_enc [S,F]`, `w_dec [P,F,D]`, `b_dec [S,D]`, `threshold [S,F]`, `w_skip
[S,D,D]` (S slots, one a covered layer; absent ones None or missing). Of a cross-layer dictionary the decoder from
layer i to m is row m(m+1)/2 + i. `factor [L,T,M]` stands in for the neurons' own frozen factors on one prompt.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import model

Array = np.ndarray


@dataclass
class Dictionary:
    """Configuration and arrays (see the module)."""

    cfg: Any
    arrays: dict[str, Any]

    def array(self, name: str, row: int) -> Any:
        """One row of an array that may be absent."""
        a = self.arrays.get(name)
        return None if a is None else a[row]


def kind(d: Dictionary | None, layer: int) -> str:
    """What stands for a layer's MLP: its `dictionary`, its `neurons`, an `error` node; `none` if there is no MLP."""
    if d is None:
        return "none"
    if d.cfg.kind == "neurons":
        return "neurons"
    if layer in d.cfg.layers:
        return "dictionary"
    return d.cfg.fill


def reads(d: Dictionary, layer: int) -> str:
    """The site that the features of a layer read."""
    return "mlp_in" if kind(d, layer) == "neurons" else d.cfg.reads


def writes(d: Dictionary, layer: int) -> str:
    """The site that the features, the error and the constants of a layer write."""
    return "mlp_raw" if kind(d, layer) == "neurons" else d.cfg.writes


def encoder(cfg: Any, params: dict, d: Dictionary, r: model.Run, layer: int) -> tuple[Array, Array]:
    """Rows [T,F,D] and offsets [T,F] of the frozen encoders: a pre-activation is row . read + offset.

    Neurons: the frozen factor (slope of the activation function, or activated gate) times the input weights.
    """
    length = r.sites["mlp_in"].shape[1]
    if kind(d, layer) == "neurons":
        p = model.layer_of(params["blocks"]["mlp"], layer)
        given = d.array("factor", layer)
        factor = model.neurons(cfg, p, r.sites["mlp_in"][layer])[0] if given is None else given
        b_in = np.zeros(cfg.d_mlp) if p["b_in"] is None else p["b_in"]
        return factor[:, :, None] * p["w_in"].T, factor * b_in
    if kind(d, layer) == "dictionary":
        slot = d.cfg.layers.index(layer)
        rows, offsets = d.array("w_enc", slot), d.array("b_enc", slot)
        return np.broadcast_to(rows, (length, *rows.shape)), np.broadcast_to(offsets, (length, *offsets.shape))
    return np.zeros((length, 0, cfg.d_model)), np.zeros((length, 0))


def activate(c: Any, pre: Array, threshold: Array | None) -> Array:
    """Feature values of one vector of pre-activations [F]."""
    if c.activation == "relu":
        return np.where(pre > 0, pre, 0.0)
    if c.activation == "jumprelu":
        return np.where(pre > threshold, pre, 0.0)
    if c.activation == "batchtopk":
        return np.where((pre > threshold) & (pre > 0), pre, 0.0)
    margin = getattr(c, "margin", False)  # golden configurations are older
    above = pre - threshold if margin else pre
    ranked = pre if c.signed_topk else np.maximum(above, 0.0)
    keep = sorted(range(len(pre)), key=lambda f: (-ranked[f], f))[: c.k]
    if margin:
        return np.array([pre[f] if f in keep and above[f] > 0 else 0.0 for f in range(len(pre))])
    return np.array([ranked[f] if f in keep else 0.0 for f in range(len(pre))])


def encode(cfg: Any, params: dict, d: Dictionary, r: model.Run, layer: int) -> tuple[Array, Array]:
    """(values, pre-activations) [T,F] of a layer's features."""
    rows, offsets = encoder(cfg, params, d, r, layer)
    pre = np.einsum("tfd,td->tf", rows, r.sites[reads(d, layer)][layer]) + offsets
    if kind(d, layer) != "dictionary":
        return pre, pre
    threshold = d.array("threshold", d.cfg.layers.index(layer))
    return np.stack([activate(d.cfg, one, threshold) for one in pre]), pre


def decoders(params: dict, d: Dictionary, layer: int) -> list[tuple[int, Array]]:
    """(output layer, weights [F,D]) of a layer's features."""
    if kind(d, layer) == "neurons":
        return [(layer, params["blocks"]["mlp"]["w_out"][layer])]
    if kind(d, layer) != "dictionary":
        return []
    if d.cfg.kind == "clt":
        return [(m, d.arrays["w_dec"][m * (m + 1) // 2 + layer]) for m in range(layer, d.cfg.n_layers)]
    return [(layer, d.array("w_dec", d.cfg.layers.index(layer)))]


def skip(d: Dictionary | None, layer: int) -> Array | None:
    """The affine path [D,D] beside a layer's features: y += x W."""
    return d.array("w_skip", d.cfg.layers.index(layer)) if d and kind(d, layer) == "dictionary" else None


def constant(params: dict, d: Dictionary | None, layer: int) -> Array | None:
    """What a layer's stand-in writes at every position whatever it reads: b_dec, or the MLP's output bias."""
    if d is not None and kind(d, layer) == "neurons":
        b = params["blocks"]["mlp"]["b_out"]
        return None if b is None else b[layer]
    return d.array("b_dec", d.cfg.layers.index(layer)) if d and kind(d, layer) == "dictionary" else None


def reconstruction(cfg: Any, params: dict, d: Dictionary, r: model.Run, values: list[Array], layer: int) -> Array:
    """What features, skip and constants write together at a layer [T,D]."""
    total = np.zeros_like(r.sites["mlp_out"][layer])
    for source, v in enumerate(values):
        for out, weights in decoders(params, d, source):
            total = total + v @ weights if out == layer else total
    total = model.plus(total, constant(params, d, layer))
    w = skip(d, layer)
    return total if w is None else total + r.sites[reads(d, layer)][layer] @ w


def errors(cfg: Any, params: dict, d: Any, r: model.Run, values: list[Array]) -> Array:
    """[L,T,D]: the real MLP's output at the written site minus the reconstruction; exactly zero for neurons."""
    out = np.zeros_like(r.sites["resid_pre"])
    for layer in range(cfg.n_layers):
        if kind(d, layer) in ("dictionary", "error"):
            real = r.sites[writes(d, layer)][layer]
            out[layer] = real - reconstruction(cfg, params, d, r, values, layer)
    return out

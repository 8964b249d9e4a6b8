"""Tiny random models and dictionaries as NumPy dicts, one for every family, switch and dictionary kind that tests name.

Gains are near one, every bias that a family has is non-zero, and encoder biases are shifted so that a realistic part
of the features is active. Configurations are namespaces with exactly the fields of the package's configuration
classes.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .dictionary import Dictionary, encoder
from .model import run

Array = np.ndarray

MODEL_DEFAULTS = {
    "n_layers": 3,
    "d_model": 12,
    "n_heads": 4,
    "n_kv_heads": 4,
    "d_head": 4,
    "d_mlp": 20,
    "d_vocab": 17,
    "n_ctx": 16,
    "norm": "rms",
    "norm_eps": 1e-5,
    "activation": "silu",
    "gated": True,
    "parallel": False,
    "position": "rotary",
    "rotary_dim": 4,
    "rope_theta": 10000.0,
    "rope_theta_local": None,
    "rope_scaling": None,
    "unrotated": (),
    "causal": True,
    "windows": (),
    "qkv_bias": False,
    "o_bias": False,
    "mlp_bias": False,
    "unembed_bias": False,
    "tied": False,
    "final_norm": True,
    "pre_norm": True,
    "post_norm": False,
    "qk_norm": False,
    "qk_norm_whole": False,
    "attn_scale": None,
    "attn_softcap": None,
    "final_softcap": None,
    "embed_scale": 1.0,
    "attn_only": False,
}

ALL_BIASES = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}

FAMILIES: dict[str, dict] = {
    "gpt2": dict(
        norm="layer", activation="gelu_tanh", gated=False, position="learned", rotary_dim=0, tied=True, **ALL_BIASES
    ),
    "neox": dict(norm="layer", activation="gelu", gated=False, parallel=True, rotary_dim=2, **ALL_BIASES),
    "llama": {
        "n_kv_heads": 2,
        "d_head": 6,
        "rotary_dim": 6,
        "rope_theta": 30.0,  # the three frequencies: kept, mixed and divided
        "rope_scaling": SimpleNamespace(
            kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_n_ctx=32
        ),
    },
    "mistral": {"n_kv_heads": 2, "windows": (3, 3, 3)},
    "qwen2": {"n_kv_heads": 2, "qkv_bias": True, "windows": (0, 3, 3)},
    "qwen3": {"n_kv_heads": 2, "qk_norm": True, "qkv_bias": True, "tied": True},
    "gemma2": {
        "activation": "gelu_tanh",
        "n_kv_heads": 2,
        "tied": True,
        "post_norm": True,
        "attn_softcap": 5.0,
        "final_softcap": 4.0,
        "attn_scale": 0.4,
        "embed_scale": 12.0**0.5,
        "windows": (3, 0, 3),
    },
    "gemma3": {
        "activation": "gelu_tanh",
        "n_kv_heads": 1,
        "tied": True,
        "post_norm": True,
        "qk_norm": True,
        "embed_scale": 12.0**0.5,
        "windows": (2, 2, 0),
        "rope_theta": 100.0,
        "rope_theta_local": 10.0,
        "rope_scaling": SimpleNamespace(
            kind="linear", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_n_ctx=8192
        ),
    },
    "olmo": {"norm": "layer", "n_kv_heads": 2},
    "olmo2": {"n_kv_heads": 2, "pre_norm": False, "post_norm": True, "qk_norm": True, "qk_norm_whole": True},
    "smollm3": {"n_kv_heads": 2, "unrotated": (1,), "tied": True},
    "toy": {
        "n_layers": 1,
        "norm": "none",
        "activation": "relu",
        "gated": False,
        "position": "learned",
        "rotary_dim": 0,
        "final_norm": False,
    },
    "relu": dict(
        n_layers=2, norm="layer", activation="relu", gated=False, unembed_bias=True, post_norm=True, **ALL_BIASES
    ),
    "attn_only": {
        "n_layers": 2,
        "norm": "none",
        "position": "learned",
        "rotary_dim": 0,
        "d_mlp": 0,
        "attn_only": True,
        "o_bias": True,
    },
    "encoder": {
        "n_layers": 2,
        "norm": "none",
        "activation": "relu",
        "gated": False,
        "causal": False,
        "position": "none",
        "rotary_dim": 0,
        "final_norm": False,
        "mlp_bias": True,
    },
}
"""Switches that differ from `MODEL_DEFAULTS`."""

PUBLISHED = (
    *("gpt2", "neox", "llama", "gemma2"),
    *("mistral", "qwen2", "qwen3", "gemma3", "olmo", "olmo2", "smollm3"),
)
"""Families of published models: with the kinds of `ACCEPTANCE` they make the acceptance table."""

DICTIONARIES: dict[str, dict] = {
    "plt-relu": {},
    "plt-topk": {"activation": "topk", "k": 5},
    "plt-topk-signed": {"activation": "topk", "k": 9, "signed_topk": True},
    "plt-topk-margin": {"activation": "topk", "k": 5, "margin": True},
    "plt-jumprelu": {"activation": "jumprelu"},
    "plt-batchtopk": {"activation": "batchtopk"},
    "plt-skip": {"skip": True},
    "plt-normalized": {"reads": "normalized"},
    "plt-resid": {"reads": "resid_mid", "skip": True},
    "plt-raw": {"reads": "mlp_in", "writes": "mlp_raw", "skip": True},
    "clt-relu": {"kind": "clt", "reads": "resid_mid"},
    "clt-jumprelu": {"kind": "clt", "activation": "jumprelu"},
    "clt-skip": {"kind": "clt", "reads": "normalized", "skip": True},
    "some-layers": {"layers": (1,)},
    "some-filled": {"layers": (1,), "fill": "neurons"},
    "neurons": {"kind": "neurons"},
}
"""Switches of every dictionary kind; `some-*` need a model of at least two layers."""

ACCEPTANCE = ("plt-relu", "plt-topk", "plt-jumprelu", "plt-skip", "clt-relu", "clt-jumprelu", "neurons")


def covering(count: int = 2) -> list[tuple[str, str]]:
    """A part of the acceptance table: the first four families with every kind, each other one with `count` kinds."""
    n, whole = len(ACCEPTANCE), PUBLISHED[:4]
    rest = [(f, ACCEPTANCE[(2 * i + j) % n]) for i, f in enumerate(PUBLISHED[4:]) for j in range(count)]
    return [(f, d) for f in whole for d in ACCEPTANCE] + rest


@dataclass
class Case:
    """A model, a dictionary on it (None for models without MLPs) and a prompt."""

    name: str
    cfg: Any
    params: dict
    d: Dictionary | None
    tokens: Array


def model_config(family: str, **changes: Any) -> SimpleNamespace:
    """A tiny configuration of a family in `FAMILIES`."""
    return SimpleNamespace(family=family, **(MODEL_DEFAULTS | FAMILIES[family] | changes))


def make_params(cfg: Any, seed: int = 0) -> dict:
    """Random weights of the size of a real model's activations: every array that the configuration asks for."""
    rng = np.random.default_rng(seed)
    L, D, H, G, K, M, V = cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab

    def draw(*shape: int, size: float = 0.3) -> Array:
        return size * rng.normal(size=shape)

    def bias(wanted: bool, *shape: int) -> Array | None:
        return draw(*shape) if wanted else None

    def norm(wanted: bool, *shape: int) -> dict | None:
        if not wanted or cfg.norm == "none":
            return None
        return {"w": 1 + draw(*shape, size=0.1), "b": bias(cfg.norm == "layer", *shape)}

    def head_gain(n: int) -> Array | None:
        return 1 + draw(L, *((n, K) if cfg.qk_norm_whole else (K,)), size=0.1) if cfg.qk_norm else None

    attn = {
        "w_q": draw(L, D, H, K),
        "w_k": draw(L, D, G, K),
        "w_v": draw(L, D, G, K),
        "w_o": draw(L, H, K, D),
        "b_q": bias(cfg.qkv_bias, L, H, K),
        "b_k": bias(cfg.qkv_bias, L, G, K),
        "b_v": bias(cfg.qkv_bias, L, G, K),
        "b_o": bias(cfg.o_bias, L, D),
        "q_norm": head_gain(H),
        "k_norm": head_gain(G),
    }
    mlp = {
        "w_in": draw(L, D, M),
        "w_gate": draw(L, D, M) if cfg.gated else None,
        "w_out": draw(L, M, D),
        "b_in": bias(cfg.mlp_bias, L, M),
        "b_gate": bias(cfg.mlp_bias and cfg.gated, L, M),
        "b_out": bias(cfg.mlp_bias, L, D),
    }
    blocks = {
        "norm1": norm(cfg.pre_norm, L, D),
        "attn": attn,
        "norm1_post": norm(cfg.post_norm, L, D),
        "norm2": norm(cfg.pre_norm and not cfg.attn_only, L, D),
        "mlp": None if cfg.attn_only else mlp,
        "norm2_post": norm(cfg.post_norm and not cfg.attn_only, L, D),
    }
    return {
        "embed": draw(V, D, size=0.8),
        "pos_embed": draw(cfg.n_ctx, D) if cfg.position == "learned" else None,
        "blocks": blocks,
        "final_norm": norm(cfg.final_norm, D),
        "unembed": None if cfg.tied else draw(D, V),
        "b_unembed": bias(cfg.unembed_bias, V),
    }


def dictionary_config(cfg: Any, name: str, d_feature: int = 24, **changes: Any) -> SimpleNamespace:
    """A dictionary configuration of `DICTIONARIES` on a model."""
    c = {
        "kind": "transcoder",
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "d_feature": d_feature,
        "layers": tuple(range(cfg.n_layers)),
        "activation": "relu",
        "k": None,
        "signed_topk": False,
        "margin": False,
        "reads": "mlp_in",
        "writes": "mlp_out",
        "skip": False,
        "fill": "error",
    }
    if name == "neurons":
        c |= {"d_feature": cfg.d_mlp, "writes": "mlp_raw"}
    return SimpleNamespace(**(c | DICTIONARIES[name] | changes))


def make_dictionary(
    cfg: Any, params: dict, tokens: Array, name: str, seed: int = 1, d_feature: int = 24, **changes: Any
) -> Dictionary:
    """Random weights; biases put about a quarter of the pre-activations of this prompt above zero."""
    rng, c = np.random.default_rng(seed), dictionary_config(cfg, name, d_feature, **changes)
    if c.kind == "neurons":
        return Dictionary(c, dict.fromkeys(("w_enc", "b_enc", "w_dec", "b_dec", "threshold", "w_skip")))
    n, F, D = len(c.layers), c.d_feature, c.d_model
    pairs = n * (n + 1) // 2 if c.kind == "clt" else n
    gated = c.activation in ("jumprelu", "batchtopk") or c.margin
    arrays = {
        "w_enc": 0.4 * rng.normal(size=(n, F, D)),
        "b_enc": 0.2 * rng.normal(size=(n, F)),
        "w_dec": 0.3 * rng.normal(size=(pairs, F, D)),
        "b_dec": 0.3 * rng.normal(size=(n, D)),
        "threshold": rng.uniform(0.05, 0.3, size=(n, F)) if gated else None,
        "w_skip": 0.2 * rng.normal(size=(n, D, D)) if c.skip else None,
    }
    d, r = Dictionary(c, arrays), run(cfg, params, tokens)
    for slot, layer in enumerate(c.layers):
        rows, offsets = encoder(cfg, params, d, r, layer)
        pre = np.einsum("tfd,td->tf", rows, r.sites[c.reads][layer]) + offsets
        arrays["b_enc"][slot] -= np.quantile(pre, 0.75)
    return d


# Seed 0 draws a neuron of gemma3 whose one source nearly cancels inside a dot product: 1.7e-13 of its row is rounding.
DRAWN = {("gemma3", "neurons"): 1}


def make_case(
    family: str, name: str, seed: int | None = None, length: int = 6, d_feature: int = 24, **changes: Any
) -> Case:
    """A model of `FAMILIES` with a dictionary of `DICTIONARIES` and a random prompt; the seed is 0, or from `DRAWN`."""
    seed = DRAWN.get((family, name), 0) if seed is None else seed
    cfg = model_config(family, **changes)
    params = make_params(cfg, seed)
    tokens = np.random.default_rng(seed + 100).integers(0, cfg.d_vocab, size=length)
    d = None if cfg.attn_only else make_dictionary(cfg, params, tokens, name, seed + 1, d_feature)
    return Case(f"{family}-{name}", cfg, params, d, tokens)

"""Random models and dictionaries of any size: every array non-zero, a wanted share of features active on a prompt.

Numbers come from NumPy, so that float32 and float64 runs have the same weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models import params as parameters
from tcircuits.models.config import ModelConfig, RopeScaling
from tcircuits.models.forward import forward
from tcircuits.models.model import Model
from tcircuits.transcoders import dictionary
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders

BIASES = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
SIZES: dict[str, Any] = {
    "n_layers": 4, "d_model": 32, "n_heads": 4, "n_kv_heads": 4, "d_head": 8, "d_mlp": 64, "d_vocab": 97, "n_ctx": 32,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layer", "activation": "gelu_tanh", "gated": False, "position": "learned", "tied": True, **BIASES,
    },
    "neox": {"norm": "layer", "activation": "gelu", "gated": False, "parallel": True, "rotary_dim": 4, **BIASES},
    "llama": {"n_kv_heads": 2, "rotary_dim": 8, "rope_scaling": RopeScaling("llama3", 8.0, original_n_ctx=32)},
    "gemma2": {
        "n_kv_heads": 2, "rotary_dim": 8, "activation": "gelu_tanh", "tied": True, "post_norm": True,
        "attn_softcap": 50.0, "final_softcap": 30.0, "windows": (6, 0, 6, 0), "embed_scale": 32**0.5,
    },
    "mistral": {"n_kv_heads": 2, "rotary_dim": 8, "windows": (6, 6, 6, 6)},
    "qwen2": {"n_kv_heads": 2, "rotary_dim": 8, "qkv_bias": True},
    "qwen3": {"n_kv_heads": 2, "rotary_dim": 8, "qk_norm": True, "tied": True},
    "gemma3": {
        "n_kv_heads": 2, "rotary_dim": 8, "activation": "gelu_tanh", "tied": True, "post_norm": True, "qk_norm": True,
        "windows": (6, 6, 6, 0), "rope_theta": 1e6, "rope_theta_local": 1e4, "embed_scale": 32**0.5,
        "rope_scaling": RopeScaling("linear", 8.0),
    },
    "smollm3": {"n_kv_heads": 2, "rotary_dim": 8, "unrotated": (3,), "tied": True},
    "olmo": {"norm": "layer", "rotary_dim": 8},
    "olmo2": {"rotary_dim": 8, "pre_norm": False, "post_norm": True, "qk_norm": True, "qk_norm_whole": True},
    "plain": {
        "norm": "none", "pre_norm": False, "final_norm": False, "activation": "relu", "gated": False,
        "position": "learned", "mlp_bias": True, "unembed_bias": True,
    },
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plt-relu": {"reads": "resid_mid"},
    "plt-topk": {"activation": "topk", "k": 12},
    "plt-jumprelu": {"activation": "jumprelu"},
    "plt-skip": {"skip": True},
    "clt-relu": {"kind": "clt"},
    "clt-jumprelu": {"kind": "clt", "activation": "jumprelu", "reads": "resid_mid"},
    "neurons": {},
}


def fill(spec: Any, rng: np.random.Generator, dtype: str) -> Any:
    """Arrays for a tree of specs: as `params.init`, but gains only near one, and biases not zero."""

    def draw(s: parameters.ArraySpec) -> jax.Array:
        x = rng.normal(size=s.shape)
        x = x / np.sqrt(s.fan_in) if s.init == "normal" else 0.1 * x + (s.init == "ones")
        return jnp.asarray(x, dtype)

    return jax.tree.map(draw, spec)


def random_model(family: str, seed: int = 0, dtype: str = "float32", **sizes: Any) -> Model:
    """A model of one of `FAMILIES` without a tokenizer; `sizes` are fields of `ModelConfig`."""
    cfg = ModelConfig(family, **SIZES | FAMILIES[family] | sizes)
    return Model(cfg, fill(parameters.spec(cfg), np.random.default_rng(seed), dtype), None, f"random-{family}")


def random_dictionary(
    model: Model,
    kind: str,
    tokens: np.ndarray,
    *,
    d_feature: int = 96,
    share: float = 0.125,
    seed: int = 1,
    **changes: Any,
) -> Transcoders:
    """A dictionary of one of `KINDS` (`changes` are fields of `TranscoderConfig`).

    `share` of its features is active on `tokens`, position 0 not counted.
    """
    m, dtype = model.cfg, model.params.embed.dtype.name
    if kind == "neurons":
        return dictionary.neurons(m.n_layers, m.d_model, m.d_mlp)
    switches: dict[str, Any] = {"kind": "transcoder"} | KINDS[kind] | changes
    cfg = TranscoderConfig(
        n_layers=m.n_layers, d_model=m.d_model, d_feature=d_feature, layers=tuple(range(m.n_layers)), **switches
    )
    tree = fill(dictionary.spec(cfg), np.random.default_rng(seed), dtype)
    arrays = {name: getattr(tree, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec", "threshold", "w_skip")}
    if cfg.activation != "topk":
        site = ("resid_pre" if m.parallel else "resid_mid") if cfg.reads == "resid_mid" else "mlp_in"
        x = np.asarray(forward(m, model.params, jnp.asarray(tokens[None]), sites=(site,)).acts[site])[:, 0, 1:]
        pre = np.einsum("ltd,lfd->ltf", x, arrays["w_enc"]) + np.asarray(arrays["b_enc"])[:, None]
        cut = jnp.asarray(np.quantile(pre, 1 - share, axis=(1, 2)), dtype)[:, None]
        if cfg.activation == "jumprelu":
            arrays["threshold"] = jnp.broadcast_to(jnp.abs(cut), arrays["b_enc"].shape)
        else:
            arrays["b_enc"] = arrays["b_enc"] - cut
    return Transcoders(cfg, f"random-{kind}", **arrays)

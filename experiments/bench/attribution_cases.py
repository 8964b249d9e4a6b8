"""Models, dictionaries and prompts of `experiments.bench.attribution`, and the least work that their graphs need."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.toys import random_dictionary, random_model
from tcircuits.models import params as parameters
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward
from tcircuits.models.known import known_config
from tcircuits.transcoders.config import TranscoderConfig

CASES: dict[str, dict[str, Any]] = {
    "A": {"n_layers": 8, "d_model": 128, "n_heads": 4, "n_kv_heads": 2, "d_head": 32, "length": 16, "features": 8843},
    "B": {"n_layers": 12, "d_model": 256, "n_heads": 8, "n_kv_heads": 4, "d_head": 32, "length": 24, "features": 5031},
    "SmolLM2": {
        "n_layers": 30, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_head": 64, "length": 32, "features": 10709,
    },
}  # fmt: skip
D_FEATURE, D_VOCAB = 1024, 512
GEMMA = {"name": "gemma-2-2b", "d_feature": 16384, "length": 64, "l0": 64, "max_features": 7500}


def build(case: str) -> tuple[tc.Model, tc.Transcoders, np.ndarray]:
    """The model, a dictionary with (nearly) the wanted number of active features, and the prompt, BOS first."""
    if case == "Gemma-2-2B":
        return gemma()
    sizes = dict(CASES[case])
    length, wanted = sizes.pop("length"), sizes.pop("features")
    rope: dict[str, Any] = {"rotary_dim": sizes["d_head"], "rope_scaling": None}
    model = random_model("llama", d_mlp=4 * sizes["d_model"], d_vocab=D_VOCAB, **rope, **sizes)
    tokens = np.concatenate([[0], np.random.default_rng(2).integers(1, D_VOCAB, length - 1)])
    share = wanted / (sizes["n_layers"] * (length - 1) * D_FEATURE)
    d = random_dictionary(model, "plt-relu", tokens, d_feature=D_FEATURE, share=share, reads="mlp_in")
    return model, d, tokens


def gemma() -> tuple[tc.Model, tc.Transcoders, np.ndarray]:
    """Random weights in the shape of Gemma-2-2B with JumpReLU transcoders of 16,384 features, made on the device."""
    cfg = known_config(GEMMA["name"])
    assert cfg is not None
    with jax.default_device(jax.devices()[0]):
        params = parameters.init(cfg, jax.random.key(0))
        tokens = np.concatenate([[2], np.random.default_rng(2).integers(3, cfg.d_vocab, GEMMA["length"] - 1)])
        model = tc.Model(cfg, params, None, "random-gemma-2-2b")
        F, L, D = GEMMA["d_feature"], cfg.n_layers, cfg.d_model
        c = TranscoderConfig("transcoder", L, D, F, tuple(range(L)), "jumprelu")
        keys = jax.random.split(jax.random.key(1), 2)
        w_enc, w_dec = (jax.random.normal(k, (L, F, D)) * D**-0.5 for k in keys)
        x = forward(cfg, params, jnp.asarray(tokens[None]), sites=("mlp_in",)).acts["mlp_in"][:, 0, 1:]
        cut = jax.jit(lambda w, x: jax.lax.top_k((x @ w.T).ravel(), GEMMA["l0"] * len(x))[0][-1])
        threshold = jnp.stack([jnp.broadcast_to(cut(w_enc[i], x[i]), F) for i in range(L)])
    b_enc, b_dec = jnp.zeros((L, F)), jnp.zeros((L, D))
    return model, tc.Transcoders(c, "random-jumprelu", w_enc, b_enc, w_dec, b_dec, threshold, None), tokens


def exchange(path: Path, model: tc.Model, d: tc.Transcoders, tokens: np.ndarray, **more: np.ndarray) -> None:
    """Write everything that the rival needs, under our names, and what else it is told."""
    named = {jax.tree_util.keystr(k, simple=True, separator="."): x for k, x in jax.tree.leaves_with_path(model.params)}
    arrays = {f"d.{name}": getattr(d, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec")}
    everything = {k: np.asarray(x) for k, x in (named | arrays).items()}
    np.savez(path, allow_pickle=False, cfg=np.array(json.dumps(asdict(model.cfg))), tokens=tokens, **everything, **more)


def least_flops(cfg: ModelConfig, graph: tc.Graph, n_active: np.ndarray) -> float:
    """The work that the rows of a graph need at least (`experiments.bench.attribution`); n_active [L, T]."""
    D, H, G, K, T = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.d_head, len(graph.tokens)
    active = np.zeros((cfg.n_layers + 1, T + 1))
    active[1:, 1:] = n_active
    below = active.cumsum(0).cumsum(1)  # [l, n]: features at layers < l and positions < n
    layer = graph.row_layer.astype(np.int64)
    n = np.concatenate([graph.features[:, 1], [t.pos for t in graph.targets]]) + 1
    attention = layer * (n * (D * H * K + D * G * K) + n * (n + 1) / 2 * H * K)
    return float(2 * (attention + D * below[layer, n] + D * (layer * n + n)).sum())

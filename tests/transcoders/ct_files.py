"""Writes folders as circuit-tracer does, from random tensors, and reconstructs from those raw tensors in NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

from tcircuits.models.config import ModelConfig

Raw = list[dict[str, np.ndarray]]
L, D, F = 3, 4, 12


def model(n_layers: int = L, d_model: int = D, **more: Any) -> ModelConfig:
    sizes = {"n_heads": 1, "n_kv_heads": 1, "d_head": d_model, "d_mlp": 8, "d_vocab": 5, "n_ctx": 8, "position": "none"}
    return ModelConfig("toy", n_layers, d_model, **(sizes | more))


def inputs(n_layers: int = L, d_model: int = D, seed: int = 9, n: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_layers, n, d_model)).astype(np.float32)


def write_config(folder: Path, **fields: Any) -> None:
    base = {"model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    named = {key: value for key, value in (base | fields).items() if value is not None}
    (folder / "config.yaml").write_text(yaml.safe_dump(named))


def per_layer(
    folder: Path,
    *,
    n_layers: int = L,
    d_model: int = D,
    d_feature: int = F,
    threshold: bool = False,
    skip: bool = False,
    k: int | None = None,
    old: bool = False,
    dtype: Any = np.float32,
    seed: int = 0,
) -> Raw:
    """`layer_{i}.safetensors`; `old` has W_dec [D,F]."""
    rng, raw = np.random.default_rng(seed), []
    for i in range(n_layers):
        shapes = {
            "W_enc": (d_feature, d_model),
            "b_enc": (d_feature,),
            "W_dec": (d_model, d_feature) if old else (d_feature, d_model),
            "b_dec": (d_model,),
        }
        shapes |= {"W_skip": (d_model, d_model)} if skip else {}
        tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
        if threshold:
            tensors["activation_function.threshold"] = rng.uniform(0, 1.5, d_feature).astype(dtype)
        if k is not None:
            tensors["k"] = np.array(k, np.int64)
        save_file(tensors, folder / f"layer_{i}.safetensors")
        raw.append(tensors)
    return raw


def cross_layer(
    folder: Path, *, n_layers: int = L, threshold: bool = False, skip: str | None = None, dtype: Any = np.float32
) -> Raw:
    """`W_enc_{i}.safetensors`, `W_dec_{i}.safetensors`; `skip` is the name of the skip's tensor."""
    rng, raw = np.random.default_rng(1), []
    for i in range(n_layers):
        shapes = {f"W_enc_{i}": (F, D), f"b_enc_{i}": (F,), f"b_dec_{i}": (D,), f"W_dec_{i}": (F, n_layers - i, D)}
        shapes |= {skip.format(i): (D, D)} if skip else {}
        tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
        if threshold:
            tensors[f"threshold_{i}"] = rng.uniform(0, 1.5, F).astype(dtype)
        decoder = f"W_dec_{i}"
        save_file({n: t for n, t in tensors.items() if n != decoder}, folder / f"W_enc_{i}.safetensors")
        save_file({decoder: tensors[decoder]}, folder / f"{decoder}.safetensors")
        raw.append(tensors)
    return raw


def active(pre: np.ndarray, threshold: np.ndarray | None, k: int | None) -> np.ndarray:
    """JumpReLU where there are thresholds, else the k largest with their signs, else ReLU."""
    if threshold is not None:
        return np.where(pre > threshold, pre, 0)
    if k is None:
        return np.where(pre > 0, pre, 0)
    return np.array([[v if (row > v).sum() < k else 0 for v in row] for row in pre])


def per_layer_reconstruction(raw: Raw, x: np.ndarray, k: int | None = None, old: bool = False) -> np.ndarray:
    out = []
    for tensors, rows in zip(raw, x.astype(np.float64), strict=True):
        t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        f = active(rows @ t["W_enc"].T + t["b_enc"], t.get("activation_function.threshold"), k)
        y = f @ (t["W_dec"].T if old else t["W_dec"]) + t["b_dec"]
        out.append(y + rows @ t["W_skip"].T if "W_skip" in t else y)
    return np.array(out)


def cross_layer_reconstruction(raw: Raw, x: np.ndarray, skip: str | None = None) -> np.ndarray:
    out = np.zeros(x.shape)
    x = x.astype(np.float64)
    for i, tensors in enumerate(raw):
        t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        f = active(x[i] @ t[f"W_enc_{i}"].T + t[f"b_enc_{i}"], t.get(f"threshold_{i}"), None)
        for m in range(i, len(raw)):
            out[m] += f @ t[f"W_dec_{i}"][:, m - i]
        out[i] += t[f"b_dec_{i}"] + (x[i] @ t[skip.format(i)] if skip else 0)
    return out

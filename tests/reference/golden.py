"""Reads the graphs that circuit-tracer made (tests/golden/make_circuit_tracer.py) back as cases and plain arrays."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .builders import MODEL_DEFAULTS, Case
from .dictionary import Dictionary

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "circuit_tracer"
NAMES = sorted(p.stem for p in FOLDER.glob("*-*.npz"))
"""Every stored graph; `-ranked` ones expanded only some features, `-direction` ones trace a vector."""

ARRAYS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold", "w_skip")


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file."""
    with np.load(path, allow_pickle=False) as f:
        return {name: f[name] for name in f.files}


def config(text: np.ndarray) -> SimpleNamespace:
    """A configuration from JSON, sequences as tuples."""
    fields = json.loads(str(text), object_hook=lambda d: SimpleNamespace(**d))
    return SimpleNamespace(**{k: tuple(v) if isinstance(v, list) else v for k, v in vars(fields).items()})


def tree(names: list[str], stored: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """One dict of the parameter tree, None for what is not stored."""
    return {name: stored.get(f"{prefix}{name}") for name in names}


def load(name: str) -> tuple[Case, dict[str, np.ndarray]]:
    """The model, dictionary and prompt of a stored graph, and what circuit-tracer made of them."""
    m, made = read(FOLDER / f"{name.split('-')[0]}.npz"), read(FOLDER / f"{name}.npz")
    blocks = {part: norm(m, f"blocks.{part}.") for part in ("norm1", "norm1_post", "norm2", "norm2_post")}
    attn = ["w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o", "q_norm", "k_norm"]
    mlp = ["w_in", "w_gate", "w_out", "b_in", "b_gate", "b_out"]
    params = {
        **tree(["embed", "pos_embed", "unembed", "b_unembed"], m, ""),
        "blocks": {**blocks, "attn": tree(attn, m, "blocks.attn."), "mlp": tree(mlp, m, "blocks.mlp.")},
        "final_norm": norm(m, "final_norm."),
    }
    d = Dictionary(config(made["d_cfg"]), tree(list(ARRAYS), made, "d."))
    # Switches that came after these files were made stand at what was the only choice then.
    cfg = SimpleNamespace(**(MODEL_DEFAULTS | vars(config(m["cfg"]))))
    return Case(name, cfg, params, d, m["tokens"]), made


def norm(stored: dict[str, np.ndarray], prefix: str) -> dict | None:
    """A norm's gain and bias, or None."""
    p = tree(["w", "b"], stored, prefix)
    return None if p["w"] is None else p

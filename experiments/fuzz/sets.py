"""Small sets of dictionaries in formats that no committed file has: written as their owners write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LAYERS, D, F = 2, 4, 12
Shapes = dict[str, tuple[int, ...]]


def _write(folder: Path, file: str, shapes: Shapes, config: str, fields: dict[str, Any]) -> None:
    """One file of positive random tensors, and a JSON file beside it."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).parent.mkdir(exist_ok=True)
    save_file({name: np.abs(rng.normal(size=s)).astype(np.float32) for name, s in shapes.items()}, folder / file)
    (folder / config).write_text(json.dumps(fields))


def gemma_scope(folder: Path) -> None:
    """Gemma Scope: npz files, a folder a layer."""
    shapes: Shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    rng = np.random.default_rng(0)
    for layer in range(LAYERS):
        into = folder / f"layer_{layer}" / "width_16k" / f"average_l0_{70 + layer}"
        into.mkdir(parents=True)
        tensors = {name: np.abs(rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        np.savez(into / "params.npz", allow_pickle=False, **tensors)


def gemma_scope_2(folder: Path) -> None:
    """Gemma Scope 2: safetensors and a config.json, a folder a layer."""
    shapes: Shapes = {"w_enc": (D, F), "w_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    for i in range(LAYERS):
        norm = f"model.layers.{i}.{{}}_feedforward_layernorm.output"
        config = {
            "hf_hook_point_in": norm.format("pre"), "hf_hook_point_out": norm.format("post"), "width": F,
            "model_name": "google/gemma-3-4b-pt", "architecture": "jump_relu", "l0": 15, "affine_connection": False,
            "type": "transcoder",
        }  # fmt: skip
        _write(folder / f"layer_{i}_width_16k_l0_small", "params.safetensors", shapes, "config.json", config)


def llama_scope(folder: Path) -> None:
    """Llama Scope: checkpoints/final.safetensors and hyperparams.json, a folder a layer."""
    shapes: Shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "decoder.bias": (D,)}
    for i in range(LAYERS):
        config = {
            "device": "cuda", "seed": 42, "dtype": "torch.bfloat16", "d_model": D, "d_sae": F,
            "hook_point_in": f"blocks.{i}.ln2.hook_normalized", "hook_point_out": f"blocks.{i}.hook_mlp_out",
            "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "act_fn": "jumprelu",
            "jump_relu_threshold": 0.25, "norm_activation": "dataset-wise", "top_k": 50,
            "dataset_average_activation_norm": {"in": 2.0, "out": 3.4}, "sparsity_include_decoder_norm": True,
            "use_glu_encoder": False,
        }  # fmt: skip
        _write(
            folder / f"Llama3_1-8B-Base-L{i}TC-8x", "checkpoints/final.safetensors", shapes, "hyperparams.json", config
        )


def clt_training(folder: Path) -> None:
    """EleutherAI's clt-training without cross-layer decoders: sae.safetensors and cfg.json, a folder a layer."""
    shapes: Shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,), "W_skip": (D, D)}
    shapes |= {"post_enc": (F,), "post_enc_scale": (F,), "in_norm": (1,), "out_norm": (1,)}
    for i in range(LAYERS):
        config = {
            "dtype": "none", "activation": "topk", "expansion_factor": F // D, "normalize_decoder": True,
            "num_latents": 0, "k": 3, "multi_topk": False, "skip_connection": True, "transcode": True,
            "tp_output": True, "normalize_io": True, "divide_cross_layer": False, "train_post_encoder": True,
            "post_encoder_scale": True, "per_source_tied": False, "secondary_target_tied": False,
            "topk_coalesced": False, "coalesce_topk": "none", "d_in": D, "n_targets": 0, "n_sources": 0,
        }  # fmt: skip
        _write(folder / f"layers.{i}.mlp", "sae.safetensors", shapes, "cfg.json", config)
    names = [f"layers.{i}.mlp" for i in range(LAYERS)]
    run = {"model": "meta-llama/Llama-3.2-1B", "hookpoints": names, "hookpoints_in": [], "cross_layer": 0}
    (folder / "config.json").write_text(json.dumps(run))


def make_sets(folder: Path) -> None:
    """A folder of each format."""
    for make in (gemma_scope, gemma_scope_2, llama_scope, clt_training):
        make(folder / make.__name__)

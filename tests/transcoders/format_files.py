"""Writes folders as the owners of each format do, from random tensors, and returns these tensors, one dict a layer."""

import io
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from . import ct_files as ct

L, D, F = ct.L, ct.D, ct.F
Raw = list[dict[str, np.ndarray]]


def random(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Normals; thresholds are their absolute values."""
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: abs(t) if "threshold" in name else t for name, t in drawn.items()}


def write_json(path: Path, fields: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def save(tensors: dict[str, np.ndarray], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path)


def npz(folder: Path, l0: tuple[tuple[int, ...], ...] = ((76,), (65,), (49,)), width: str = "16k") -> dict[Any, Any]:
    """Gemma Scope: `layer_{i}/width_{w}/average_l0_{n}/params.npz`; tensors by (layer, l0)."""
    raw = {}
    for i, several in enumerate(l0):
        for n in several:
            shapes: Any = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
            raw[i, n] = random(100 * i + n, **shapes)
            path = folder / f"layer_{i}" / f"width_{width}" / f"average_l0_{n}" / "params.npz"
            path.parent.mkdir(parents=True)
            np.savez(path, **raw[i, n])
    return raw


def gemma_scope_2(folder: Path, what: str = "width_16k_l0_small", skip: bool = False, about: bool = True) -> Raw:
    """`layer_{i}_{what}/params.safetensors` and, unless `about` is false, `config.json`."""
    raw = []
    for i in range(L):
        shapes: Any = {"w_enc": (D, F), "w_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
        shapes |= {"affine_skip_connection": (D, D)} if skip else {}
        raw.append(random(i, **shapes))
        here = folder / f"layer_{i}_{what}{'_affine' if skip else ''}"
        save(raw[-1], here / "params.safetensors")
        if about:
            norm = f"model.layers.{i}.{{}}_feedforward_layernorm.output"
            write_json(here / "config.json", {
                "hf_hook_point_in": norm.format("pre"), "hf_hook_point_out": norm.format("post"), "width": F,
                "model_name": "google/gemma-3-4b-pt", "architecture": "jump_relu", "l0": 15,
                "affine_connection": skip, "type": "transcoder",
            })  # fmt: skip
    return raw


def gemma_scope_2_clt(folder: Path, skip: bool = False, n_layers: int = L) -> Raw:
    """`params_layer_{i}.safetensors` and `config.json`; decoders to earlier layers are noise that nobody may read."""
    raw = []
    for i in range(n_layers):
        shapes: Any = {"w_enc": (D, F), "w_dec": (F, n_layers, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
        shapes |= {"affine_skip_connection": (D, D)} if skip else {}
        raw.append(random(i, **shapes))
        save(raw[-1], folder / f"params_layer_{i}.safetensors")
    norm = "model.layers.{{all}}.{}_feedforward_layernorm.output"
    write_json(folder / "config.json", {
        "hf_hook_point_in": norm.format("pre"), "hf_hook_point_out": norm.format("post"), "width": n_layers * F,
        "model_name": "google/gemma-3-270m", "l0": 150, "affine_connection": skip, "type": "clt",
    })  # fmt: skip
    return raw


def saelens_config(layer: int, architecture: str, **fields: Any) -> dict[str, Any]:
    """A `cfg.json` as release 6 writes it."""
    metadata = {
        "sae_lens_version": "6.54.12", "model_name": "gpt2-small", "hook_name": f"blocks.{layer}.ln2.hook_normalized",
        "hook_name_out": f"blocks.{layer}.hook_mlp_out", "hook_head_index": None, "prepend_bos": True,
        "context_size": 128, "neuronpedia_id": None, "model_from_pretrained_kwargs": {},
    }  # fmt: skip
    metadata |= fields.pop("metadata", {})
    known = {
        "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False,
        "normalize_activations": "none", "reshape_activations": "none", "d_out": D, "architecture": architecture,
    }  # fmt: skip
    return known | {"metadata": metadata} | fields


def old_saelens_config(layer: int, **fields: Any) -> dict[str, Any]:
    """A `cfg.json` as releases before 6 wrote it."""
    return {
        "architecture": "standard", "d_in": D, "d_sae": F, "dtype": "torch.float32", "device": "cuda",
        "activation_fn_str": "relu", "finetuning_scaling_factor": False, "context_size": 128,
        "model_name": "gpt2-small", "hook_name": f"blocks.{layer}.ln2.hook_normalized", "hook_layer": layer,
        "hook_head_index": None, "prepend_bos": True, "dataset_path": "Skylion007/openwebtext",
        "dataset_trust_remote_code": True, "sae_lens_training_version": None, "normalize_activations": "none",
    } | fields  # fmt: skip


def saelens(
    folder: Path, architecture: str, config: Any = saelens_config, tensors: tuple[str, ...] = (), **fields: Any
) -> Raw:
    """One folder a layer; `tensors` are vectors [D] or (threshold, scaling_factor) [F] beside the usual ones."""
    raw = []
    for i in range(L):
        shapes: Any = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
        shapes |= {"threshold": (F,)} if "jumprelu" in architecture else {}
        shapes |= {"W_skip": (D, D)} if "skip" in architecture else {}
        shapes |= {name: (F,) if name == "scaling_factor" else (D,) for name in tensors}
        raw.append(random(i, **shapes))
        here = folder / f"gpt2-small-layer-{i}-mlp-transcoder"
        save(raw[-1], here / "sae_weights.safetensors")
        about = config(i, **fields) if config is old_saelens_config else config(i, architecture, **fields)
        write_json(here / "cfg.json", about)
        save({"sparsity": np.zeros(F, np.float32)}, here / "sparsity.safetensors")
    return raw


def sparsify(folder: Path, hookpoint: str = "layers.{}.mlp", *, skip: bool = False, dtype: Any = np.float32,
             **fields: Any) -> Raw:  # fmt: skip
    """`{hookpoint}/cfg.json` and `sae.safetensors`; a field that is None is left out, as older files leave it out."""
    raw = []
    known = {
        "activation": "topk", "expansion_factor": F // D, "normalize_decoder": True, "num_latents": 0, "k": 3,
        "multi_topk": False, "skip_connection": skip, "transcode": True, "d_in": D,
    }  # fmt: skip
    for i in range(L):
        shapes: Any = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
        shapes |= {"W_skip": (D, D)} if skip else {}
        raw.append({name: t.astype(dtype) for name, t in random(i, **shapes).items()})
        here = folder / hookpoint.format(i)
        save(raw[-1], here / "sae.safetensors")
        write_json(here / "cfg.json", {key: v for key, v in (known | fields).items() if v is not None})
    write_json(folder / "config.json", {"model": "HuggingFaceTB/SmolLM2-135M", "hookpoints": [], "sae": {}})
    return raw


def llama_scope(folder: Path, **fields: Any) -> tuple[Raw, list[dict[str, Any]]]:
    """`Llama3_1-8B-Base-L{i}TC-8x/`; tensors and, for each layer, hyperparameters."""
    raw, about = [], []
    for i in range(L):
        shapes: Any = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "decoder.bias": (D,)}
        raw.append({name: t.astype(ml_dtypes.bfloat16) for name, t in random(i, **shapes).items()})
        about.append({
            "device": "cuda", "seed": 42, "dtype": "torch.bfloat16", "d_model": D, "d_sae": F,
            "hook_point_in": f"blocks.{i}.ln2.hook_normalized", "hook_point_out": f"blocks.{i}.hook_mlp_out",
            "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "act_fn": "jumprelu",
            "jump_relu_threshold": 0.25 + i / 8, "norm_activation": "dataset-wise", "top_k": 50,
            "dataset_average_activation_norm": {"in": math.sqrt(D) * (1 + i / 2), "out": 3.390625 - i},
            "sparsity_include_decoder_norm": True, "use_glu_encoder": False,
        } | fields)  # fmt: skip
        here = folder / f"Llama3_1-8B-Base-L{i}TC-8x"
        save(raw[-1], here / "checkpoints" / "final.safetensors")
        write_json(here / "hyperparams.json", about[-1])
    return raw, about


def lm_saes(folder: Path, normed: bool = True, **fields: Any) -> Raw:
    """`L{i}/config.json` and `sae_weights.safetensors`."""
    raw = []
    for i in range(L):
        source, sink = f"blocks.{i}.ln2.hook_normalized", f"blocks.{i}.hook_mlp_out"
        about = {
            "sae_type": "sae", "d_model": D, "expansion_factor": F / D, "use_decoder_bias": True, "act_fn": "jumprelu",
            "norm_activation": "dataset-wise" if normed else "inference", "sparsity_include_decoder_norm": True,
            "top_k": 3, "use_glu_encoder": False, "hook_point_in": source, "hook_point_out": sink,
            "dtype": "torch.bfloat16", "device": "cuda",
        } | fields  # fmt: skip
        shapes: Any = {"W_E": (D, F), "b_E": (F,), "W_D": (F, D), "b_D": (D,)}
        if about["act_fn"] == "jumprelu":
            shapes["activation_function.log_jumprelu_threshold"] = (F,)
        t = random(i, **shapes)
        if normed:
            t |= {f"dataset_average_activation_norm.{source}": np.array(2.5 + i, np.float32)}
            t |= {f"dataset_average_activation_norm.{sink}": np.array(0.5 + i, np.float32)}
        save(t, folder / f"L{i}" / "sae_weights.safetensors")
        write_json(folder / f"L{i}" / "config.json", about)
        raw.append(t)
    return raw


def clt_training(
    folder: Path,
    *,
    cross: int = L,
    tied: str = "none",
    skip: str = "own",
    affine: bool = True,
    per_layer: bool = False,
    top: Any = None,
    **fields: Any,
) -> Raw:
    """`layers.{i}.mlp/` of a run with `cross_layer`; each layer's tensors as its module's state dict has them.

    `skip`: `own` leaves those to later layers at the zero they start from, `all` does not, `none` has none. `affine`:
    with trained scales; offsets stay at zero.
    """
    raw = []
    known = {
        "dtype": "none", "activation": "topk", "expansion_factor": F // D, "normalize_decoder": True, "num_latents": 0,
        "k": 3, "multi_topk": False, "skip_connection": skip != "none", "transcode": True, "tp_output": True,
        "normalize_io": True, "divide_cross_layer": False, "train_post_encoder": True, "post_encoder_scale": affine,
        "per_source_tied": tied == "source", "secondary_target_tied": False, "topk_coalesced": False,
        "coalesce_topk": tied if tied in ("concat", "per-layer") else "none", "d_in": D,
    } | fields  # fmt: skip
    for i in range(L):
        n = 0 if per_layer else min(cross, L - i)
        sources = sum(i - j < min(cross, L - j) for j in range(i + 1))
        shapes: Any = {"encoder.weight": (F, D), "encoder.bias": (F,)}
        listed = n > 0 and tied in ("none", "source")  # biases and skips to each target
        decoders = [f"W_decs.{t}" for t in range(n)] if n and tied == "none" else ["W_dec"]
        shapes |= dict.fromkeys(decoders, (F * sources if n and tied == "per-layer" else F, D))
        shapes |= {f"b_decs.{t}": (D,) for t in range(n)} if listed else {"b_dec": (D,)}
        if skip != "none":
            shapes |= {f"W_skips.{t}": (D, D) for t in range(n)} if listed else {"W_skip": (D, D)}
        if affine:
            shapes |= {f"post_enc_scales.{t}": (F,) for t in range(n)} if n else {"post_enc_scale": (F,)}
        t = random(i, **shapes)
        t |= {f"W_skips.{j}": np.zeros((D, D), np.float32) for j in range(1, n) if listed and skip == "own"}
        t |= {f"post_encs.{j}" if n else "post_enc": np.zeros(F, np.float32) for j in range(max(1, n))}
        if known["normalize_io"]:
            t |= {"in_norm": np.float32([2.5 + i]), "out_norm": np.float32([0.5 + i / 4])}
        # A list's first stands there under its own name too.
        t |= {ours: t[first] for ours, first in (("W_dec", "W_decs.0"), ("b_dec", "b_decs.0"), ("W_skip", "W_skips.0"))
              if first in t}  # fmt: skip
        save(t, folder / f"layers.{i}.mlp" / "sae.safetensors")
        about = {key: v for key, v in known.items() if v is not None} | {"n_targets": n, "n_sources": sources}
        write_json(folder / f"layers.{i}.mlp" / "cfg.json", about)
        raw.append(t)
    names = [f"layers.{i}.mlp" for i in range(L)]
    run = {"model": "meta-llama/Llama-3.2-1B", "hookpoints": names, "hookpoints_in": [], "cross_layer": cross}
    write_json(folder / "config.json", run if top is None else run | top)
    return raw


class Runs:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def torch_zip(path: Path, value: Any) -> None:
    """A file that PyTorch would open, with any pickle inside."""
    buffer = io.BytesIO()
    pickle.dump(value, buffer, protocol=2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", buffer.getvalue())
        file.writestr("archive/version", "3\n")

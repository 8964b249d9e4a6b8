"""The small models' configurations, one for each family, and their folders in the form of the Hugging Face hub.

All have 4 layers, width 128, 4 heads of 32, context 128 and about 1.1M parameters. A token costs some 7 MFLOP of
training (6 x parameters, and attention); two free CPU cores reach 60 GFLOP/s in such small products (a third of their
peak in large ones), 9,000 tokens/s: 7.8M tokens take 15 minutes there, and longer on cores that are shared.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from tcircuits.models.config import ModelConfig
from tcircuits.models.families import config_from_hf, family_of
from tcircuits.models.params import Params

FAMILIES = ("llama", "gpt2", "gpt_neox")
LAYERS, WIDTH, HEADS, CONTEXT = 4, 128, 4, 128
GATED, PLAIN = 384, 512  # MLP widths: 3 matrices of 384 are about 2 of 512, and a little more


def raw_config(family: str, vocabulary: int) -> dict[str, Any]:
    """The fields of `config.json`."""
    common = {"model_type": family, "vocab_size": vocabulary, "tie_word_embeddings": True}
    common |= {"bos_token_id": 0, "eos_token_id": None, "torch_dtype": "float16"}
    if family == "gpt2":
        sizes = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "n_inner": PLAIN, "n_positions": CONTEXT}
        return common | sizes | {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"]}
    sizes = {
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
    }
    if family == "gpt_neox":
        more = {"intermediate_size": PLAIN, "hidden_act": "gelu", "rotary_pct": 0.5, "use_parallel_residual": True}
        return common | sizes | more | {"architectures": ["GPTNeoXForCausalLM"]}
    more = {"intermediate_size": GATED, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
    return common | sizes | more | {"num_key_value_heads": HEADS, "architectures": ["LlamaForCausalLM"]}


def config(family: str, vocabulary: int) -> ModelConfig:
    """As the package reads it.

    Raises:
        InputError: an unknown family.
    """
    return config_from_hf(raw_config(family, vocabulary))


def tensors(cfg: ModelConfig, params: Params, raw: dict[str, Any]) -> dict[str, np.ndarray]:
    """The weights under their names in the family's files: the inverse of loading.

    Loading only re-arranges, so each change is applied to the numbers of a tensor's entries instead of the entries;
    what comes out says where each entry of our array has to go.
    """
    family = family_of(raw)
    ours = {jax.tree_util.keystr(k, simple=True, separator="."): np.asarray(x) for k, x in _leaves(params)}
    files = {}
    for tensor in family.tensors(cfg, raw):
        parts = {path: change for path, change in tensor.parts.items() if path in ours}
        places = np.arange(np.prod(tensor.shape)).reshape(tensor.shape)
        for layer in range(cfg.n_layers) if "{}" in tensor.name else (None,):
            out = np.full(places.size, np.nan, np.float32)
            for path, change in parts.items():
                x = ours[path] if layer is None else ours[path][layer]
                out[np.asarray(change(places, layer or 0)).ravel()] = x.ravel()
            if parts:
                name = tensor.name.format(layer)
                files[name if name == family.head else family.prefixes[0] + name] = out.reshape(tensor.shape)
    return files


def _leaves(params: Params) -> Iterator[tuple[Any, Any]]:
    yield from jax.tree.leaves_with_path(params)


def write_folder(folder: Path, raw: dict[str, Any], params: Params) -> None:
    """`config.json` and `model.safetensors` in float16; each written to another name first."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: w.astype(np.float16) for name, w in tensors(config_from_hf(raw), params, raw).items()}
    partial = folder / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # the library leaves it to its owner alone
    partial.replace(folder / "model.safetensors")
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / "config.json")

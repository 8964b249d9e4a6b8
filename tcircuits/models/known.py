"""Shapes of well-known models by name, as the fields of their published `config.json`: to plan without downloading.

>>> known_config("Llama-2-70B").n_layers
80

Fields are those that give shapes and switches; the same reader takes them as takes a file.
"""

from collections.abc import Mapping
from typing import Any

from tcircuits.models.config import ModelConfig
from tcircuits.models.families import config_from_hf


def _fields(kind: str, names: str, values: tuple[Any, ...], **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **dict(zip(names.split(), values, strict=True)), **more}


_LLAMA = (
    "num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads vocab_size "
    "max_position_embeddings"
)


def _llama(*sizes: int, **more: Any) -> dict[str, Any]:
    return _fields("llama", _LLAMA, sizes, rms_norm_eps=1e-5, **more)


def _llama_3(*sizes: int, factor: float | None, **more: Any) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    rope = {"rope_theta": 500000.0, **({} if factor is None else {"rope_scaling": scaling})}
    return _llama(*sizes, **rope, **more)


def _gemma_2(*sizes: int, scalar: int) -> dict[str, Any]:
    names = _LLAMA.replace("vocab_size max_position_embeddings", "head_dim")
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": scalar}
    common = {"vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096}
    return _fields("gemma2", names, sizes, hidden_activation="gelu_pytorch_tanh", **common, **caps)


def _qwen_3(*sizes: int, tied: bool) -> dict[str, Any]:
    names = _LLAMA.replace("vocab_size max_position_embeddings", "head_dim")
    common = {"vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1e6, "tie_word_embeddings": tied}
    return _fields("qwen3", names, sizes, rms_norm_eps=1e-6, **common)


def _pythia(*sizes: int) -> dict[str, Any]:
    names = "num_hidden_layers hidden_size intermediate_size num_attention_heads vocab_size"
    return _fields("gpt_neox", names, sizes, max_position_embeddings=2048, rotary_pct=0.25, rotary_emb_base=10000)


def _gpt2(*sizes: int) -> dict[str, Any]:
    return _fields("gpt2", "n_layer n_embd n_head", sizes, vocab_size=50257, n_positions=1024)


KNOWN: Mapping[str, Mapping[str, Any]] = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "pythia-70m": _pythia(6, 512, 2048, 8, 50304),
    "pythia-410m": _pythia(24, 1024, 4096, 16, 50304),
    "pythia-1.4b": _pythia(24, 2048, 8192, 16, 50304),
    "pythia-2.8b": _pythia(32, 2560, 10240, 32, 50304),
    "pythia-6.9b": _pythia(32, 4096, 16384, 32, 50432),
    "pythia-12b": _pythia(36, 5120, 20480, 40, 50688),
    "llama-2-7b": _llama(32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-2-13b": _llama(40, 5120, 13824, 40, 40, 32000, 4096),
    "llama-2-70b": _llama(80, 8192, 28672, 64, 8, 32000, 4096),
    "llama-3.1-8b": _llama_3(32, 4096, 14336, 32, 8, 128256, 131072, factor=8.0),
    "llama-3.1-70b": _llama_3(80, 8192, 28672, 64, 8, 128256, 131072, factor=8.0),
    "llama-3.2-1b": _llama_3(16, 2048, 8192, 32, 8, 128256, 131072, factor=32.0, head_dim=64, tie_word_embeddings=True),
    "llama-3.2-3b": _llama_3(
        28, 3072, 8192, 24, 8, 128256, 131072, factor=32.0, head_dim=128, tie_word_embeddings=True
    ),
    "gemma-2-2b": _gemma_2(26, 2304, 9216, 8, 4, 256, scalar=256),
    "gemma-2-9b": _gemma_2(42, 3584, 14336, 16, 8, 256, scalar=256),
    "gemma-2-27b": _gemma_2(46, 4608, 36864, 32, 16, 128, scalar=144),
    "qwen3-0.6b": _qwen_3(28, 1024, 3072, 16, 8, 128, tied=True),
    "qwen3-1.7b": _qwen_3(28, 2048, 6144, 16, 8, 128, tied=True),
    "qwen3-4b": _qwen_3(36, 2560, 9728, 32, 8, 128, tied=True),
    "qwen3-8b": _qwen_3(36, 4096, 12288, 32, 8, 128, tied=False),
    "qwen3-14b": _qwen_3(40, 5120, 17408, 40, 8, 128, tied=False),
}


def known_name(name: str) -> str | None:
    """The table's name for a model: `google/gemma-2-2b` and `Llama-2-70b-hf` are there too."""
    short = name.lower().rsplit("/", 1)[-1].removesuffix("-hf").removesuffix("-deduped")
    short = short.removesuffix("-it").removesuffix("-instruct").removesuffix("-base").replace("meta-llama", "llama")
    return short if short in KNOWN else None


def known_config(name: str) -> ModelConfig | None:
    """The configuration of a well-known model, None for others."""
    short = known_name(name)
    return None if short is None else config_from_hf(KNOWN[short])

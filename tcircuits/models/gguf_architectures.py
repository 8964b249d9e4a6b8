"""What GGUF files of each architecture hold: names of tensors and fields, and what they leave out.

The fields become those of a published `config.json`, so that one table reads both. Where a file leaves a number out, it
has the value that llama.cpp, the format's reference, has built in for that architecture; each is marked below.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcircuits.files.tensor_file import Header
from tcircuits.models.rope_fields import KINDS
from tcircuits.types import InputError

GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        model_type: the family that its models belong to.
        layer: names of a layer's tensors there, by their names in the file.
        fields: names of fields there, beside those that all architectures have.
        complete: adds what the file leaves out, given the configuration so far and the fields that are left; it takes
            from these what it reads.
        interleaved: rows of queries and keys lie in interleaved rotary pairs.
        gain_offset: what was added to the gains of norms when the file was written.
        biases: fields of the configuration that say whether a tensor with this name is in layer 0.
    """

    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    fields: Mapping[str, str] = field(default_factory=dict)
    complete: Callable[[Config, Config], Config] = lambda config, left: {}
    interleaved: bool = False
    gain_offset: float = 0.0
    biases: Mapping[str, str] = field(default_factory=dict)

    def hf_name(self, name: str) -> str:
        """The name that a published folder has for a tensor of the file; unknown names stay as they are."""
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if block and block[2] in self.layer:
            return f"model.layers.{block[1]}.{self.layer[block[2]]}.{kind}"
        return f"{GLOBAL[stem]}.{kind}" if stem in GLOBAL else name


def _ratio(config: Config) -> int:
    """The model's width over its heads; 0 where they are no sizes, which the family's table then says."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    return width // heads if isinstance(heads, int) and isinstance(width, int) and heads > 0 else 0


def _score_scale(config: Config, largest: int) -> int:
    """The number whose root divides the scores; only the largest model of a release has another than the head width."""
    return _ratio(config) if config.get("num_hidden_layers") == largest else config["head_dim"]


def _gemma2(config: Config, left: Config) -> Config:
    """Built in: windows of 4096 in every other layer, caps of 50 and 30, which are the family's own defaults too."""
    if left.pop("attention.sliding_window_pattern", 2) != 2:
        raise InputError("gemma2.attention.sliding_window_pattern must be 2: every other layer has a window")
    return {"query_pre_attn_scalar": _score_scale(config, 46)}


def _gemma3(config: Config, left: Config) -> Config:
    """Built in: every sixth layer without a window, base 10000 in the others; without a width there are no windows."""
    n, pattern = config.get("num_hidden_layers"), left.pop("attention.sliding_window_pattern", 6)
    if not isinstance(n, int):
        return {}  # the family's table says what is wrong with it
    if "sliding_window" not in config:
        pattern = 1
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        pattern = [(i + 1) % pattern > 0 for i in range(min(n, 10_000))]
    if not isinstance(pattern, list) or not all(isinstance(p, bool) for p in pattern):
        raise InputError(
            f"gemma3.attention.sliding_window_pattern is {pattern!r}; it must be a number, or a flag for each layer"
        )
    local = left.pop("rope.freq_base_swa", 10000.0)
    return {
        "query_pre_attn_scalar": _score_scale(config, 62),
        "layer_types": [KINDS[p] for p in pattern],
        "rope_local_base_freq": local,
        "rope_theta": config.get("rope_theta", 1e6),
    }


BIASES = {"attention_bias": "self_attn.q_proj.bias"}
GEMMA_LAYER = LAYER | POST_NORMS
WINDOW = {"attention.sliding_window": "sliding_window"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True, biases={**BIASES, "mlp_bias": "mlp.up_proj.bias"}),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", biases=BIASES),
    "gemma2": Architecture("gemma2", GEMMA_LAYER, {**WINDOW, **CAPS}, _gemma2, gain_offset=1.0, biases=BIASES),
    "gemma3": Architecture(
        "gemma3_text",
        GEMMA_LAYER,
        {**WINDOW, "final_logit_softcapping": "final_logit_softcapping"},
        _gemma3,
        gain_offset=1.0,
        biases=BIASES,
    ),
}


def architecture_of(fields: Mapping[str, Any]) -> Architecture:
    """The table's entry for a file.

    Raises:
        InputError: an architecture that the table does not have.
    """
    kind = fields.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise InputError(f"architecture is {kind!r}; of GGUF files {', '.join(ARCHITECTURES)} are read")
    return ARCHITECTURES[kind]


def _plain(value: Any) -> Any:
    """Numbers of the file are float32: 1e-5 must not become 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _scaling(left: Config, divisors: np.ndarray | None, head_dim: int, theta: float) -> Config | None:
    """`rope_scaling` from the file's fields and its tensor of frequency divisors."""
    kind, factor = left.pop("rope.scaling.type", "none"), left.pop("rope.scaling.factor", None)
    left.pop("rope.scaling.original_context_length", None)
    left.pop("rope.scaling.finetuned", None)
    if kind not in ("none", "linear"):
        return {"rope_type": kind}  # refused by the family table, with what is allowed
    if divisors is None:
        return {"rope_type": "linear", "factor": factor} if kind == "linear" else None
    largest = float(divisors.max())
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = LLAMA3["original_max_position_embeddings"] / wavelength
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    if divisors.shape != wavelength.shape or not np.allclose(
        divisors, 1 / ((1 - smooth) / largest + smooth), rtol=1e-4
    ):
        raise InputError("rope_freqs.weight is not the frequency scaling of Llama 3, the only one that is read")
    return {"rope_type": "llama3", "factor": largest, **LLAMA3}


def config_of(fields: Mapping[str, Any], headers: Mapping[str, Header], divisors: np.ndarray | None) -> Config:
    """Raw `config.json` fields of a file; fields that we do not know keep their names, and are refused later.

    Args:
        fields: metadata of the file.
        headers: its tensors, under the names of a folder.
        divisors: its tensor of frequency divisors, if it has one.

    Raises:
        InputError: an architecture that is not read, or a setting that cannot be expressed.
    """
    kind, about = fields.get("general.architecture"), architecture_of(fields)
    left = {k.removeprefix(f"{kind}."): _plain(v) for k, v in fields.items() if k.startswith(f"{kind}.")}
    names = {**FIELDS, **about.fields}
    config: Config = {new: left.pop(old) for old, new in names.items() if old in left}
    embed = headers.get("model.embed_tokens.weight")
    config.setdefault("vocab_size", embed.shape[0] if embed else None)
    head_dim, theta = config.setdefault("head_dim", _ratio(config)), config.get("rope_theta", 10000.0)
    for name in ("attention.value_length", "rope.dimension_count"):
        if left.pop(name, head_dim) != head_dim:
            raise InputError(f"{kind}.{name}={fields[f'{kind}.{name}']}; it must be the head width {head_dim}")
    if not isinstance(theta, float) or not math.isfinite(theta) or not isinstance(head_dim, int):
        raise InputError(f"{kind}.rope.freq_base is {theta!r} and the head width {head_dim!r}; they must be numbers")
    config |= about.complete(config, left)
    return {
        "model_type": about.model_type,
        **config,
        "rope_scaling": _scaling(left, divisors, head_dim, theta),
        "tie_word_embeddings": "lm_head.weight" not in headers,
        **{name: f"model.layers.0.{tensor}" in headers for name, tensor in about.biases.items()},
        **{f"{kind}.{name}": value for name, value in left.items()},
    }

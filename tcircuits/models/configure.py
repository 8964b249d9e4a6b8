"""What the fields of a published `config.json` mean, family by family: functions from fields to `ModelConfig` switches.

Where a field is absent, it has the value that the family's reference implementation gives it; `null` is that too,
unless the reference tells the two apart (windows and soft caps, which `null` switches off).
"""

from collections.abc import Callable, Mapping
from typing import Any

from tcircuits.models.fields import Fields
from tcircuits.models.rope_fields import KINDS, Rope, read_rope, read_rope_by_kind
from tcircuits.numerics import Activation

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


def _d_head(f: Fields, d_model: int, n_heads: int) -> int:
    if d_model % n_heads:
        f.problems.append(f"the model's width {d_model} is not a multiple of its {n_heads} heads")
    return max(1, d_model // n_heads)


def _rotary(rope: Rope, d_head: int) -> dict[str, Any]:
    about = {"rotary_dim": int(d_head * rope.fraction), "rope_theta": rope.theta, "rope_scaling": rope.scaling}
    return about if rope.theta_local is None else {**about, "rope_theta_local": rope.theta_local}


def gpt2(f: Fields) -> dict[str, Any]:
    """GPT-2."""
    d_model, n_heads = f.size("n_embd"), f.size("n_head")
    f.flag("scale_attn_by_inverse_layer_idx", False)  # folded into the queries by the layout
    return {
        "n_layers": f.size("n_layer"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_head": _d_head(f, d_model, n_heads),
        "d_mlp": f.size("n_inner", 4 * d_model),
        "d_vocab": f.size("vocab_size"),
        "n_ctx": f.size("n_positions"),
        "norm": "layer",
        "norm_eps": f.number("layer_norm_epsilon", 1e-5),
        "activation": f.choice("activation_function", ACTIVATIONS, "gelu_new"),
        "gated": False,
        "position": "learned",
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "tied": f.flag("tie_word_embeddings", True),
        "attn_scale": None if f.flag("scale_attn_weights", True) else 1.0,
    }


def gpt_neox(f: Fields) -> dict[str, Any]:
    """GPT-NeoX and Pythia."""
    d_model, n_heads = f.size("hidden_size"), f.size("num_attention_heads")
    d_head = _d_head(f, d_model, n_heads)
    rope = read_rope(f, ("rotary_emb_base",), ("rotary_pct",), fraction=0.25, partial=True)
    bias = f.flag("attention_bias", True)
    return {
        "n_layers": f.size("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_head": d_head,
        "d_mlp": f.size("intermediate_size"),
        "d_vocab": f.size("vocab_size"),
        "n_ctx": f.size("max_position_embeddings"),
        "norm": "layer",
        "norm_eps": f.number("layer_norm_eps", 1e-5),
        "activation": f.choice("hidden_act", ACTIVATIONS, "gelu"),
        "gated": False,
        "parallel": f.flag("use_parallel_residual", True),
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": True,
        "tied": f.flag("tie_word_embeddings", False),
        **_rotary(rope, d_head),
    }


def plain(f: Fields) -> dict[str, Any]:
    """Small models of known functions: no norms, learned positions, biases in the MLP and the unembedding alone."""
    d_model, n_heads = f.size("hidden_size"), f.size("num_attention_heads")
    return {
        "n_layers": f.size("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_head": _d_head(f, d_model, n_heads),
        "d_mlp": f.size("intermediate_size"),
        "d_vocab": f.size("vocab_size"),
        "n_ctx": f.size("max_position_embeddings"),
        "norm": "none",
        "activation": f.choice("hidden_act", ACTIVATIONS, "relu"),
        "gated": False,
        "position": "learned",
        "mlp_bias": True,
        "unembed_bias": True,
        "final_norm": False,
        "pre_norm": False,
    }


def _relative(f: Fields, **absent: Any) -> dict[str, Any]:
    """What Llama and its relatives have in common.

    Args:
        f: the configuration.
        absent: values of sizes that the file may leave out; without one, a size must be there (`head_dim` is then the
            width over the heads, `num_key_value_heads` as many as heads).
    """
    d_model = f.size("hidden_size", absent.get("hidden_size"))
    n_heads = f.size("num_attention_heads", absent.get("num_attention_heads"))
    given = f.has("head_dim") or "head_dim" in absent
    # Null means as many as there are heads; only an absent field has the family's number.
    groups = n_heads if "num_key_value_heads" in f.raw else absent.get("num_key_value_heads", n_heads)
    d_head = f.size("head_dim", absent.get("head_dim")) if given else _d_head(f, d_model, n_heads)
    f.get("head_dim")
    return {
        "n_layers": f.size("num_hidden_layers", absent.get("num_hidden_layers")),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": f.size("num_key_value_heads", groups),
        "d_head": d_head,
        "d_mlp": f.size("intermediate_size", absent.get("intermediate_size")),
        "d_vocab": f.size("vocab_size", absent.get("vocab_size")),
        "n_ctx": f.size("max_position_embeddings", absent["max_position_embeddings"]),
        "norm": "rms",
        "tied": f.flag("tie_word_embeddings", absent.get("tie_word_embeddings", False)),
    }


def _usual(f: Fields, **absent: Any) -> dict[str, Any]:
    """`_relative` with the epsilon and the activation function that most of them have."""
    return {
        **_relative(f, **absent),
        "norm_eps": f.number("rms_norm_eps", 1e-6),
        "activation": f.choice("hidden_act", ACTIVATIONS, "silu"),
    }


def _windows(f: Fields, n_layers: int, window: int | None, sliding: Callable[[int], bool]) -> tuple[int, ...]:
    """The window of each layer: those that `layer_types` names, or without it those that `sliding` picks."""
    kinds = f.get("layer_types")
    if kinds is None:
        kinds = [KINDS[sliding(i)] for i in range(n_layers)]
    elif not isinstance(kinds, list) or len(kinds) != n_layers or not all(k in KINDS for k in kinds):
        f.wrong("layer_types", f"a list of {n_layers} entries, each {' or '.join(KINDS)}")
        return ()
    local = [kind == KINDS[1] for kind in kinds]
    if any(local) and window is None:
        f.problems.append(f"{f.where}sliding_window must be a whole number: {sum(local)} layers have a window")
    return tuple((window or 1) if is_local else 0 for is_local in local) if any(local) else ()


def llama(f: Fields) -> dict[str, Any]:
    """Llama, and what differs from it only in switches (SmolLM2)."""
    common, bias = _usual(f, max_position_embeddings=2048), f.flag("attention_bias", False)
    return {
        **common,
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": f.flag("mlp_bias", False),
        **_rotary(read_rope(f), common["d_head"]),
    }


def mistral(f: Fields) -> dict[str, Any]:
    """Mistral: one window for all layers, or none (null)."""
    common = _usual(f, num_key_value_heads=8, max_position_embeddings=131072)
    window = f.window("sliding_window", 4096)
    windows = () if window is None else (window,) * common["n_layers"]
    return {**common, "windows": windows, **_rotary(read_rope(f), common["d_head"])}


def _qwen_windows(f: Fields, n_layers: int) -> tuple[int, ...]:
    """Layers from `max_window_layers` on have a window, where `use_sliding_window` says so."""
    window, first = f.window("sliding_window", 4096), f.count("max_window_layers", 28)
    window = window if f.flag("use_sliding_window", False) else None
    return _windows(f, n_layers, window, lambda i: window is not None and i >= first)


def qwen2(f: Fields) -> dict[str, Any]:
    """Qwen 2 and 2.5: queries, keys and values have biases."""
    common = _usual(f, num_key_value_heads=32, max_position_embeddings=32768)
    windows = _qwen_windows(f, common["n_layers"])
    return {**common, "qkv_bias": True, "windows": windows, **_rotary(read_rope(f), common["d_head"])}


def qwen3(f: Fields) -> dict[str, Any]:
    """Qwen 3: norms on queries and keys."""
    common = _usual(f, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768)
    bias = f.flag("attention_bias", False)
    return {
        **common,
        "qk_norm": True,
        "qkv_bias": bias,
        "o_bias": bias,
        "windows": _qwen_windows(f, common["n_layers"]),
        **_rotary(read_rope(f), common["d_head"]),
    }


def olmo(f: Fields) -> dict[str, Any]:
    """OLMo: layer norms without weights."""
    common, bias = _relative(f, max_position_embeddings=2048), f.flag("attention_bias", False)
    return {
        **common,
        "norm": "layer",
        "norm_eps": 1e-5,  # not in the file
        "activation": f.choice("hidden_act", ACTIVATIONS, "silu"),
        "qkv_bias": bias,
        "o_bias": bias,
        **_rotary(read_rope(f), common["d_head"]),
    }


def olmo2(f: Fields) -> dict[str, Any]:
    """OLMo 2: norms on what is written, none on what is read; one norm over all queries, and one over all keys."""
    common, bias = _usual(f, max_position_embeddings=2048), f.flag("attention_bias", False)
    return {
        **common,
        "norm_eps": f.number("rms_norm_eps", 1e-5),
        "pre_norm": False,
        "post_norm": True,
        "qk_norm": True,
        "qk_norm_whole": True,
        "qkv_bias": bias,
        "o_bias": bias,
        **_rotary(read_rope(f), common["d_head"]),
    }


def smollm3(f: Fields) -> dict[str, Any]:
    """SmolLM 3: every fourth layer keeps no positions."""
    common = _usual(f, num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=True)
    n, bias = common["n_layers"], f.flag("attention_bias", False)
    every, rotates = f.size("no_rope_layer_interval", 4), f.get("no_rope_layers")
    if rotates is None:
        rotates = [int((i + 1) % every > 0) for i in range(n)]
    elif not isinstance(rotates, list) or len(rotates) < n or any(r not in (0, 1) for r in rotates):
        f.wrong("no_rope_layers", f"a list of {n} entries: 1 for layers with rotary positions, 0 for those without")
        rotates = [1] * n
    window = f.window("sliding_window", None)
    window = window if f.flag("use_sliding_window", False) else None
    return {
        **common,
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": f.flag("mlp_bias", False),
        "unrotated": tuple(i for i in range(n) if not rotates[i]),
        "windows": _windows(f, n, window, lambda i: window is not None and not rotates[i]),
        **_rotary(read_rope(f, theta=2e6), common["d_head"]),
    }


def _gemma(f: Fields, **absent: Any) -> dict[str, Any]:
    """What Gemma 2 and 3 share: four norms a layer, scaled embeddings, scores scaled by a number of their own."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_size": 2304}
    sizes |= {"intermediate_size": 9216, "num_hidden_layers": 26, "tie_word_embeddings": True}
    common, bias = _relative(f, **sizes, **absent), f.flag("attention_bias", False)
    return {
        **common,
        "norm_eps": f.number("rms_norm_eps", 1e-6),
        "activation": f.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        "qkv_bias": bias,
        "o_bias": bias,
        "post_norm": True,
        "attn_scale": f.number("query_pre_attn_scalar", 256) ** -0.5,
        "embed_scale": common["d_model"] ** 0.5,  # rounded to the dtype of the embeddings by the forward pass
    }


def gemma2(f: Fields) -> dict[str, Any]:
    """Gemma 2: soft caps, every other layer with a window, the first one included."""
    common = _gemma(f, vocab_size=256000, max_position_embeddings=8192)
    window = f.window("sliding_window", 4096)
    f.only("sliding_window_size", (window,))  # some files say it twice
    return {
        **common,
        "attn_softcap": f.cap("attn_logit_softcapping", 50.0),
        "final_softcap": f.cap("final_logit_softcapping", 30.0),
        "windows": _windows(f, common["n_layers"], window, lambda i: i % 2 == 0),
        **_rotary(read_rope(f), common["d_head"]),
    }


def gemma3(f: Fields) -> dict[str, Any]:
    """Gemma 3, text: norms on queries and keys, every sixth layer without a window, two rotary bases."""
    f.only("model_type", ("gemma3_text",))
    common = _gemma(f, vocab_size=262208, max_position_embeddings=131072)
    names = [n for n in ("sliding_window_pattern", "_sliding_window_pattern") if f.has(n)]
    every = [f.size(name) for name in names] or [6]
    if len(set(every)) > 1:
        f.problems.append(f"{' and '.join(names)} differ: {every}")
    rope = read_rope_by_kind(f, theta=1e6, theta_local=1e4)
    windows = _windows(f, common["n_layers"], f.window("sliding_window", 4096), lambda i: (i + 1) % every[0] > 0)
    return {
        **common,
        "qk_norm": True,
        "final_softcap": f.cap("final_logit_softcapping", None),
        "windows": windows,
        **_rotary(rope, common["d_head"]),
    }

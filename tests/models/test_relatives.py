"""Llama's relatives: configurations in the spelling of published files, each switch, and what is refused."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.models.config import ModelConfig, RopeScaling
from tcircuits.models.families import config_from_hf
from tcircuits.models.loading import load_model
from tcircuits.types import InputError
from tests import bridge
from tests.models.folders import folder_of, read, write

MISTRAL = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "transformers_version": "4.40.1", "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
    "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32",
    "transformers_version": "4.42.4", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3", "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"},
}  # fmt: skip
GEMMA = {"activation": "gelu_tanh", "post_norm": True, "tied": True, "norm_eps": 1e-6, "attn_scale": 256**-0.5}


def pattern(n: int, every: int, window: int) -> tuple[int, ...]:
    return tuple(0 if (i + 1) % every == 0 else window for i in range(n))


PUBLISHED = {
    "mistral": (MISTRAL, ModelConfig("mistral", 32, 4096, 32, 8, 128, 14336, 32000, 32768, rotary_dim=128,
                                     windows=(4096,) * 32)),
    "mistral without a window": (MISTRAL | {"sliding_window": None}, ModelConfig(
        "mistral", 32, 4096, 32, 8, 128, 14336, 32000, 32768, rotary_dim=128)),
    "qwen2.5": (QWEN25, ModelConfig("qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, rotary_dim=64, rope_theta=1e6,
                                    norm_eps=1e-6, qkv_bias=True, tied=True)),
    "qwen3": (QWEN3, ModelConfig("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, rotary_dim=128, rope_theta=1e6,
                                 norm_eps=1e-6, qk_norm=True, tied=True)),
    "gemma2": (GEMMA2, ModelConfig("gemma2", 26, 2304, 8, 4, 256, 9216, 256000, 8192, rotary_dim=256, **GEMMA,
                                   embed_scale=48.0, attn_softcap=50.0, final_softcap=30.0, windows=(4096, 0) * 13)),
    "gemma3 1b": (GEMMA3_1B, ModelConfig(
        "gemma3_text", 26, 1152, 4, 1, 256, 6912, 262144, 32768, rotary_dim=256, **GEMMA, embed_scale=1152**0.5,
        qk_norm=True, rope_theta=1e6, rope_theta_local=1e4, windows=pattern(26, 6, 512))),
    "gemma3 4b": (GEMMA3_4B, ModelConfig(
        "gemma3", 34, 2560, 8, 4, 256, 10240, 262208, 131072, rotary_dim=256, **GEMMA, embed_scale=2560**0.5,
        qk_norm=True, rope_theta=1e6, rope_theta_local=1e4, rope_scaling=RopeScaling("linear", 8.0),
        windows=pattern(34, 6, 1024))),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_as_published(name):
    raw, expected = PUBLISHED[name]
    assert config_from_hf(raw) == expected


def test_what_a_file_leaves_out_has_the_reference_s_value():
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 32, "intermediate_size": 8}
    small = {"model_type": "mistral", "vocab_size": 9, **sizes}
    got = config_from_hf(small)
    assert (got.n_kv_heads, got.windows, got.n_ctx, got.norm_eps) == (8, (4096,) * 4, 131072, 1e-6)
    assert config_from_hf(small | {"num_key_value_heads": None}).n_kv_heads == 32
    assert config_from_hf(small | {"model_type": "qwen3"}).d_head == 128
    assert config_from_hf(small | {"model_type": "qwen2", "use_sliding_window": True}).windows == ()
    assert config_from_hf(small | {"model_type": "smollm3"}).unrotated == (3,)
    gemma = config_from_hf({"model_type": "gemma2"})
    assert (gemma.n_layers, gemma.attn_softcap, gemma.final_softcap) == (26, 50.0, 30.0)
    assert config_from_hf({"model_type": "gemma2", "attn_logit_softcapping": None}).attn_softcap is None
    assert config_from_hf({"model_type": "gemma3_text"}).windows == pattern(26, 6, 4096)


def test_qwen_windows():
    window = QWEN25 | {"use_sliding_window": True, "sliding_window": 9, "num_hidden_layers": 4, "max_window_layers": 1}
    assert config_from_hf(window).windows == (0, 9, 9, 9)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert config_from_hf(window | {"layer_types": kinds}).windows == (9, 0, 9, 0)
    assert config_from_hf(window | {"layer_types": ["full_attention"] * 4}).windows == ()


def test_both_spellings_of_gemma3_s_rotary_settings():
    old = {n: v for n, v in GEMMA3_1B.items() if n not in ("rope_theta", "rope_local_base_freq", "rope_scaling")}
    local = {"rope_type": "default", "rope_theta": 1e4}
    new = old | {"rope_parameters": {"full_attention": local | {"rope_theta": 1e6}, "sliding_attention": local}}
    new |= {"layer_types": ["sliding_attention" if i % 6 < 5 else "full_attention" for i in range(26)]}
    new |= {"_sliding_window_pattern": 6, "use_bidirectional_attention": False}
    assert config_from_hf(new) == config_from_hf(GEMMA3_1B)
    new["rope_parameters"]["full_attention"] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    assert config_from_hf(new) == config_from_hf(GEMMA3_1B | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})


def old_spelling(config: dict) -> dict:
    """The text configuration of a Gemma 3 file as the first release with that family wrote it."""
    both = config["rope_parameters"]
    kept = {n: v for n, v in config.items() if n not in ("rope_parameters", "layer_types")}
    scaling = {n: v for n, v in both["full_attention"].items() if n != "rope_theta"}
    return kept | {
        "rope_theta": both["full_attention"]["rope_theta"],
        "rope_local_base_freq": both["sliding_attention"]["rope_theta"],
        "rope_scaling": scaling,
        "sliding_window_pattern": 6,
    }


def test_the_old_spelling_gives_the_reference_s_logits(tmp_path):
    config, weights, golden = read("gemma3_text-pattern")
    assert config["layer_types"].count("full_attention") == 1
    model = load_model(write(tmp_path / "x", old_spelling(config), weights))
    got = bridge.logits(model.cfg, model.params, golden["tokens"][None])[0]
    np.testing.assert_allclose(got, golden["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "language_model."])
def test_a_model_that_reads_images_is_read_for_its_text(prefix, tmp_path):
    """Under the names of every release; a tensor that belongs to neither part is refused."""
    config, weights, _ = read("gemma3-wrapped")
    old, beside = "language_model.model.", "model." if prefix.startswith("model.") else ""
    assert len({n for n in weights if n.startswith(old)}) < len(weights)
    renamed = {prefix + n.removeprefix(old) if n.startswith(old) else beside + n: w for n, w in weights.items()}
    if prefix == old:  # older releases wrote the tied unembedding too
        renamed["language_model.lm_head.weight"] = weights[old + "embed_tokens.weight"]
    expected = load_model(write(tmp_path / "a", config, weights))
    got = load_model(write(tmp_path / "b", config, renamed))
    assert got.cfg == expected.cfg
    np.testing.assert_array_equal(got.params.blocks.attn.w_q, expected.params.blocks.attn.w_q)
    with pytest.raises(InputError, match=r"1 tensors that this model does not have: audio_tower\.x"):
        load_model(write(tmp_path / "c", config, renamed | {"audio_tower.x": np.ones(2, np.float32)}))


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (MISTRAL, {"layer_types": ["full_attention"] * 32}, "unknown fields: layer_types"),
        (MISTRAL, {"sliding_window": 0}, "sliding_window is 0; it must be a whole number of at least 1"),
        (QWEN25, {"use_mrope": True}, "use_mrope is True; it must be False"),
        (QWEN25, {"layer_types": ["full_attention"]}, "layer_types is .*a list of 24 entries"),
        (QWEN25, {"layer_types": ["chunked_attention"] * 24}, "each full_attention or sliding_attention"),
        (QWEN25, {"layer_types": ["sliding_attention"] * 24}, "sliding_window must be a whole number: 24 layers"),
        (QWEN25, {"max_window_layers": -1}, "max_window_layers is -1; it must be a whole number of at least 0"),
        (QWEN3, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type is 'yarn'"),
        (QWEN3, {"num_experts": 8}, "unknown fields: num_experts"),
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (GEMMA2, {"sliding_window": None}, "sliding_window must be a whole number: 13 layers have a window"),
        (GEMMA2, {"sliding_window_size": 8}, "sliding_window_size is 8; it must be 4096"),
        (GEMMA2, {"final_logit_softcapping": 0}, "final_logit_softcapping is 0; it must be a number above zero"),
        (GEMMA2, {"query_pre_attn_scalar": "d"}, "query_pre_attn_scalar is 'd'"),
        (GEMMA3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; it must be null"),
        (
            GEMMA3_1B,
            {"_sliding_window_pattern": 3},
            r"sliding_window_pattern and _sliding_window_pattern differ: \[6, 3",
        ),
        (GEMMA3_1B, {"rope_parameters": {"rope_theta": 1.0}}, "unknown fields: rope_parameters.rope_theta"),
        (
            GEMMA3_1B,
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "layers with a window cannot",
        ),
        (
            GEMMA3_1B,
            {"rope_parameters": {"sliding_attention": {"rope_theta": 5.0}}},
            "rope_local_base_freq=10000.0, rope_parameters.sliding_attention.rope_theta=5.0",
        ),
        (GEMMA3_4B, {"text_config": None}, "text_config is None; it must be an object"),
        (GEMMA3_4B, {"text_config": {"strange": 1}}, "unknown fields: text_config.strange"),
        (GEMMA3_4B, {"text_config": {"model_type": "llama"}}, "text_config.model_type is 'llama'"),
        (GEMMA3_4B, {"audio_config": {}}, "unknown fields: audio_config"),
        (GEMMA3_4B, {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, "it must be True"),
        ({**MISTRAL, "model_type": "olmo"}, {"clip_qkv": 8.0}, "clip_qkv is 8.0; it must be null"),
        ({**MISTRAL, "model_type": "smollm3"}, {"no_rope_layers": [1]}, "no_rope_layers is .* a list of 32 entries"),
        (MISTRAL, {"model_type": "mixtral"}, "model_type is 'mixtral'.*did you mean 'mistral'"),
        (QWEN3, {"model_type": "qwen3_moe"}, "did you mean 'qwen3'"),
    ],
)
def test_what_is_refused(raw, changes, message):
    with pytest.raises(InputError, match=message):
        config_from_hf(raw | changes)


def test_a_nested_unknown_field_can_be_allowed():
    raw = GEMMA3_4B | {"text_config": GEMMA3_4B["text_config"] | {"strange": 1}}
    assert config_from_hf(raw, allow_unknown=["text_config.strange"]) == config_from_hf(GEMMA3_4B)


def test_norms_without_weights_are_the_identity_s(tmp_path):
    config, weights, _ = read("olmo-plain")
    assert not any("norm" in name for name in weights)
    params = load_model(write(tmp_path / "x", config, weights)).params
    for norm in (params.blocks.norm1, params.blocks.norm2, params.final_norm):
        assert (float(np.min(norm.w)), float(np.max(norm.w)), float(np.abs(norm.b).max())) == (1, 1, 0)


@pytest.mark.parametrize("case", ["mistral-window", "qwen2-types", "qwen3-plain", "gemma2-plain", "gemma3_text-cap",
                                  "gemma3-wrapped", "smollm3-biases", "olmo-biases", "olmo2-plain"])  # fmt: skip
def test_tensors_that_do_not_fit_are_named(case, tmp_path):
    """One missing, one misshapen, one of another family, of any family: all in one message."""
    config, weights, _ = read(case)
    prefix = next(n for n in weights if n.endswith("embed_tokens.weight")).removesuffix("embed_tokens.weight")
    gone, bent = f"{prefix}layers.1.self_attn.k_proj.weight", f"{prefix}layers.0.self_attn.q_proj.weight"
    damaged = {n: w for n, w in weights.items() if n != gone} | {bent: weights[bent][:-1].copy()}
    with pytest.raises(InputError) as error:
        load_model(write(tmp_path / "x", config, damaged | {f"{prefix}layers.0.mlp.experts.0.w1": np.ones(2)}))
    rows, width = weights[bent].shape
    for part in (
        "1 missing tensors: layers.1.self_attn.k_proj.weight",
        f"layers.0.self_attn.q_proj.weight is ({rows - 1}, {width}), not ({rows}, {width})",
        "1 tensors that this model does not have: layers.0.mlp.experts.0.w1",
    ):
        assert part in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["smollm3-biases", "olmo-biases", "olmo2-biases", "gemma3_text-cap"])
def test_attribution_rows_balance(case, tmp_path, quick_compile, x64):
    """Edges, leaves and constants of every row sum to the node's value, where norms are missing or without weights."""
    model = load_model(folder_of(case, tmp_path), dtype=jnp.float64)
    neurons = tc.load_transcoders("neurons", model=model, dtype=jnp.float64)
    graph = tc.attribute(model, neurons, read(case)[2]["tokens"][:6], max_features=20, max_n_logits=3)
    edges = [graph.weight[a:b].sum() for a, b in pairwise(graph.row_start)]
    total = np.array(edges) + graph.row_bias + graph.row_unexpanded.sum((1, 2)) + graph.row_tail
    assert np.abs(graph.row_value).max() > 0.1
    np.testing.assert_allclose(total, graph.row_value, rtol=0, atol=1e-12 * np.abs(graph.row_value).max())

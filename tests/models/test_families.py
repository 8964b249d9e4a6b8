"""Configurations as published, in every spelling; and what is refused."""

import dataclasses
import itertools
import json
import re

import jax
import pytest

from tcircuits.models.config import ModelConfig, RopeScaling
from tcircuits.models.families import FAMILIES, config_from_hf
from tcircuits.models.params import spec
from tcircuits.types import InputError
from tests.models.folders import CASES, read

# config.json of published models, as they lie on the hub.
GPT2 = """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id":
50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
"resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels":
true, "summary_type": "cls_index", "summary_use_proj": true, "task_specific_params": {"text-generation":
{"do_sample": true, "max_length": 50}}, "vocab_size": 50257}"""
PYTHIA = """{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
"hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
"max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
"rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
"transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304}"""
LLAMA32 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id":
128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
"initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
"low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta":
500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
"use_cache": true, "vocab_size": 128256}"""
SMOLLM2 = """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id":
1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
"intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
"model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
"pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling":
null, "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version":
"4.42.3", "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}, "use_cache": true,
"vocab_size": 49152}"""
LLAMA = json.loads(LLAMA32)


def llama(**changes):
    return {k: v for k, v in (LLAMA | changes).items() if v != "absent"}


def test_gpt2_as_published():
    biases = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
    assert config_from_hf(json.loads(GPT2)) == ModelConfig(
        "gpt2", 12, 768, 12, 12, 64, 3072, 50257, 1024, norm="layer", norm_eps=1e-5, activation="gelu_tanh",
        gated=False, position="learned", tied=True, **biases,
    )  # fmt: skip


def test_fields_of_old_releases_that_change_nothing():
    old = {"n_special": 0, "predict_special_tokens": True, "output_past": True, "_num_labels": 1, "max_length": 50}
    assert config_from_hf(json.loads(GPT2) | old) == config_from_hf(json.loads(GPT2))


def test_pythia_as_published():
    biases = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
    assert config_from_hf(json.loads(PYTHIA)) == ModelConfig(
        "gpt_neox", 6, 512, 8, 8, 64, 2048, 50304, 2048, norm="layer", activation="gelu", gated=False, parallel=True,
        rotary_dim=16, **biases,
    )  # fmt: skip


def test_llama_32_as_published():
    assert config_from_hf(LLAMA) == ModelConfig(
        "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, rotary_dim=64, rope_theta=5e5, tied=True,
        rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
    )  # fmt: skip


def test_smollm2_as_published():
    assert config_from_hf(json.loads(SMOLLM2)) == ModelConfig(
        "llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, rotary_dim=64, rope_theta=1e5, tied=True
    )


def test_the_new_spelling_of_rotary_settings_says_the_same():
    new = {"rope_theta": 5e5, **LLAMA["rope_scaling"]}
    assert config_from_hf(llama(rope_theta="absent", rope_scaling="absent", rope_parameters=new)) == config_from_hf(
        LLAMA
    )
    old = json.loads(PYTHIA)
    newer = {k: v for k, v in old.items() if not k.startswith("rotary")}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25}
    assert config_from_hf(newer) == config_from_hf(old)


def test_older_spellings():
    linear = config_from_hf(llama(rope_scaling={"type": "linear", "factor": 2.0}))
    assert linear.rope_scaling == RopeScaling("linear", 2.0)
    assert config_from_hf(llama(rope_scaling=None)).rope_scaling is None
    no_head_dim = config_from_hf(llama(head_dim=None, num_key_value_heads=None))
    assert (no_head_dim.d_head, no_head_dim.n_kv_heads) == (64, 32)


def test_all_unknown_fields_are_listed():
    with pytest.raises(InputError) as error:
        config_from_hf(llama(sliding_window=4096, attn_logit_softcapping=50.0, num_experts=8))
    for name in ("attn_logit_softcapping", "num_experts", "sliding_window", "allow_unknown"):
        assert name in str(error.value)
    allowed = ("sliding_window", "attn_logit_softcapping", "num_experts")
    raw = llama(sliding_window=None, attn_logit_softcapping=50.0, num_experts=8)
    assert config_from_hf(raw, allow_unknown=allowed) == config_from_hf(LLAMA)


def test_all_problems_come_at_once():
    raw = llama(
        hidden_size="absent", hidden_act="quick_gelu", num_hidden_layers=0, tie_word_embeddings="yes", strange=1
    )
    with pytest.raises(InputError) as error:
        config_from_hf(raw)
    for part in ("hidden_size is absent", "hidden_act is 'quick_gelu'", "num_hidden_layers is 0", "'yes'", "strange"):
        assert part in str(error.value)


def test_names_of_thousands_of_letters_are_told_in_part():
    for changes in ({"x" * 9000: 1}, {f"field_{i}": i for i in range(3000)}, {"model_type": "y" * 9000}):
        with pytest.raises(InputError) as found:
            config_from_hf(LLAMA | changes)
        assert len(str(found.value)) < 2500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "model_type is 'lama'; supported are .*did you mean 'llama'"),
        ({"model_type": "absent"}, "model_type is None"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope_scaling.rope_type is 'yarn'.*default, linear, llama3",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope_scaling.low_freq_factor is absent"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "unknown fields: rope_scaling.beta"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta=500000.0, rope_parameters.rope_theta=10000.0"),
        ({"rope_parameters": {"rope_type": "default"}}, "say different things"),
        ({"rope_scaling": None, "partial_rotary_factor": 0.5}, "rotating share of 0.5"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2; it must be 1"),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"pruned_heads": {"1": [0]}}, "pruned_heads"),
        ({"num_key_value_heads": 5}, "n_heads=32 is not a multiple of n_kv_heads=5"),
        ({"head_dim": "absent", "num_attention_heads": 7, "num_key_value_heads": 7}, "not a multiple of its 7 heads"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"vocab_size": True}, "vocab_size is True"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        config_from_hf(llama(**changes))


def layout_problems(family, cfg, raw):
    """Arrays of the spec that the layout fills other than exactly once a layer."""
    filled = {}
    for tensor in FAMILIES[family].tensors(cfg, raw):
        for path in tensor.parts:
            filled[path] = filled.get(path, 0) + 1
    wanted = {jax.tree_util.keystr(k, simple=True, separator=".") for k, _ in jax.tree.leaves_with_path(spec(cfg))}
    return {path: filled.get(path, 0) for path in wanted if filled.get(path, 0) != 1}


@pytest.mark.parametrize("case", CASES)
def test_layouts_fill_every_array_once(case):
    raw = read(case)[0]
    missing = layout_problems(raw["model_type"], config_from_hf(raw), raw)
    if raw["model_type"] == "olmo":  # its norms have no weights
        assert missing.keys() == {
            f"{n}.{kind}" for n in ("blocks.norm1", "blocks.norm2", "final_norm") for kind in "wb"
        }
    else:
        assert missing == {}


@pytest.mark.parametrize(("qk_norm", "post_norm", "tied"), list(itertools.product((False, True), repeat=3)))
def test_the_llama_layout_fills_every_switch_of_its_relatives(qk_norm, post_norm, tied):
    cfg = dataclasses.replace(config_from_hf(LLAMA), qk_norm=qk_norm, post_norm=post_norm, tied=tied, qkv_bias=True)
    assert layout_problems("llama", cfg, LLAMA) == {}

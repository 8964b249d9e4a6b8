"""GGUF files of Qwen 2 and 3 and Gemma 2 and 3: the reference's logits, and what is taken for what they leave out."""

import numpy as np
import pytest

from tcircuits.models.families import config_from_hf
from tcircuits.models.gguf_architectures import config_of
from tcircuits.models.loading import load_model
from tcircuits.types import InputError
from tests import bridge
from tests.models.folders import folder_of, read, write
from tests.models.test_gguf import worst

pytestmark = pytest.mark.usefixtures("quick_compile")

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
CASES = {
    "qwen2-whole": "qwen2", "qwen3-plain": "qwen3", "qwen3-bias-window": "qwen3", "gemma2-caps": "gemma2",
    "gemma3_text-pattern": "gemma3",
}  # fmt: skip


def stored(name: str, w: np.ndarray, arch: str) -> tuple[str, np.ndarray]:
    """A tensor as the format's converter writes it: Gemma's gains with one added, no rows moved."""
    name = name.removeprefix("model.")
    w = w + np.float32(1) if arch.startswith("gemma") and name.endswith("norm.weight") else w
    if not name.startswith("layers."):
        stem, _, kind = name.rpartition(".")
        return f"{OUTSIDE[stem]}.{kind}", w
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{(GEMMA_NAMES if arch.startswith('gemma') else NAMES)[part]}.{kind}", w


def metadata(writer, arch: str, config: dict) -> None:
    """The fields that the converter writes for every one of these architectures."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if arch != "qwen2":
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    rope = config["rope_parameters"]
    whole = rope.get("full_attention", rope)
    writer.add_rope_freq_base(whole["rope_theta"])
    if whole["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(whole["factor"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch.startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "gemma3":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])


def write_gguf(path, case: str, *, quantise=None, more=lambda writer: None):
    config, weights, _ = read(case)
    arch = CASES[case]
    writer = gguf.GGUFWriter(str(path), arch)
    metadata(writer, arch, config)
    more(writer)
    for name, w in weights.items():
        new, w = stored(name, w, arch)
        if quantise is not None and w.ndim > 1 and w.shape[-1] % 32 == 0:
            writer.add_tensor(new, gguf.quantize(w, quantise), raw_dtype=quantise)
        else:
            writer.add_tensor(new, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("case", [c for c in CASES if c != "qwen3-bias-window"])
def test_a_converted_file_gives_the_reference_s_logits(case, tmp_path):
    golden = read(case)[2]
    model = load_model(write_gguf(tmp_path / "x.gguf", case))
    got = bridge.logits(model.cfg, model.params, golden["tokens"][None])[0]
    np.testing.assert_allclose(got, golden["logits"], rtol=0, atol=2e-5)
    folder = load_model(folder_of(case, tmp_path))
    assert model.cfg == folder.cfg
    assert worst(model.params, folder.params) <= 2**-24 * 4  # gains are stored as 1 + w, rounded to float32


def test_biases_are_seen_and_windows_the_format_does_not_keep_are_not_invented(tmp_path):
    """For Qwen the format has no windows, as its reference uses none; `worst` compares every bias too."""
    model, folder = (
        load_model(write_gguf(tmp_path / "x.gguf", "qwen3-bias-window")),
        folder_of("qwen3-bias-window", tmp_path),
    )
    expected = load_model(folder)
    assert (model.cfg.windows, expected.cfg.windows) == ((), (0, 0, 5))
    assert (model.cfg.qkv_bias, model.cfg.o_bias, model.cfg.rope_scaling) == (True, True, expected.cfg.rope_scaling)
    assert worst(model.params, expected.params) == 0


@pytest.mark.parametrize("case", ["qwen3-plain", "gemma2-caps", "gemma3_text-pattern"])
def test_quantised_tensors_equal_the_same_weights_dequantised(case, tmp_path):
    config, weights, golden = read(case)
    kind = gguf.GGMLQuantizationType.Q8_0

    def rounded(w: np.ndarray) -> np.ndarray:
        fits = w.ndim > 1 and w.shape[-1] % 32 == 0
        return gguf.dequantize(gguf.quantize(w, kind), kind).reshape(w.shape) if fits else w

    coarse = {name: rounded(w) for name, w in weights.items()}
    assert sum(not np.array_equal(coarse[n], weights[n]) for n in weights) == config["num_hidden_layers"]
    expected, got = (
        load_model(write(tmp_path / "x", config, coarse)),
        load_model(write_gguf(tmp_path / "x.gguf", case, quantise=kind)),
    )
    assert worst(got.params, expected.params) <= 2**-24 * 4
    logits = [bridge.logits(m.cfg, m.params, golden["tokens"][None]) for m in (got, expected)]
    np.testing.assert_allclose(*logits, rtol=0, atol=2e-5)


def fields(arch: str, **more) -> dict:
    """Metadata of a file of the released size."""
    sizes = {"block_count": 26, "embedding_length": 1152, "feed_forward_length": 6912, "context_length": 32768}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": 1, "attention.key_length": 256}
    sizes |= {"attention.layer_norm_rms_epsilon": 1e-6, "vocab_size": 262144, **more}
    return {"general.architecture": arch, **{f"{arch}.{name}": v for name, v in sizes.items() if v is not None}}


def config(arch: str, **more):
    return config_from_hf(config_of(fields(arch, **more), {}, None))


def test_what_gemma3_files_leave_out():
    window = {"attention.sliding_window": 512}
    got = config("gemma3", **window)
    assert got.windows == (512, 512, 512, 512, 512, 0) * 4 + (512, 512)
    assert (got.rope_theta, got.rope_theta_local, got.rope_scaling) == (1e6, 1e4, None)
    assert (got.attn_scale, got.final_softcap, got.attn_softcap, got.tied) == (256**-0.5, None, None, True)
    assert config("gemma3").windows == ()
    assert config("gemma3", **window, **{"attention.sliding_window_pattern": 2}).windows == (512, 0) * 13
    flags = [True, True, False] * 8 + [True, True]
    assert config("gemma3", **window, **{"attention.sliding_window_pattern": flags}).windows[:3] == (512, 512, 0)
    assert config("gemma3", **window, **{"rope.freq_base_swa": 5e3}).rope_theta_local == 5e3
    largest = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    assert config("gemma3", **window, **largest).attn_scale == (5376 // 32) ** -0.5


def test_what_gemma2_files_leave_out():
    got = config("gemma2")
    assert (got.windows, got.attn_softcap, got.final_softcap) == ((4096, 0) * 13, 50.0, 30.0)
    assert (got.rope_theta, got.rope_theta_local, got.attn_scale) == (1e4, None, 256**-0.5)
    largest = {"block_count": 46, "embedding_length": 4608, "attention.head_count": 32, "attention.key_length": 128}
    assert config("gemma2", **largest).attn_scale == 144**-0.5
    assert config("gemma2", **{"final_logit_softcapping": 20.0}).final_softcap == 20.0


@pytest.mark.parametrize(
    ("arch", "more", "message"),
    [
        ("gemma2", {"attention.sliding_window_pattern": 3}, "every other layer has a window"),
        ("gemma3", {"attention.sliding_window": 9, "attention.sliding_window_pattern": "x"}, "a flag for each layer"),
        ("gemma3", {"attention.sliding_window": 9, "attention.sliding_window_pattern": [True]}, "a list of 26 entries"),
        ("gemma3", {"block_count": "x"}, "num_hidden_layers is 'x'"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "unknown fields: gemma3.attn_logit_softcapping"),
        ("qwen3", {"rope.scaling.type": "yarn"}, "rope_type is 'yarn'"),
        ("qwen3", {"rope.freq_base": "x"}, "rope.freq_base is 'x'"),
        ("qwen3", {"attention.value_length": 64}, "it must be the head width 256"),
        ("qwen2", {"attention.head_count": [4, 4], "attention.key_length": None}, "num_attention_heads is"),
        ("qwen2moe", {}, "architecture is 'qwen2moe'; of GGUF files llama, qwen2, qwen3, gemma2, gemma3 are read"),
    ],
)
def test_what_is_refused(arch, more, message):
    with pytest.raises(InputError, match=message):
        config(arch, **more)


def test_a_file_without_its_norms_is_refused(tmp_path):
    """Tensors of another architecture's kind are named, and nothing is guessed."""
    path = write_gguf(tmp_path / "x.gguf", "qwen3-plain")
    data = path.read_bytes().replace(b"attn_q_norm", b"attn_z_norm")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"3 missing tensors.*q_norm.*3 tensors that this model does not have.*attn_z"):
        load_model(path)

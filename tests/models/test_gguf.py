"""GGUF files: the same parameters as the folder they were converted from, and what is refused."""

import contextlib
import importlib.util

import jax
import numpy as np
import pytest

from tcircuits.models.loading import load_model
from tcircuits.types import InputError
from tests import bridge
from tests.models.folders import MODELS, folder_of, read

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def converted_name(name):
    name = name.removeprefix("model.")
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}.get(name, "output.weight")


def interleaved(w, heads):
    """Rows as the converter of llama.cpp lays them, one index at a time."""
    width = len(w) // heads
    order = [h * width + (i % 2) * (width // 2) + i // 2 for h in range(heads) for i in range(width)]
    return w[order]


def llama3_divisors(theta, width, scaling):
    """The converter's `rope_freqs`, by the definition of Llama 3."""
    divisors = []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * theta ** (i / width)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192 / 1:
            divisors.append(scaling)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / scaling + smooth))
    return np.array(divisors, np.float32)


def write_gguf(path, case, *, quantise=None, divisors=None, extra=None, drop=(), arch="llama"):
    config, weights, _ = read(case)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    if config["rope_parameters"]["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_parameters"]["factor"])
    for key, value in (extra or {}).items():
        writer.add_float32(key, value)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    for name, w in weights.items():
        if name in drop:
            continue
        w = interleaved(w, heads) if ".q_proj." in name else interleaved(w, kv) if ".k_proj." in name else w
        if quantise is not None and w.ndim > 1 and w.shape[-1] % 32 == 0:
            writer.add_tensor(converted_name(name), gguf.quantize(w, quantise), raw_dtype=quantise)
        else:
            writer.add_tensor(converted_name(name), w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def worst(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


@pytest.mark.parametrize("case", ["llama-mha", "llama-gelu", "llama-biases-linear"])
def test_a_converted_file_equals_its_folder(case, tmp_path):
    expected = load_model(folder_of(case, tmp_path))
    # The format has no field for the activation function: it is SiLU.
    got = load_model(write_gguf(tmp_path / "x.gguf", case))
    assert got.cfg == expected.cfg.__class__(**{**vars(expected.cfg), "activation": "silu"})
    assert worst(got.params, expected.params) == 0
    assert (got.name, got.tokenizer) == ("x", None)


def test_frequencies_scaled_as_in_llama3(tmp_path):
    divisors = llama3_divisors(10000.0, 16, 32.0)
    assert len({float(d) for d in divisors}) >= 3  # kept, mixed and divided ones
    got = load_model(write_gguf(tmp_path / "x.gguf", "llama-gqa-llama3", divisors=divisors))
    scaling = got.cfg.rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_n_ctx) == ("llama3", 32.0, 8192)
    with pytest.raises(InputError, match="not the frequency scaling of Llama 3"):
        load_model(write_gguf(tmp_path / "y.gguf", "llama-gqa-llama3", divisors=divisors * 1.5))


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 2e-3), ("Q8_0", 2e-2), ("Q4_0", 0.3)])
def test_quantised_tensors(kind, tolerance, tmp_path):
    expected = load_model(folder_of("llama-mha", tmp_path)).params
    got = load_model(write_gguf(tmp_path / "x.gguf", "llama-mha", quantise=gguf.GGMLQuantizationType[kind])).params
    assert 0 < worst(got, expected) < tolerance


def test_what_is_refused(tmp_path):
    path = tmp_path / "x.gguf"

    def refused(match, **options):
        with pytest.raises(InputError, match=match):
            load_model(write_gguf(path, "llama-mha", **options))

    refused("architecture is 'qwen2moe'; of GGUF files llama, qwen2, qwen3, gemma2, gemma3 are read", arch="qwen2moe")
    refused(
        r"unknown fields: llama\.expert_weights_scale, llama\.strange",
        extra={"llama.strange": 1.0, "llama.expert_weights_scale": 2.0},
    )
    refused("1 missing tensors: layers.1.mlp.up_proj.weight", drop=("model.layers.1.mlp.up_proj.weight",))
    with pytest.raises(InputError, match=r"no complete GGUF file.*No such file"):
        load_model(tmp_path / "absent.gguf")


@pytest.mark.parametrize("keep", [0, 3, 20, 200, 900, 5000, -1, -4000])
def test_truncated_files(keep, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", "llama-mha")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"x\.gguf is no complete GGUF file"):
        load_model(path)


def test_damaged_headers(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", "llama-mha")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):  # whatever a flipped byte of the header does, it is an InputError or no error
        at, new = int(rng.integers(0, 1500)), bytes([int(rng.integers(0, 256))])
        path.write_bytes(data[:at] + new + data[at + 1 :])
        with contextlib.suppress(InputError):
            load_model(path)
    path.write_bytes(b"GGML" + data[4:])
    with pytest.raises(InputError, match="does not begin with 'GGUF'"):
        load_model(path)


@pytest.mark.smollm2
def test_smollm2_equals_the_reference(smollm2):
    """Logits over 200 tokens, of the same dequantised weights in transformers."""
    with np.load(MODELS / "smollm2.npz", allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    assert smollm2.tokenizer.encode(str(golden["text"]))[:200] == golden["tokens"].tolist()
    out = bridge.logits(smollm2.cfg, smollm2.params, golden["tokens"][None])
    got = np.asarray(out[0], np.float64)
    assert got.shape == (200, 49152)
    np.testing.assert_allclose(got[:, golden["columns"]], golden["logits"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(got, golden["top"], -1), golden["top_logits"], rtol=0, atol=1e-3)
    peak = got.max(-1, keepdims=True)
    lse = np.log(np.exp(got - peak).sum(-1)) + peak[:, 0]
    np.testing.assert_allclose(lse, golden["logsumexp"], rtol=0, atol=1e-3)


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("prompt", "tokens", "answer", "probability"),
    [
        ("The capital of France is", [504, 3575, 282, 4649, 314], " Paris", 0.7725),
        ("When Mary and John went to the store, John gave a drink to", None, " Mary", 0.923),
    ],
)
def test_smollm2_answers(smollm2, prompt, tokens, answer, probability):
    ids = smollm2.tokenizer.encode(prompt)
    assert tokens is None or ids == tokens
    (target,) = smollm2.tokenizer.encode(answer)
    p = jax.nn.softmax(bridge.logits(smollm2.cfg, smollm2.params, np.array([ids]))[0, -1])
    assert abs(float(p[target]) - probability) <= 0.002
    assert int(p.argmax()) == target


@pytest.mark.skipif(importlib.util.find_spec("glassllm") is None, reason="pip install --no-deps glassllm==0.1.0")
def test_glassllm_equals_its_own_numpy_model():
    from glassllm import load_pretrained

    theirs, tokenizer = load_pretrained("en")
    ours = load_model("glassllm")
    text = "She walked to the window and looked at the rain; it had not stopped since Monday."
    ids = tokenizer.encode(text)
    assert ours.tokenizer.encode(text) == ids
    got = np.asarray(bridge.logits(ours.cfg, ours.params, np.array([ids]))[0])
    np.testing.assert_allclose(got, theirs(ids).data[0], rtol=0, atol=5e-5)


def test_a_tensor_that_is_no_whole_number_of_blocks_is_refused(tmp_path):
    """32 values, said to be stored in blocks of 256: the library would unpack nothing, and trip over it."""
    write_gguf(tmp_path / "x.gguf", "llama-mha")
    data = (tmp_path / "x.gguf").read_bytes()
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8
    assert data[at : at + 4] == bytes(4)  # F32
    (tmp_path / "x.gguf").write_bytes(data[:at] + bytes([12, 0, 0, 0]) + data[at + 4 :])
    with pytest.raises(InputError, match=r"output_norm\.weight has shape .* no multiple of the 256 values of a block"):
        load_model(tmp_path / "x.gguf")

"""Published formats with a configuration beside each layer: sparsify, SAELens, Llama Scope; and what folders of any
format have in common."""

import shutil

import numpy as np
import pytest

from tcircuits.transcoders.describing import inspect
from tcircuits.transcoders.lazy import narrow
from tcircuits.transcoders.loading import load_transcoders, open_transcoders
from tcircuits.types import InputError

from . import ct_files as ct
from . import format_files as files
from .comparing import D, F, L, agrees, compute, inputs, load, sites, top, wide

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")


# --------------------------------------------------------------------------------------------------- sparsify (row 9)


def sparsify_equation(t, x, k=3, shifted=False):
    f = top((x - t["b_dec"] if shifted else x) @ t["encoder.weight"].T + t["encoder.bias"], k)
    y = f @ t["W_dec"] + t["b_dec"]
    return f, y + x @ t["W_skip"].T if "W_skip" in t else y


@pytest.mark.parametrize("transcode", [True, False, None], ids=["transcode", "not transcode", "transcode unsaid"])
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("num_latents", [0, F])
def test_sparsify(tmp_path, num_latents, skip, transcode):
    raw, x = files.sparsify(tmp_path, num_latents=num_latents, skip=skip, transcode=transcode), inputs()
    d = load(tmp_path)
    assert sites(d) == ("transcoder", "mlp_in", "mlp_out", "topk")
    assert (d.cfg.k, d.cfg.signed_topk, d.cfg.skip) == (3, False, skip)
    agrees(d, x, [sparsify_equation(wide(t), x[i], shifted=not transcode) for i, t in enumerate(raw)])


@pytest.mark.parametrize("hookpoint", ["layers.{}.mlp", "model.layers.{}.mlp", "h.{}.mlp", "transformer.h.{}.mlp"])
def test_sparsify_names_of_modules(tmp_path, hookpoint):
    raw, x = files.sparsify(tmp_path, hookpoint, dtype=np.float16, activation=None), inputs()
    agrees(load(tmp_path), x, [sparsify_equation(wide(t), x[i]) for i, t in enumerate(raw)])
    assert load_transcoders(tmp_path / hookpoint.format(1), layers=(1,)).cfg.layers == (1,)


def test_sparsify_keeps_before_the_post_norm(tmp_path):
    files.sparsify(tmp_path)
    cfg = load_transcoders(tmp_path, model=ct.model(post_norm=True)).cfg
    assert (cfg.reads, cfg.writes) == ("mlp_in", "mlp_raw")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "groupmax"}, "activation: 'groupmax'; of sparsify's only 'topk'"),
        ({"k": None}, "layers.0.mlp/cfg.json has k: None; it must be a whole number from 1"),
        ({"signed": True}, "signed: True"),
        ({"k": F + 1}, "k=13 is outside 1..12"),
        ({"num_latents": 13}, "its configuration says 13 features, its tensors have 12"),
    ],
)
def test_what_of_sparsify_is_not_read(tmp_path, fields, message):
    files.sparsify(tmp_path, **fields)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_sparsify_of_other_modules(tmp_path):
    files.sparsify(tmp_path, "layers.{}.self_attn")
    with pytest.raises(InputError, match=r"layers.0.self_attn is no MLP of a layer \(layers.0.mlp, h.0.mlp"):
        load(tmp_path)


# ----------------------------------------------------------------------------------------------------------- SAELens


def saelens_equation(t, x, shifted=False):
    h = (x - t["b_dec"] if shifted else x) @ t["W_enc"] + t["b_enc"]
    f = np.maximum(h, 0) * (h > t.get("threshold", 0))
    y = f @ t["W_dec"] + t["b_dec"]
    return f, y + x @ t["W_skip"].T if "W_skip" in t else y


@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens(tmp_path, architecture):
    raw, x = files.saelens(tmp_path, architecture), inputs()
    d = load(tmp_path)
    activation = "jumprelu" if "jumprelu" in architecture else "relu"
    assert sites(d) == ("transcoder", "normalized", "mlp_out", activation)
    assert (d.cfg.skip, inspect(tmp_path)["model"]) == ("skip" in architecture, "gpt2-small")
    agrees(d, x, [saelens_equation(wide(t), x[i]) for i, t in enumerate(raw)])
    one = load(tmp_path / "gpt2-small-layer-1-mlp-transcoder")
    assert one.cfg.layers == (1,)


def test_a_negative_threshold_of_saelens_acts_as_zero(tmp_path, monkeypatch):
    """Its JumpReLU stands behind a ReLU; a JumpReLU alone would let negative values pass."""
    draw = files.random

    def lowered(seed, **shapes):
        drawn = draw(seed, **shapes)
        return drawn | {"threshold": drawn["threshold"] - 1}

    monkeypatch.setattr(files, "random", lowered)
    raw, x = files.saelens(tmp_path, "jumprelu_transcoder"), inputs()
    assert min(t["threshold"].min() for t in raw) < 0 < max(t["threshold"].max() for t in raw)
    agrees(load(tmp_path), x, [saelens_equation(wide(t), x[i]) for i, t in enumerate(raw)])


OLD = {
    "as it is": ({}, True),
    "said to subtract": ({"apply_b_dec_to_input": True}, True),
    "said not to subtract": ({"apply_b_dec_to_input": False}, False),
    "release 5": ({"sae_lens_version": "5.11.0", "metadata": {"sae_lens_version": "5.11.0"}}, True),
    "an autoencoder of release 6": ({"sae_lens_version": "6.2.0"}, True),
}


@pytest.mark.parametrize("case", OLD)
def test_saelens_before_release_6(tmp_path, case):
    fields, shifted = OLD[case]
    raw, x = files.saelens(tmp_path, "standard", files.old_saelens_config, **fields), inputs()
    d = load(tmp_path)
    assert sites(d) == ("transcoder", "normalized", "mlp_out", "relu")
    agrees(d, x, [saelens_equation(wide(t), x[i], shifted) for i, t in enumerate(raw)])


def test_saelens_with_older_names_and_a_factor_that_is_not_applied(tmp_path):
    fields = {"hook_name": None, "hook_point": "blocks.0.hook_mlp_in", "activation_fn_str": None}
    raw, x = files.saelens(tmp_path, "standard", files.old_saelens_config, ("scaling_factor",)), inputs()
    for i in range(L):
        here = fields | {"hook_point": f"blocks.{i}.hook_mlp_in"}
        about = {key: v for key, v in (files.old_saelens_config(i) | here).items() if v is not None}
        files.write_json(tmp_path / f"gpt2-small-layer-{i}-mlp-transcoder" / "cfg.json", about)
    d = load(tmp_path)
    assert d.cfg.reads == "resid_mid"
    agrees(d, x, [saelens_equation(wide(t), x[i], True) for i, t in enumerate(raw)])


def two_biases(t, x):
    f = np.maximum((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    return f, f @ t["W_dec"] + t["b_dec_out"]


def test_saelens_with_a_bias_for_the_output(tmp_path):
    """So the paper's transcoders were stored before they were folded."""
    raw = files.saelens(tmp_path, "standard", files.old_saelens_config, ("b_dec_out",))
    x = inputs()
    agrees(load(tmp_path), x, [two_biases(wide(t), x[i]) for i, t in enumerate(raw)])


def test_saelens_of_gemma_scope_2_says_what_it_means_beside(tmp_path):
    """`hook_mlp_in` is the stream before the norm; its copies of Gemma Scope 2 read behind the norm."""
    files.saelens(tmp_path, "jumprelu_transcoder")
    for i in range(L):
        norm = f"model.layers.{i}.{{}}_feedforward_layernorm.output"
        about = {"hook_name": f"blocks.{i}.hook_mlp_in", "hf_hook_name": norm.format("pre")}
        about["hf_hook_name_out"] = norm.format("post")
        cfg = files.saelens_config(i, "jumprelu_transcoder", metadata=about)
        files.write_json(tmp_path / f"gpt2-small-layer-{i}-mlp-transcoder" / "cfg.json", cfg)
    assert sites(load(tmp_path))[1:3] == ("mlp_in", "mlp_out")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "topk"}, "architecture is 'topk'; read are transcoder, skip_transcoder"),
        ({"architecture": "gated"}, "architecture is 'gated'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'; only 'none' is read"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is True"),
        ({"d_out": 5}, "d_in is 4 and d_out 5; an MLP reads and writes as many dimensions"),
        ({"metadata": {"hook_name": "blocks.0.hook_resid_post"}}, "hook_name is 'blocks.0.hook_resid_post'; read are"),
        ({"metadata": {"hook_name_out": "blocks.7.hook_mlp_out"}}, "hook_name_out is 'blocks.7.hook_mlp_out'; read"),
    ],
)
def test_what_of_saelens_is_not_read(tmp_path, fields, message):
    files.saelens(tmp_path, **{"architecture": "transcoder"} | fields)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_a_layer_twice(tmp_path):
    files.saelens(tmp_path, "transcoder")
    shutil.copytree(tmp_path / "gpt2-small-layer-1-mlp-transcoder", tmp_path / "gpt2-small-layer-1-unfolded")
    message = (
        r"layer 1 twice: .*gpt2-small-layer-1-mlp.*, gpt2-small-layer-1-unfolded/sae_weights.safetensors; give the"
    )
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    assert load(tmp_path, layers=(0, 2)).cfg.layers == (0, 2)


def test_a_folder_without_its_configuration(tmp_path):
    files.saelens(tmp_path, "transcoder")
    here = tmp_path / "gpt2-small-layer-1-mlp-transcoder"
    (here / "cfg.json").unlink()
    with pytest.raises(InputError, match=r"layer-1-mlp-transcoder/cfg.json is missing: it says what"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"cfg.json is missing: .*give the folder"):
        load(tmp_path / "gpt2-small-layer-0-mlp-transcoder" / "sae_weights.safetensors")


# -------------------------------------------------------------------------------------------------------- Llama Scope


def llama_equation(t, about, x):
    """Inputs and outputs are scaled to the length sqrt(D); one threshold for activations times decoder lengths."""
    s_in = np.sqrt(D) / about["dataset_average_activation_norm"]["in"]
    s_out = np.sqrt(D) / about["dataset_average_activation_norm"]["out"]
    rows, bias = t["decoder.weight"].T * s_in / s_out, t["encoder.bias"] / s_in
    length = np.linalg.norm(rows, axis=1) if about["sparsity_include_decoder_norm"] else np.ones(F)
    h = x @ (t["encoder.weight"] * length[:, None]).T + bias * length
    f = h * (h > about["jump_relu_threshold"])
    return f / length, f @ (rows / length[:, None]) + t["decoder.bias"] / s_out


@pytest.mark.parametrize("by_norm", [False, True])
def test_llama_scope(tmp_path, by_norm):
    (raw, about), x = files.llama_scope(tmp_path, sparsity_include_decoder_norm=by_norm), inputs()
    d = load(tmp_path)
    assert sites(d) == ("transcoder", "normalized", "mlp_out", "jumprelu")
    assert inspect(tmp_path)["model"] == "meta-llama/Llama-3.1-8B"
    agrees(d, x, [llama_equation(wide(t), a, x[i]) for i, (t, a) in enumerate(zip(raw, about, strict=True))])
    one = load(tmp_path / "Llama3_1-8B-Base-L2TC-8x")
    assert one.cfg.layers == (2,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"act_fn": "topk"}, "act_fn is 'topk'; only 'jumprelu'"),
        ({"norm_activation": "token-wise"}, "norm_activation is 'token-wise'; only 'dataset-wise'"),
        ({"use_glu_encoder": True}, "use_glu_encoder is True"),
        ({"jump_relu_threshold": 0.0}, "jump_relu_threshold is 0.0; it must be a number above zero"),
        ({"dataset_average_activation_norm": {"in": 2.0}}, "norm out is None; it must be a number above zero"),
        ({"hook_point_in": "blocks.0.hook_resid_post"}, "reads 'blocks.0.hook_resid_post' and writes"),
        ({"hook_point_out": "blocks.9.hook_mlp_out"}, "no MLP of one layer"),
    ],
)
def test_what_of_llama_scope_is_not_read(tmp_path, fields, message):
    files.llama_scope(tmp_path, **fields)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_llama_scope_without_weights(tmp_path):
    files.llama_scope(tmp_path)
    (tmp_path / "Llama3_1-8B-Base-L1TC-8x" / "checkpoints" / "final.safetensors").unlink()
    with pytest.raises(InputError, match=r"Llama3_1-8B-Base-L1TC-8x/checkpoints/final.safetensors is missing"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------------------ lm-saes


def lm_equation(t, x, activation, by_length):
    """Their forward pass; features as they have them, and the lengths of their decoder rows."""
    norms = [v.item() for name, v in t.items() if "norm" in name] or [np.sqrt(D)] * 2
    length = np.linalg.norm(t["W_D"], axis=1) if by_length else np.ones(F)
    g = (x * np.sqrt(D) / norms[0] @ t["W_E"] + t["b_E"]) * length
    theta = np.exp(t.get("activation_function.log_jumprelu_threshold", 0))
    on = {"relu": np.maximum(g, 0), "jumprelu": g * (g > theta), "topk": top(g, 3)}[activation]
    return on / length, (on / length @ t["W_D"] + t["b_D"]) * norms[1] / np.sqrt(D), length


@pytest.mark.parametrize("normed", [False, True], ids=["inference", "dataset-wise"])
@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_lm_saes(tmp_path, activation, by_length, normed):
    """Of TopK, features are times the length of their decoder row, so that they rank by value."""
    raw = files.lm_saes(tmp_path, normed, act_fn=activation, sparsity_include_decoder_norm=by_length)
    d, x = load(tmp_path), inputs()
    assert sites(d) == ("transcoder", "normalized", "mlp_out", activation)
    assert inspect(tmp_path)["format"] == "lm-saes"
    wanted = [lm_equation(wide(t), x[i], activation, by_length) for i, t in enumerate(raw)]
    agrees(d, x, [(f * length if activation == "topk" else f, y) for f, y, length in wanted])
    few = narrow(open_transcoders(tmp_path, dtype=np.float64), x)
    np.testing.assert_allclose(compute(few.transcoders, x)[1], [y for _, y, _ in wanted], rtol=0, atol=1e-12)
    assert load(tmp_path / "L1").cfg.layers == (1,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sae_type": "clt"}, "L0/config.json: sae_type is 'clt'; only 'sae' is read"),
        ({"act_fn": "batchtopk"}, "act_fn is 'batchtopk'; read is 'relu' or 'jumprelu' or 'topk'"),
        ({"norm_activation": "token-wise"}, "norm_activation is 'token-wise'"),
        ({"use_glu_encoder": True}, "use_glu_encoder is True"),
        ({"use_decoder_bias": False}, "use_decoder_bias is False"),
        ({"act_fn": "topk", "top_k": 0}, "top_k is 0; it must be a whole number from 1"),
        ({"hook_point_out": "blocks.0.ln2.hook_normalized"}, "no MLP of one layer"),
        ({"norm_activation": "dataset-wise", "normed": False}, r"norm.blocks.0.ln2.hook_normalized of .* is nan; it"),
    ],
)
def test_what_of_lm_saes_is_not_read(tmp_path, fields, message):
    files.lm_saes(tmp_path, **fields)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


# ------------------------------------------------------------------------------------------- folders, layers, options


def test_a_folder_of_several_formats(tmp_path):
    files.npz(tmp_path / "a")
    files.sparsify(tmp_path / "b")
    with pytest.raises(InputError, match=r"several formats: sparsify \(b/layers.0.mlp/sae.*, Gemma Scope \(a/layer_0"):
        load(tmp_path)
    assert load(tmp_path / "a").cfg.activation == "jumprelu"


def test_a_folder_of_none(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"no dictionaries in a format that is read \(circuit-tracer: config.yaml"):
        load(tmp_path)


@pytest.mark.parametrize("write", [files.npz, files.gemma_scope_2, files.sparsify])
def test_a_gap_and_a_choice_of_layers(tmp_path, write):
    write(tmp_path)
    shutil.rmtree(next(path for path in tmp_path.iterdir() if path.name.startswith(("layer_1", "layers.1"))))
    with pytest.raises(InputError, match=r"missing files: layer 1; .* give layers=\(0, 2\)"):
        load(tmp_path)
    assert load(tmp_path, layers=(0, 2)).cfg.layers == (0, 2)
    with pytest.raises(InputError, match=r"missing files: layer 1 \(asked for by layers=\)"):
        load(tmp_path, layers=(1,))


def test_mixed_widths(tmp_path, monkeypatch):
    files.sparsify(tmp_path)
    monkeypatch.setattr(files, "F", 2 * F)
    files.sparsify(tmp_path / "wide", num_latents=0, expansion_factor=2 * F // D)
    shutil.rmtree(tmp_path / "layers.1.mlp")
    (tmp_path / "wide" / "layers.1.mlp").rename(tmp_path / "layers.1.mlp")
    shutil.rmtree(tmp_path / "wide")
    message = (
        r"differ in d_feature .*12 features of width 4 need: .*encoder.weight of sae.safetensors is \(24, 4\), not"
    )
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_options_override_what_files_say(tmp_path):
    raw, x = files.sparsify(tmp_path), inputs()
    d = load(tmp_path, k=5, reads="resid_mid", writes="mlp_raw")
    assert (d.cfg.k, d.cfg.reads, d.cfg.writes) == (5, "resid_mid", "mlp_raw")
    agrees(d, x, [sparsify_equation(wide(t), x[i], 5) for i, t in enumerate(raw)])
    d = load(tmp_path, activation="relu")
    agrees(d, x, [sparsify_equation(wide(t), x[i], F) for i, t in enumerate(raw)])


def test_a_set_for_another_model(tmp_path):
    files.gemma_scope_2(tmp_path)
    message = r"its width is 4, the model's d_model is 8; it has layers 0..2, the model 0..1; it says .*gemma-3-4b-pt"
    with pytest.raises(InputError, match=message):
        load(tmp_path, 2, 8)

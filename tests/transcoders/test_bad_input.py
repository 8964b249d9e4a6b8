"""What cannot be loaded is refused with everything that is wrong, before any matrix is read."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tcircuits.transcoders.describing import inspect
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.types import InputError

from . import ct_files as ct


def change(path, **tensors):
    """Replace tensors of a file; None removes."""
    named = load_file(path) | tensors
    save_file({name.replace("__", "."): t for name, t in named.items() if t is not None}, path)


def damage(name, tensors):
    return lambda folder: change(folder / name, **tensors)


def cut(name, keep):
    def do(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return do


def remove(name):
    return lambda folder: (folder / name).unlink()


def config(**fields):
    return lambda folder: ct.write_config(folder, **fields)


def text(content):
    return lambda folder: (folder / "config.yaml").write_text(content)


F, D = ct.F, ct.D
PER_LAYER = [
    (cut("layer_1.safetensors", 0.9), "layer_1.safetensors is damaged, cut off, or"),
    (cut("layer_1.safetensors", 0.01), "layer_1.safetensors is damaged, cut off, or"),
    (cut("layer_2.safetensors", 0), "layer_2.safetensors is damaged, cut off, or"),
    (damage("layer_0.safetensors", {"W_enc": None}), "missing tensors: W_enc of layer_0.safetensors"),
    (
        damage("layer_0.safetensors", {"W_skip": np.zeros((D, D))}),
        "missing tensors: W_skip of layer_1.safetensors, W_skip of layer_2",
    ),
    (damage("layer_2.safetensors", {"log_thresholds": np.zeros(F)}), "a tensor 'log_thresholds'; known are W_enc"),
    (damage("layer_1.safetensors", {"W_enc": np.zeros((D, F))}), rf"W_enc of layer_1.safetensors is \({D}, {F}\), not"),
    (
        damage("layer_1.safetensors", {"b_enc": np.zeros(F + 1)}),
        r"b_enc of layer_1.safetensors is \(13,\), not \(12,\)",
    ),
    (
        damage("layer_1.safetensors", {"W_dec": np.zeros((F, D, 1))}),
        r"W_dec of .* \(12, 4, 1\), not \(12, 4\) or \(4, 12\)",
    ),
    (damage("layer_1.safetensors", {"b_dec": np.zeros(D, np.int32)}), "b_dec of layer_1.safetensors is I32"),
    (lambda folder: (folder / "layer_00.safetensors").touch(), "do not belong here: layer_00.safetensors"),
    (config(model_kind="sae"), "model_kind: 'sae'; known are transcoder_set, cross_layer_transcoder"),
    (
        config(feature_input_hook="hook_q"),
        "feature_input_hook: 'hook_q'; known are hook_resid_mid, ln2.hook_normalized",
    ),
    (config(feature_output_hook=3), "feature_output_hook: 3; known are hook_mlp_out, mlp.hook_out"),
    (config(feature_input_hook=None), "nothing says what it reads: .*feature_input_hook .*reads="),
    (config(activation="gelu"), "activation: 'gelu'; known are relu, topk"),
    (config(activation="topk"), "'topk' without k: give k="),
    (config(activation="jump_relu"), "'jumprelu' needs a tensor of thresholds"),
    (config(activation="relu", k=2), "k is 2, but activation 'relu' has none"),
    (config(activation="topk", k=F + 1), "k=13 is outside 1..12"),
    (config(k=True), "k: True; it must be a whole number"),
    (config(surprise=1, other=2), r"unknown fields other, surprise .*allow_unknown=\('other', 'surprise'\)"),
    (config(**{"x" * 5000: 1}), r"unknown fields x{60} .*allow_unknown=\('x{60}',\)"),
    (config(transcoders=["../layer_0.safetensors"]), "outside the folder"),
    (config(transcoders=["/etc/x.safetensors"]), "outside the folder"),
    (config(transcoders=["nope.safetensors"]), "'nope.safetensors', which is not there"),
    (config(transcoders=["params.npz"]), "'params.npz', which is not there"),
    (config(transcoders=["params.txt"]), "of single files only .safetensors, .npz"),
    (config(transcoders=["a\\\\b.npz"]), "outside the folder"),
    (config(transcoders="layer_0.safetensors"), "must be a list of files"),
    (config(tcircuits={"version": 2}), "section tcircuits of config.yaml cannot be read: version 2"),
    (config(tcircuits={"version": 1, "layers": [0]}), "section tcircuits of config.yaml cannot be read"),
    (text("- 1\n"), "config.yaml holds list"),
    (text("a: [\n"), "config.yaml cannot be read as YAML"),
]


@pytest.mark.parametrize(("do", "message"), PER_LAYER, ids=[message for _, message in PER_LAYER])
def test_per_layer(tmp_path, do, message):
    ct.per_layer(tmp_path)
    do(tmp_path)
    with pytest.raises(InputError, match=message):
        load_transcoders(tmp_path)
    with pytest.raises(InputError, match=message):
        inspect(tmp_path)


CROSS_LAYER = [
    (remove("W_enc_1.safetensors"), "missing files: W_enc_1.safetensors; a cross-layer transcoder covers all layers"),
    (remove("W_dec_2.safetensors"), "missing files: W_dec_2.safetensors; a cross-layer"),
    (remove("W_enc_2.safetensors"), "missing files: W_enc_2.safetensors; a cross-layer"),
    (cut("W_dec_0.safetensors", 0.5), "W_dec_0.safetensors is damaged, cut off, or"),
    (damage("W_dec_1.safetensors", {"W_dec_1": np.zeros((F, 3, D))}), r"W_dec_1 of .* \(12, 3, 4\), not \(12, 2, 4\)"),
    (damage("W_enc_1.safetensors", {"W_enc_0": np.zeros((F, D))}), "W_enc_1.safetensors has a tensor 'W_enc_0'"),
    (
        damage("W_enc_1.safetensors", {"threshold_1": np.zeros(F)}),
        "missing tensors: threshold_0 of W_enc_0.safetensors",
    ),
    (config(model_kind="transcoder_set"), "no transcoder dictionaries in a format that is read"),
]


@pytest.mark.parametrize(("do", "message"), CROSS_LAYER, ids=[message for _, message in CROSS_LAYER])
def test_cross_layer(tmp_path, do, message):
    ct.cross_layer(tmp_path)
    do(tmp_path)
    with pytest.raises(InputError, match=message):
        load_transcoders(tmp_path)


def test_a_missing_or_damaged_file_raises_no_other_complaints(tmp_path):
    """The last layer's number is needed for the shapes of all others."""
    ct.cross_layer(tmp_path)
    (tmp_path / "W_enc_2.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_transcoders(tmp_path, model=ct.model())
    assert "W_enc_2.safetensors is damaged" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("missing tensors", "another shape", "it has layers")), (
        caught.value
    )


def test_biases_that_tell_no_sizes(tmp_path):
    ct.per_layer(tmp_path, n_layers=1)
    change(tmp_path / "layer_0.safetensors", b_enc=np.zeros((F, 1)))
    with pytest.raises(InputError, match="no layer has the biases"):
        load_transcoders(tmp_path)


def test_everything_wrong_is_said_at_once(tmp_path):
    ct.per_layer(tmp_path)
    ct.write_config(tmp_path, feature_input_hook="hook_q", new=1)
    change(tmp_path / "layer_0.safetensors", W_enc=np.zeros((F, D + 1)))
    change(tmp_path / "layer_1.safetensors", extra=np.zeros(1))
    cut("layer_2.safetensors", 0.5)(tmp_path)
    with pytest.raises(InputError) as caught:
        load_transcoders(tmp_path, model=ct.model(n_layers=2, d_model=8))
    for part in (
        "hook_q", "unknown fields new", "W_enc of layer_0.safetensors", "'extra'", "layer_2.safetensors is damaged",
        "its width is 4, the model's d_model is 8", "it has layers 0..2, the model 0..1",
    ):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.parametrize("write", [ct.per_layer, ct.cross_layer])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 8}, "its width is 4, the model's d_model is 8"),
        ({"n_layers": 2}, r"it has layers 0..2, the model 0..1"),
        ({"attn_only": True, "d_mlp": 0}, "the model has no MLPs"),
    ],
)
def test_another_model(tmp_path, write, sizes, message):
    write(tmp_path)
    with pytest.raises(InputError, match=message):
        load_transcoders(tmp_path, model=ct.model(**sizes))


def test_a_cross_layer_transcoder_of_a_shallower_model(tmp_path):
    ct.cross_layer(tmp_path)
    with pytest.raises(InputError, match=r"it has layers 0..2, the model 0..3"):
        load_transcoders(tmp_path, model=ct.model(n_layers=4))
    with pytest.raises(InputError, match="covers all its 3 layers"):
        load_transcoders(tmp_path, layers=(0, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "activation_function.threshold"])
def test_values_that_are_not_finite(tmp_path, name, bad):
    raw = ct.per_layer(tmp_path, skip=True, threshold=True, dtype=ml_dtypes.bfloat16)
    tensor = raw[1][name].copy()
    tensor.flat[-1] = bad
    change(tmp_path / "layer_1.safetensors", **{name: tensor})
    with pytest.raises(InputError, match=f"tensor {name} of layer_1.safetensors has 1 values that are NaN or infinite"):
        load_transcoders(tmp_path)


def test_values_too_large_for_the_dtype(tmp_path):
    ct.per_layer(tmp_path)
    change(tmp_path / "layer_2.safetensors", b_enc=np.full(F, 1e6, np.float32))
    with pytest.raises(InputError, match=r"b_enc of layer_2.safetensors has 12 values .* in float16"):
        load_transcoders(tmp_path, dtype="float16")


def test_an_unknown_field_is_passed_over_when_named(tmp_path):
    ct.per_layer(tmp_path)
    ct.write_config(tmp_path, surprise=1, model_name="toy", scan="x")
    assert load_transcoders(tmp_path, allow_unknown=("surprise",)).cfg.reads == "mlp_in"


def test_two_values_of_k(tmp_path):
    ct.per_layer(tmp_path, k=3)
    change(tmp_path / "layer_1.safetensors", k=np.array(4))
    with pytest.raises(InputError, match="the tensors k say 3, 4"):
        load_transcoders(tmp_path)
    ct.per_layer(tmp_path, k=3)
    ct.write_config(tmp_path, activation="topk", k=5)
    with pytest.raises(InputError, match="k: 5, the tensors k say 3: give k="):
        load_transcoders(tmp_path)
    assert load_transcoders(tmp_path, k=5).cfg.k == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "arrays can have float16, bfloat16, float32, float64"),
        ({"dtype": "float64"}, "needs 64-bit mode"),
        ({"kind": "plt"}, "kind='plt'; there are transcoder, clt"),
        ({"fill": "zero"}, "fill='zero'; there are error, neurons"),
        ({"activation": "gelu"}, "activation='gelu'; there are relu"),
        ({"reads": "resid_pre"}, "reads='resid_pre'; there are"),
        ({"k": 0}, "k=0; it is at least 1"),
        ({"layers": ()}, r"layers=\(\); give at least one"),
        ({"layers": (-1,)}, "counted from 0"),
        ({"activation": "jumprelu"}, "needs a tensor of thresholds"),
        ({"activation": "relu", "k": 2}, "give k with 'topk'"),
        ({"kind": "clt"}, "no clt dictionaries"),
    ],
)
def test_options(tmp_path, options, message):
    ct.per_layer(tmp_path)
    with pytest.raises(InputError, match=message):
        load_transcoders(tmp_path, **options)


def test_thresholds_are_never_ignored(tmp_path):
    ct.per_layer(tmp_path, threshold=True)
    with pytest.raises(InputError, match="give activation='jumprelu' or 'batchtopk'"):
        load_transcoders(tmp_path, activation="relu")


@pytest.mark.parametrize("source", ["", "nothing", "./nothing/here", "/nothing/here", "a/b/../c", "hf://nothing"])
def test_unknown_sources(source):
    with pytest.raises(InputError, match=r"are unknown; give 'neurons', the name of a published set .*, or a hub ref"):
        load_transcoders(source)


def test_folders_and_files_that_are_no_dictionaries(tmp_path):
    with pytest.raises(InputError, match="no dictionaries in a format that is read"):
        load_transcoders(tmp_path)
    (tmp_path / "file.safetensors").touch()
    with pytest.raises(InputError, match=r"file.safetensors is damaged.*it is empty; read are safetensors, [^;]*$"):
        load_transcoders(tmp_path / "file.safetensors")
    with pytest.raises(InputError, match="no dictionaries in a format that is read"):
        load_transcoders(tmp_path)
    save_file({"x": np.zeros(3)}, tmp_path / "file.safetensors")
    with pytest.raises(InputError, match=r"file.safetensors has the tensors x: no format of dictionaries"):
        load_transcoders(tmp_path / "file.safetensors", layers=(0,))

"""Folders in circuit-tracer's format: what they say, and what comes out against NumPy on the raw tensors."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tcircuits.transcoders.describing import describe, inspect
from tcircuits.transcoders.dictionary import encode, pair, reconstruct
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.types import InputError

from . import ct_files as ct

PER_LAYER = {
    "relu": {},
    "jumprelu": {"threshold": True},
    "skip": {"skip": True},
    "topk": {"k": 3},
    "old decoder": {"old": True},
    "old decoder, skip, jumprelu": {"old": True, "skip": True, "threshold": True},
    "bf16": {"dtype": ml_dtypes.bfloat16, "skip": True},
    "f16": {"dtype": np.float16},
}


def close(got, wanted):
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", PER_LAYER)
def test_per_layer_reconstructs_as_its_raw_tensors(tmp_path, case):
    options = PER_LAYER[case]
    raw, x = ct.per_layer(tmp_path, **options), ct.inputs()
    d = load_transcoders(tmp_path, model=ct.model())
    close(reconstruct(d, x), ct.per_layer_reconstruction(raw, x, options.get("k"), options.get("old", False)))
    activation = "jumprelu" if "threshold" in options else "topk" if "k" in options else "relu"
    assert (d.cfg.kind, d.cfg.activation, d.cfg.k) == ("transcoder", activation, options.get("k"))
    assert (d.cfg.n_layers, d.cfg.layers, d.cfg.d_model, d.cfg.d_feature) == (ct.L, (0, 1, 2), ct.D, ct.F)
    assert (d.cfg.skip, d.cfg.signed_topk) == ("skip" in options, activation == "topk")
    assert str(d.w_enc.dtype) == "float32"


@pytest.mark.parametrize("skip", [None, "W_skip_{}", "W_skip"])
@pytest.mark.parametrize("threshold", [False, True])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_cross_layer_reconstructs_as_its_raw_tensors(tmp_path, n_layers, threshold, skip):
    raw, x = ct.cross_layer(tmp_path, n_layers=n_layers, threshold=threshold, skip=skip), ct.inputs(n_layers)
    d = load_transcoders(tmp_path, model=ct.model(n_layers))
    close(reconstruct(d, x), ct.cross_layer_reconstruction(raw, x, skip))
    assert (d.cfg.kind, d.cfg.activation) == ("clt", "jumprelu" if threshold else "relu")
    assert d.w_dec.shape == (n_layers * (n_layers + 1) // 2, ct.F, ct.D)
    for i in range(n_layers):
        for m in range(i, n_layers):
            np.testing.assert_array_equal(d.w_dec[pair(d.cfg, i, m)], raw[i][f"W_dec_{i}"][:, m - i])


def test_float64_files_lose_nothing(tmp_path, x64):
    raw, x = ct.per_layer(tmp_path, dtype=np.float64, skip=True), ct.inputs().astype(np.float64)
    got = reconstruct(load_transcoders(tmp_path, dtype=np.float64), x)
    np.testing.assert_allclose(got, ct.per_layer_reconstruction(raw, x), rtol=1e-13, atol=1e-13)


def test_bfloat16_stays_bfloat16(tmp_path):
    raw = ct.per_layer(tmp_path, dtype=ml_dtypes.bfloat16)
    d = load_transcoders(tmp_path, dtype="bfloat16")
    assert str(d.w_dec.dtype) == "bfloat16"
    np.testing.assert_array_equal(np.asarray(d.w_dec[2]), raw[2]["W_dec"])


@pytest.mark.parametrize(
    ("rows", "old"), [("features", False), ("outputs", True)], ids=["rows are features", "rows are outputs"]
)
def test_a_square_decoder_needs_a_word(tmp_path, rows, old):
    raw, x = ct.per_layer(tmp_path, d_model=6, d_feature=6, old=old), ct.inputs(d_model=6)
    with pytest.raises(InputError, match=r"decoder_rows='features'.*'outputs'"):
        load_transcoders(tmp_path)
    d = load_transcoders(tmp_path, decoder_rows=rows)
    close(reconstruct(d, x), ct.per_layer_reconstruction(raw, x, old=old))


@pytest.mark.parametrize(
    ("hook", "reads"),
    [("hook_resid_mid", "resid_mid"), ("ln2.hook_normalized", "normalized"), ("mlp.hook_in", "mlp_in")],
)
@pytest.mark.parametrize(
    ("out", "post_norm", "writes"),
    [("hook_mlp_out", True, "mlp_out"), ("mlp.hook_out", True, "mlp_raw"), ("mlp.hook_out", False, "mlp_out")],
)
def test_hooks_become_sites(tmp_path, hook, reads, out, post_norm, writes):
    ct.per_layer(tmp_path)
    ct.write_config(tmp_path, feature_input_hook=hook, feature_output_hook=out)
    cfg = load_transcoders(tmp_path, model=ct.model(post_norm=post_norm)).cfg
    assert (cfg.reads, cfg.writes) == (reads, writes)


def test_sites_without_a_config_and_by_word(tmp_path):
    ct.per_layer(tmp_path)
    assert load_transcoders(tmp_path).cfg.reads == "resid_mid"
    assert load_transcoders(tmp_path).cfg.writes == "mlp_out"
    cfg = load_transcoders(tmp_path, reads="mlp_in", writes="mlp_raw", model=ct.model()).cfg
    assert (cfg.reads, cfg.writes) == ("mlp_in", "mlp_raw")


@pytest.mark.parametrize(
    ("fields", "options", "activation", "k"),
    [
        ({"activation": "relu"}, {}, "relu", None),
        ({"activation": "topk", "k": 2}, {}, "topk", 2),
        ({"k": 2}, {}, "topk", 2),
        ({"k": 2}, {"k": 4}, "topk", 4),
        ({"activation": "topk"}, {"k": 4}, "topk", 4),
        ({"activation": "topk", "k": 2}, {"activation": "relu"}, "relu", None),
        ({}, {"activation": "topk", "k": 1}, "topk", 1),
    ],
)
def test_activation_and_k(tmp_path, fields, options, activation, k):
    raw, x = ct.per_layer(tmp_path), ct.inputs()
    ct.write_config(tmp_path, **fields)
    d = load_transcoders(tmp_path, **options)
    assert (d.cfg.activation, d.cfg.k) == (activation, k)
    close(reconstruct(d, x), ct.per_layer_reconstruction(raw, x, k))


def test_batchtopk_is_said_by_the_caller(tmp_path):
    raw, x = ct.per_layer(tmp_path, threshold=True), ct.inputs()
    d = load_transcoders(tmp_path, activation="batchtopk")
    assert d.cfg.activation == "batchtopk"
    close(reconstruct(d, x), ct.per_layer_reconstruction(raw, x))


def test_fewer_layers_than_the_model(tmp_path):
    ct.per_layer(tmp_path)
    cfg = load_transcoders(tmp_path, model=ct.model(n_layers=5), fill="neurons").cfg
    assert (cfg.n_layers, cfg.layers, cfg.fill) == (5, (0, 1, 2), "neurons")
    assert load_transcoders(tmp_path, model=ct.model(n_layers=5)).cfg.fill == "error"


def test_a_choice_of_layers(tmp_path):
    raw, x = ct.per_layer(tmp_path), ct.inputs()
    d = load_transcoders(tmp_path, model=ct.model(), layers=[2, 0])
    assert d.cfg.layers == (0, 2)
    close(reconstruct(d, x[[0, 2]]), ct.per_layer_reconstruction([raw[0], raw[2]], x[[0, 2]]))


def test_a_gap_is_loaded_only_when_asked_for(tmp_path):
    raw = ct.per_layer(tmp_path)
    (tmp_path / "layer_1.safetensors").unlink()
    with pytest.raises(InputError, match=r"missing files: layer_1.safetensors; .*layers=\(0, 2\)"):
        load_transcoders(tmp_path)
    d = load_transcoders(tmp_path, layers=(0, 2))
    np.testing.assert_array_equal(d.w_enc, [raw[0]["W_enc"], raw[2]["W_enc"]])
    with pytest.raises(InputError, match=r"missing files: layer_1.safetensors \(asked for by layers=\)"):
        load_transcoders(tmp_path, layers=(1, 2))


def test_files_listed_by_the_config(tmp_path):
    raw, x = ct.per_layer(tmp_path), ct.inputs()
    (tmp_path / "sub").mkdir()
    (tmp_path / "layer_0.safetensors").rename(tmp_path / "sub" / "first.safetensors")
    ct.write_config(tmp_path, transcoders=["sub/first.safetensors", "layer_1.safetensors", "layer_2.safetensors"])
    close(reconstruct(load_transcoders(tmp_path), x), ct.per_layer_reconstruction(raw, x))


def test_both_kinds_in_one_folder(tmp_path):
    plt, clt, x = ct.per_layer(tmp_path), ct.cross_layer(tmp_path), ct.inputs()
    with pytest.raises(InputError, match="kind='transcoder' or kind='clt'"):
        load_transcoders(tmp_path)
    close(reconstruct(load_transcoders(tmp_path, kind="transcoder"), x), ct.per_layer_reconstruction(plt, x))
    close(reconstruct(load_transcoders(tmp_path, kind="clt"), x), ct.cross_layer_reconstruction(clt, x))


@pytest.mark.parametrize("write", [ct.per_layer, ct.cross_layer])
def test_inspect_says_what_describe_says(tmp_path, write):
    raw = write(tmp_path, threshold=True, dtype=ml_dtypes.bfloat16)
    d = load_transcoders(tmp_path, dtype="bfloat16")
    facts = inspect(tmp_path)
    assert facts == describe(d) | {"format": "circuit-tracer"}
    n = sum(tensor.size for tensors in raw for tensor in tensors.values())
    assert (facts["parameters"], facts["bytes"], facts["dtype"]) == (n, 2 * n, "bfloat16")
    assert (facts["activation"], facts["layers"], facts["reads"]) == ("jumprelu", [0, 1, 2], "resid_mid")


def test_inspect_reads_no_matrix(tmp_path):
    """NaN is found only by reading."""
    ct.per_layer(tmp_path, n_layers=1)
    tensors = {"W_enc": np.full((ct.F, ct.D), np.nan), "b_enc": np.zeros(ct.F), "b_dec": np.zeros(ct.D)}
    save_file(tensors | {"W_dec": np.zeros((ct.F, ct.D))}, tmp_path / "layer_0.safetensors")
    assert inspect(tmp_path)["d_feature"] == ct.F
    with pytest.raises(InputError, match=r"W_enc of layer_0.safetensors has 48 values that are NaN"):
        load_transcoders(tmp_path)


def test_neurons():
    d = load_transcoders("neurons", model=ct.model())
    assert (d.cfg.kind, d.cfg.n_layers, d.cfg.d_model, d.cfg.d_feature) == ("neurons", ct.L, ct.D, 8)
    assert describe(d)["bytes"] == 0
    with pytest.raises(InputError, match="model="):
        load_transcoders("neurons")
    with pytest.raises(InputError, match="attention-only"):
        load_transcoders("neurons", model=ct.model(attn_only=True, d_mlp=0))
    with pytest.raises(InputError, match="layers cannot be changed"):
        load_transcoders("neurons", model=ct.model(), layers=(0,))


def test_a_mesh_holds_the_same_arrays(tmp_path, run_python):
    ct.per_layer(tmp_path, d_feature=16, skip=True, old=True)
    (tmp_path / "clt").mkdir()
    ct.cross_layer(tmp_path / "clt", threshold=True)
    program = f"""
import jax, numpy as np
from tcircuits.parallel import make_mesh
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.transcoders.dictionary import reconstruct
for path, whole in ((r"{tmp_path}", 16), (r"{tmp_path / "clt"}", 12)):
    one, spread = load_transcoders(path), load_transcoders(path, mesh=make_mesh((2, 4)))
    assert spread.w_enc.addressable_shards[0].data.shape == (3, whole // 4, 4), spread.w_enc.sharding
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(a, b)
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(reconstruct)(spread, x), reconstruct(one, x), rtol=1e-5, atol=1e-5)
"""
    run_python(program, devices=8)


@pytest.mark.parametrize("name", ["plt-relu", "plt-jumprelu-skip", "plt-skip-bfloat16", "clt-relu", "clt-jumprelu"])
def test_folders_that_circuit_tracer_wrote(golden, name):
    """Its own features and reconstructions; those in bfloat16 are rounded after every step."""
    folder = golden / "circuit_tracer_folders" / name
    wanted, d = np.load(folder / "reconstruction.npz"), load_transcoders(folder, model=ct.model())
    assert (d.cfg.kind == "clt", d.cfg.skip) == ("clt" in name, "skip" in name)
    assert d.cfg.activation == ("jumprelu" if "jumprelu" in name else "relu")
    error = 0.05 if "bfloat16" in name else 5e-6
    f = np.stack([encode(d, slot, wanted["x"][slot]) for slot in range(ct.L)])
    assert 0.1 < (wanted["f"] != 0).mean() < 0.9
    np.testing.assert_allclose(f, wanted["f"], atol=error, rtol=error)
    np.testing.assert_allclose(reconstruct(d, wanted["x"]), wanted["y"], atol=2 * error, rtol=error)

"""Published formats of one file a layer, lists of them, and whole folders of Gemma Scope: files as their owners write
them, against the owners' equations on the raw tensors."""

import gzip
import os
import pickle
import shutil

import ml_dtypes
import numpy as np
import pytest

from tcircuits.transcoders.describing import inspect
from tcircuits.transcoders.dictionary import reconstruct
from tcircuits.transcoders.formats.paper import log_frequency
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.types import InputError

from . import ct_files as ct
from . import format_files as files
from .comparing import D, L, agrees, inputs, load, sites, wide

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")


# ------------------------------------------------------------------------------- the paper's checkpoints (rows 1 to 3)

PAPER = "final_sparse_autoencoder_gpt2-small_blocks.{}.ln2.hook_normalized_16{}"
PAPER_FILES = (PAPER.format(0, ".pt"), PAPER.format(1, ".pkl"), PAPER.format(2, ".pkl.gz"))


@pytest.fixture
def paper(golden):
    """The folder of files that PyTorch wrote, and their tensors by file."""
    folder, raw = golden / "paper_transcoders", {}
    with np.load(folder / "expected.npz") as arrays:
        for key in arrays:
            raw.setdefault(key.partition(":")[0], {})[key.partition(":")[2]] = arrays[key].astype(np.float64)
    return folder, raw


def paper_equation(t, x):
    f = np.maximum((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"], 0)
    return f, f @ t["W_dec"] + t.get("b_dec_out", t["b_dec"])


def test_the_papers_folder(paper, tmp_path):
    """A .pt, a .pkl and a .pkl.gz with and without the later fields, made on a GPU; sparsities lie beside them."""
    folder, raw = paper
    for path in folder.glob("final_*"):
        shutil.copy(path, tmp_path / path.name)
    d, x = load(tmp_path, d_model=6), inputs(d_model=6)
    assert sites(d) == ("transcoder", "normalized", "mlp_out", "relu")
    assert (d.cfg.d_feature, d.cfg.layers) == (16, (0, 1, 2))
    assert inspect(tmp_path)["model"] == "gpt2-small"
    agrees(d, x, [paper_equation(raw[name], x[i]) for i, name in enumerate(PAPER_FILES)])


@pytest.mark.parametrize("layer", range(3))
def test_one_of_the_papers_files(paper, layer):
    folder, raw = paper
    name, x = PAPER_FILES[layer], inputs(1, 6)
    d = load_transcoders(folder / name, dtype=np.float64)
    assert d.cfg.layers == (layer,)
    agrees(d, x, [paper_equation(raw[name], x[0])])


@pytest.mark.parametrize("name", ["one_bias.pt", "state_dict.pt"])
def test_a_checkpoint_without_output_bias_and_a_bare_state_dict(paper, name):
    folder, raw = paper
    x = inputs(1, 6)
    d = load_transcoders(folder / name, dtype=np.float64, layers=(0,))
    assert sites(d) == ("transcoder", "normalized", "mlp_out", "relu")
    agrees(d, x, [paper_equation(raw[name], x[0])])


def test_what_of_the_papers_cannot_stand_for_an_mlp(paper, golden):
    folder, _ = paper
    with pytest.raises(InputError, match=r"autoencoder.pt: it is a sparse autoencoder of 'blocks.0.ln2"):
        load_transcoders(folder / "autoencoder.pt")
    for name in ("transcoder.pt", "transcoder.pkl", "transcoder.pkl.gz", "transcoder-legacy.pt"):
        with pytest.raises(InputError, match=rf"{name}: it reads 6 dimensions and writes 5; an MLP has as many"):
            load_transcoders(golden / "torch_files" / name)


def test_how_often_features_are_on(paper):
    """Both forms hold the logarithm of a share, or the share; dead features get -10."""
    folder, raw = paper
    bare = log_frequency(folder / PAPER.format(0, "_log_feature_sparsity.pt"))
    name = PAPER.format(1, "_log_feature_sparsity.pkl")
    named = log_frequency(folder / name)
    wanted = raw["log_feature_sparsity"][""]
    np.testing.assert_allclose(bare, wanted, atol=1e-6)
    np.testing.assert_allclose(named, np.log10(raw[name]["freqs"] + 1e-10), atol=1e-6)
    assert abs(named[3] + 10) <= 2e-6  # float32, and NumPy's logarithm differs by a last place between processors
    with pytest.raises(InputError, match="it must be one tensor"):
        log_frequency(folder / PAPER_FILES[0])


# --------------------------------------------------------------------------------------------- Gemma Scope (rows 4, 8)


def jump(h, theta):
    return np.where(h > theta, h, 0)


def gemma_equation(t, x):
    f = jump(x @ t["W_enc"] + t["b_enc"], t["threshold"])
    return f, f @ t["W_dec"] + t["b_dec"]


def test_gemma_scope(tmp_path):
    raw, x = files.npz(tmp_path), inputs()
    d = load(tmp_path)
    assert sites(d) == ("transcoder", "normalized", "mlp_out", "jumprelu")
    agrees(d, x, [gemma_equation(wide(t), x[i]) for i, t in enumerate(raw.values())])


def test_gemma_scope_chooses_by_sparsity(tmp_path):
    raw, x = files.npz(tmp_path, ((10, 76), (9, 65), (11, 49))), inputs()
    message = r"give width= and l0= .*: layer 0 has width 16k l0 10, width 16k l0 76; layer 1 has width 16k l0 65, "
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    for l0, chosen in ((60, (76, 65, 49)), (10, (10, 9, 11)), (1.5, (10, 9, 11))):
        d = load(tmp_path, l0=l0)
        agrees(d, x, [gemma_equation(wide(raw[i, n]), x[i]) for i, n in enumerate(chosen)])
    with pytest.raises(InputError, match="give width= and l0="):
        load(tmp_path, l0="small")
    assert load(tmp_path, layers=(1,), l0="9").cfg.layers == (1,)


def test_gemma_scope_chooses_by_width(tmp_path):
    narrow, x = files.npz(tmp_path), inputs()
    files.npz(tmp_path, width="65k")
    with pytest.raises(InputError, match="layer 0 has width 16k l0 76, width 65k l0 76"):
        load(tmp_path)
    agrees(load(tmp_path, width="16k"), x, [gemma_equation(wide(t), x[i]) for i, t in enumerate(narrow.values())])
    with pytest.raises(InputError, match="give width="):
        load(tmp_path, width="1m")


def test_one_file_of_gemma_scope(tmp_path):
    raw, x = files.npz(tmp_path), inputs()
    path = tmp_path / "layer_1" / "width_16k" / "average_l0_65" / "params.npz"
    with pytest.raises(InputError, match=r"nothing says which layer params.npz belongs to: give layers=\(LAYER,\)"):
        load(path)
    d = load(path, layers=(1,))
    assert d.cfg.layers == (1,)
    agrees(d, x[1:2], [gemma_equation(wide(raw[1, 65]), x[1])])


def second_equation(t, x):
    f = jump(x @ t["w_enc"] + t["b_enc"], t["threshold"])
    y = f @ t["w_dec"] + t["b_dec"]
    return f, y + x @ t["affine_skip_connection"] if "affine_skip_connection" in t else y


def second_cross_equation(raw, x):
    raw = [wide(t) for t in raw]
    f = [jump(x[i] @ t["w_enc"] + t["b_enc"], t["threshold"]) for i, t in enumerate(raw)]
    y = [t["b_dec"] + sum(f[i] @ raw[i]["w_dec"][:, m] for i in range(m + 1)) for m, t in enumerate(raw)]
    skip = "affine_skip_connection"
    return [(f[m], y[m] + x[m] @ t[skip] if skip in t else y[m]) for m, t in enumerate(raw)]


@pytest.mark.parametrize("about", [False, True], ids=["no config.json", "config.json"])
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "affine"])
def test_gemma_scope_2(tmp_path, skip, about):
    raw, x = files.gemma_scope_2(tmp_path / "transcoder_all", skip=skip, about=about), inputs()
    d = load(tmp_path)
    assert sites(d) == ("transcoder", "mlp_in", "mlp_out", "jumprelu")
    assert d.cfg.skip == skip
    assert inspect(tmp_path).get("model") == ("google/gemma-3-4b-pt" if about else None)
    agrees(d, x, [second_equation(wide(t), x[i]) for i, t in enumerate(raw)])


def test_a_whole_repository_of_gemma_scope_2(tmp_path):
    """It holds autoencoders under the same names, and several transcoders of each layer."""
    raw, x = files.gemma_scope_2(tmp_path / "transcoder_all"), inputs()
    files.gemma_scope_2(tmp_path / "transcoder_all", skip=True)
    files.gemma_scope_2(tmp_path / "resid_post_all")
    files.gemma_scope_2(tmp_path / "crosscoder")
    with pytest.raises(InputError, match=r"layer 0 has width 16k l0 small, width 16k l0 small_affine"):
        load(tmp_path)
    agrees(load(tmp_path, l0="small"), x, [second_equation(wide(t), x[i]) for i, t in enumerate(raw)])
    clt = files.gemma_scope_2_clt(tmp_path / "clt" / "width_262k_l0_big")
    with pytest.raises(InputError, match="Gemma Scope 2 transcoder and Gemma Scope 2 clt: give kind="):
        load(tmp_path, l0="small")
    agrees(load(tmp_path, kind="clt"), x, second_cross_equation(clt, x))
    assert load(tmp_path, kind="transcoder", l0="small").cfg.kind == "transcoder"


def test_one_folder_of_gemma_scope_2_says_its_layer(tmp_path):
    raw, x = files.gemma_scope_2(tmp_path), inputs()
    d = load(tmp_path / "layer_2_width_16k_l0_small")
    assert d.cfg.layers == (2,)
    agrees(d, x[2:], [second_equation(wide(raw[2]), x[2])])


def test_a_folder_of_an_autoencoder_or_another_place(tmp_path):
    files.gemma_scope_2(tmp_path)
    about = {"type": "sae", "hf_hook_point_in": "model.layers.0.output", "hf_hook_point_out": "model.layers.0.output"}
    files.write_json(tmp_path / "layer_0_width_16k_l0_small" / "config.json", about)
    files.write_json(tmp_path / "layer_1_width_16k_l0_small" / "config.json", about | {"type": "transcoder"})
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert "layer_0_width_16k_l0_small/config.json has type: 'sae'; only 'transcoder' and 'clt'" in str(caught.value)
    assert "layer_1_width_16k_l0_small/config.json says that it reads 'model.layers.0.output'" in str(caught.value)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_a_cross_layer_transcoder_of_gemma_scope_2(tmp_path, skip, n_layers):
    """The last layer is there too, and decoders to earlier layers are not used."""
    raw, x = files.gemma_scope_2_clt(tmp_path, skip, n_layers), inputs(n_layers)
    d = load(tmp_path, n_layers)
    assert sites(d) == ("clt", "mlp_in", "mlp_out", "jumprelu")
    assert d.cfg.n_pairs == n_layers * (n_layers + 1) // 2
    agrees(d, x, second_cross_equation(raw, x))


@pytest.mark.parametrize(
    ("layer", "message"),
    [(1, "missing files: layer 1; a cross-layer transcoder covers all layers"), (2, r"w_dec .* \(12, 3, 4\), not")],
)
def test_a_cross_layer_transcoder_with_a_layer_missing(tmp_path, layer, message):
    files.gemma_scope_2_clt(tmp_path)
    (tmp_path / f"params_layer_{layer}.safetensors").unlink()
    with pytest.raises(InputError, match=message):
        load_transcoders(tmp_path)
    with pytest.raises(InputError, match=message):
        load_transcoders(tmp_path, layers=(0, 3 - layer))


@pytest.mark.parametrize("kind", ["transcoder_set", "cross_layer_transcoder"])
def test_gemma_scope_2_through_a_list(tmp_path, kind):
    cross, x = kind != "transcoder_set", inputs()
    write = files.gemma_scope_2_clt if cross else files.gemma_scope_2
    raw = write(tmp_path / "files", skip=True)
    name = (
        "files/params_layer_{}.safetensors" if cross else "files/layer_{}_width_16k_l0_small_affine/params.safetensors"
    )
    ct.write_config(tmp_path, model_kind=kind, transcoders=[name.format(i) for i in range(L)])
    d = load(tmp_path)
    assert sites(d) == ("clt" if cross else "transcoder", "mlp_in", "mlp_out", "jumprelu")
    agrees(
        d, x, second_cross_equation(raw, x) if cross else [second_equation(wide(t), x[i]) for i, t in enumerate(raw)]
    )


# ------------------------------------------------------------------------------------------- circuit-tracer (rows 5-7)

PER_LAYER = {
    "relu": {},
    "jumprelu": {"threshold": True},
    "skip": {"skip": True},
    "topk": {"k": 3},
    "decoder as columns": {"old": True, "skip": True, "threshold": True},
}


@pytest.mark.parametrize("case", PER_LAYER)
def test_circuit_tracer_in_bfloat16(tmp_path, case):
    options = PER_LAYER[case]
    raw, x = ct.per_layer(tmp_path, dtype=ml_dtypes.bfloat16, **options), inputs()
    k, old = options.get("k"), options.get("old", False)
    got = reconstruct(load(tmp_path), x)
    np.testing.assert_allclose(got, ct.per_layer_reconstruction(raw, x, k, old), rtol=0, atol=1e-12)


@pytest.mark.parametrize("threshold", [False, True])
def test_a_cross_layer_transcoder_of_circuit_tracer(tmp_path, threshold):
    raw, x = ct.cross_layer(tmp_path, threshold=threshold), inputs()
    got = reconstruct(load(tmp_path), x)
    np.testing.assert_allclose(got, ct.cross_layer_reconstruction(raw, x), rtol=0, atol=1e-12)
    for part in ("enc", "dec"):
        (tmp_path / f"W_{part}_1.safetensors").unlink()
    with pytest.raises(InputError, match=r"missing files: W_enc_1.safetensors, W_dec_1.safetensors; a cross-layer"):
        load(tmp_path)


@pytest.mark.parametrize("word", ["features", "outputs"])
def test_a_square_decoder_of_any_format_needs_a_word(tmp_path, monkeypatch, word):
    """The word decides: a reader that guesses would load one of the two transposed."""
    monkeypatch.setattr(files, "F", D)
    raw, x = files.gemma_scope_2(tmp_path), inputs()
    with pytest.raises(InputError, match=r"decoder_rows='features' \(Gemma Scope 2 today\) or the other"):
        load(tmp_path)
    if word == "outputs":
        raw = [t | {"w_dec": t["w_dec"].T} for t in raw]
    agrees(load(tmp_path, decoder_rows=word), x, [second_equation(wide(t), x[i]) for i, t in enumerate(raw)])


# ----------------------------------------------------------------------------------------------------- lists (row 10)


def test_a_list_of_mixed_formats(paper, tmp_path):
    """Each layer in another container and layout, beside and below the configuration."""
    folder, raw = paper
    x = inputs(4, 6)
    for name in (PAPER_FILES[2], PAPER_FILES[1], "state_dict.pt"):
        shutil.copy(folder / name, tmp_path / name.replace("final_", "any_"))
    mine = ct.per_layer(tmp_path, n_layers=1, d_model=6, d_feature=16)
    (tmp_path / "sub").mkdir()
    (tmp_path / "layer_0.safetensors").rename(tmp_path / "sub" / "of circuit-tracer.safetensors")
    listed = [PAPER_FILES[2].replace("final_", "any_"), "sub/of circuit-tracer.safetensors", "state_dict.pt"]
    listed.append(PAPER_FILES[1].replace("final_", "any_"))
    ct.write_config(tmp_path, transcoders=listed, feature_input_hook="ln2.hook_normalized")
    d = load(tmp_path, 4, 6)
    assert sites(d) == ("transcoder", "normalized", "mlp_out", "relu")
    y = reconstruct(d, x)
    for i, name in ((0, PAPER_FILES[2]), (2, "state_dict.pt"), (3, PAPER_FILES[1])):
        np.testing.assert_allclose(y[i], paper_equation(raw[name], x[i])[1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(y[1:2], ct.per_layer_reconstruction(mine, x[1:2]), rtol=0, atol=1e-12)


def test_a_list_whose_files_disagree(tmp_path):
    """What the configuration or the caller says decides; else it is an error."""
    raw, x = files.npz(tmp_path), inputs()
    second = files.gemma_scope_2(tmp_path)
    names = ["layer_0/width_16k/average_l0_76/params.npz", "layer_1_width_16k_l0_small/params.safetensors"]
    ct.write_config(tmp_path, transcoders=names, feature_input_hook=None)
    message = r"differ in reads \(params.npz says 'normalized', params.safetensors says 'mlp_in'\)"
    with pytest.raises(InputError, match=message):
        load(tmp_path, 2)
    wanted = [gemma_equation(wide(raw[0, 76]), x[0]), second_equation(wide(second[1]), x[1])]
    agrees(load(tmp_path, 2, reads="normalized"), x[:2], wanted)
    ct.write_config(tmp_path, transcoders=names)
    d = load(tmp_path, 2)
    assert d.cfg.reads == "mlp_in"
    agrees(d, x[:2], wanted)


def test_a_list_under_any_name(tmp_path):
    raw, x = files.npz(tmp_path), inputs()
    ct.write_config(tmp_path, transcoders=[f"layer_{i}/width_16k/average_l0_{n}/params.npz" for i, n in raw])
    (tmp_path / "config.yaml").rename(tmp_path / "gemmascope-l0-0.yaml")
    d = load(tmp_path / "gemmascope-l0-0.yaml")
    agrees(d, x, [gemma_equation(wide(t), x[i]) for i, t in enumerate(raw.values())])


def test_addresses_that_are_in_the_cache(tmp_path, monkeypatch):
    """Nothing is asked of the hub: a download would fail, since tests are offline, and so would a look at the list."""
    import huggingface_hub

    repository, x = tmp_path / "snapshot", inputs()
    raw = files.npz(repository)
    asked = []

    def cached(repo, name, *, revision=None):
        asked.append((repo, name, revision))
        return str(repository / name) if (repository / name).exists() else None

    def network(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, network)
    for name in ("model_info", "list_repo_files", "repo_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, network)
    names = [f"layer_{i}/width_16k/average_l0_{n}/params.npz" for i, n in raw]
    (tmp_path / "list").mkdir()
    listed = [f"hf://google/gemma-scope-2b-pt-transcoders/{name}?revision=v1" for name in names]
    ct.write_config(tmp_path / "list", transcoders=listed, feature_input_hook="ln2.hook_normalized")
    d = load(tmp_path / "list")
    assert asked == [("google/gemma-scope-2b-pt-transcoders", name, "v1") for name in names]
    agrees(d, x, [gemma_equation(wide(t), x[i]) for i, t in enumerate(raw.values())])


def test_an_unknown_kind_of_model(tmp_path):
    files.npz(tmp_path)
    names = [f"layer_{i}/width_16k/average_l0_{n}/params.npz" for i, n in enumerate((76, 65, 49))]
    ct.write_config(tmp_path, model_kind="crosscoder", transcoders=names)
    with pytest.raises(InputError, match="model_kind: 'crosscoder'; known are transcoder_set, cross_layer_transcoder"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------- what runs code (row 11)


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".pkl.gz"])
@pytest.mark.parametrize("function", [os.system, eval, print], ids=["os.system", "eval", "print"])
def test_a_pickle_that_calls_functions_is_refused(tmp_path, suffix, function, capfd):
    """The file would otherwise be complete: only its configuration is replaced."""
    value = {"cfg": files.Runs(function, "print('it ran')"), "state_dict": {}}
    path = tmp_path / f"blocks.0.ln2.hook_normalized{suffix}"
    if suffix == ".pt":
        files.torch_zip(path, value)
    else:
        data = pickle.dumps(value)
        path.write_bytes(gzip.compress(data) if suffix == ".pkl.gz" else data)
    for source in (path, tmp_path):
        with pytest.raises(InputError, match=rf"damaged.*(posix|nt|builtins|__builtin__)\.{function.__name__}"):
            load_transcoders(source)
    assert "it ran" not in capfd.readouterr().out

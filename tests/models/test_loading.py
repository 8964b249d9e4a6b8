"""Loaded models give the reference implementation's logits, from every kind of source and into every kind of memory."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tcircuits.models.families import FAMILIES
from tcircuits.models.forward import forward
from tcircuits.models.generate import generate
from tcircuits.models.loading import load_model
from tcircuits.models.model import save_model
from tcircuits.types import InputError
from tests.models.folders import CASES, MODELS, folder_of, read, write
from tests.tiers import tiered

pytestmark = pytest.mark.usefixtures("quick_compile")

TOLERANCE = 2e-5
EXAMPLES = ("gpt2-plain", "neox-parallel", "llama-gqa-llama3")


run = jax.jit(lambda cfg, params, tokens, mask: forward(cfg, params, tokens, mask=mask).logits, static_argnums=0)


def logits(model, tokens, mask=None):
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return np.asarray(run(model.cfg, model.params, tokens, mask))


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(np.array_equal(x, y) for x, y in leaves)


def test_every_family_and_switch_has_a_golden_model():
    assert {read(c)[0]["model_type"] for c in CASES} == set(FAMILIES)
    assert len(CASES) == 31


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case, tmp_path):
    """Four prompts at once: unpadded, padded left, padded right, unpadded; then the padded ones alone."""
    _, _, golden = read(case)
    model = load_model(folder_of(case, tmp_path))
    tokens = np.concatenate([golden["tokens"][None], golden["batch_tokens"]])
    mask = np.concatenate([np.ones((1, tokens.shape[1]), bool), golden["batch_mask"]])
    expected = np.concatenate([golden["logits"][None], golden["batch_logits"]])
    assert (mask[1, 0], mask[2, -1]) == (False, False)
    assert expected[mask].std() > 0.3  # the comparison means something
    got = logits(model, tokens, mask)
    np.testing.assert_allclose(got[mask], expected[mask], rtol=0, atol=TOLERANCE)
    for row in (1, 2) if case in EXAMPLES else ():
        alone = logits(model, tokens[row][mask[row]][None])[0]
        np.testing.assert_allclose(got[row][mask[row]], alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", tiered(CASES, EXAMPLES))
def test_generation_equals_the_reference(case, tmp_path):
    """Twenty tokens; the reference's two likeliest are never closer than 1e-4, five times the tolerance of logits."""
    with np.load(MODELS / "generated.npz", allow_pickle=False) as file:
        expected = file[case]
    model = load_model(folder_of(case, tmp_path))
    assert generate(model, read(case)[2]["tokens"][:12], len(expected)).tolist() == expected.tolist()


def test_float64_parameters_and_residual_stream(tmp_path, x64):
    _, _, golden = read("llama-biases-linear")
    model = load_model(folder_of("llama-biases-linear", tmp_path), dtype=jnp.float64)
    got = logits(model, golden["tokens"][None])[0]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, golden["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", EXAMPLES)
def test_shards_equal_one_file(case, tmp_path):
    config, weights, _ = read(case)
    one, three = write(tmp_path / "one", config, weights), write(tmp_path / "three", config, weights, shards=3)
    assert same(load_model(one).params, load_model(three).params)


def test_weights_of_pytorch(tmp_path):
    """As `torch.save` writes them, the tied unembedding sharing its storage; safetensors come first where both are."""
    config, weights, golden = read("mistral-whole")
    folder = write(tmp_path / "x", config, {"none": np.ones(1)})
    shutil.copy(MODELS / "mistral-whole.bin", folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="missing tensors"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    model = load_model(folder)
    assert same(model.params, load_model(write(tmp_path / "y", config, weights)).params)
    np.testing.assert_allclose(logits(model, golden["tokens"][None])[0], golden["logits"], rtol=0, atol=TOLERANCE)


def test_shards_of_pytorch(tmp_path):
    config, weights, _ = read("mistral-whole")
    expected = load_model(write(tmp_path / "a", config, weights)).params
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(MODELS / "mistral-whole.bin", folder / "pytorch_model-00001-of-00001.bin")
    index = dict.fromkeys([*weights, "lm_head.weight"], "pytorch_model-00001-of-00001.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert same(load_model(folder).params, expected)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index | {"more": "gone.bin"}}))
    with pytest.raises(InputError, match=r"'gone\.bin', which is not there"):
        load_model(folder)


@pytest.mark.parametrize("case", EXAMPLES)
def test_names_without_prefix_and_known_buffers(case, tmp_path):
    """Files saved by the bare model class have no prefix; older ones carry masks and rotary frequencies."""
    config, weights, _ = read(case)
    prefix = {"gpt2": "transformer.", "neox": "gpt_neox.", "llama": "model."}[case.split("-")[0]]
    assert any(n.startswith(prefix) for n in weights)
    buffers = {
        "gpt2": ("h.0.attn.bias", "h.2.attn.masked_bias"),
        "neox": ("layers.1.attention.bias", "layers.0.attention.masked_bias", "layers.2.attention.rotary_emb.inv_freq"),
        "llama": ("layers.0.self_attn.rotary_emb.inv_freq",),
    }[case.split("-")[0]]
    bare = {n.removeprefix(prefix): w for n, w in weights.items()} | {b: np.ones((1, 2), np.uint8) for b in buffers}
    expected = load_model(write(tmp_path / "a", config, weights)).params
    assert same(load_model(write(tmp_path / "b", config, bare)).params, expected)


@pytest.mark.parametrize(("dtype", "eps"), [(ml_dtypes.bfloat16, 2**-8), (np.float16, 2**-11), (np.float64, 2**-24)])
def test_files_of_other_dtypes(dtype, eps, tmp_path):
    config, weights, _ = read("gpt2-plain")
    expected = load_model(write(tmp_path / "a", config, weights)).params
    got = load_model(write(tmp_path / "b", config, {n: w.astype(dtype) for n, w in weights.items()})).params
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=eps, atol=1e-6)


def test_parameters_in_bfloat16(tmp_path):
    folder = folder_of("llama-mha", tmp_path)
    got, expected = load_model(folder, dtype=jnp.bfloat16).params, load_model(folder).params
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert x.dtype == jnp.bfloat16
        assert np.array_equal(x, y.astype(jnp.bfloat16))


def test_a_tied_model_may_bring_an_equal_unembedding(tmp_path):
    config, weights, _ = read("llama-gqa-llama3")
    embed = weights["model.embed_tokens.weight"]
    folder = write(tmp_path / "a", config, weights | {"lm_head.weight": embed.copy()})
    assert load_model(folder).params.unembed is None
    folder = write(tmp_path / "b", config, weights | {"lm_head.weight": embed + 1})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        load_model(folder)


@pytest.mark.parametrize("case", EXAMPLES)
def test_saving_and_loading_back(case, tmp_path):
    model = load_model(folder_of(case, tmp_path))
    save_model(model, tmp_path / "saved")
    back = load_model(tmp_path / "saved")
    assert back.cfg == model.cfg
    assert (back.name, back.tokenizer) == (case, None)
    assert same(back.params, model.params)
    with pytest.raises(ValueError, match="exists"):
        save_model(model, tmp_path / "saved")


def test_a_saved_model_keeps_its_tokenizer(tmp_path):
    pytest.importorskip("glassllm")
    model = load_model("glassllm")
    save_model(model, tmp_path / "saved")
    back = load_model(str(tmp_path / "saved")).tokenizer
    assert back.encode("It was late.") == model.tokenizer.encode("It was late.")
    assert (back.bos_id, back.eos_id, back.adds_bos) == (2, 3, False)
    (tmp_path / "saved" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        load_model(tmp_path / "saved")


def test_an_interrupted_or_foreign_checkpoint_is_refused(tmp_path):
    folder = folder_of("llama-mha", tmp_path)
    save_model(load_model(folder), tmp_path / "saved")
    (tmp_path / "saved" / "commit_success.txt").unlink()
    with pytest.raises(ValueError, match="complete checkpoint"):
        load_model(tmp_path / "saved")


SHARDED = """
import sys, jax, numpy as np
from tcircuits.models.families import FAMILIES
from tcircuits.models.forward import forward
from tcircuits.models.generate import generate
from tcircuits.models.loading import load_model
from tcircuits.models.model import save_model
from tcircuits.parallel import make_mesh
folder, saved = sys.argv[1:]
whole = load_model(folder)
tokens = np.arange(24)[None] % 48
for shape in ((1, 8), (2, 4), (4, 2)):
    model = load_model(folder, mesh=make_mesh(shape))
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(whole.params), strict=True):
        assert np.array_equal(a, b)
        assert len(a.sharding.device_set) == 8
    w_in = model.params.blocks.mlp.w_in
    assert w_in.addressable_shards[0].data.shape[2] == w_in.shape[2] // shape[1], "neurons are split"
    if shape == (2, 4):
        run = jax.jit(forward, static_argnums=0)
        a, b = (run(m.cfg, m.params, tokens).logits for m in (model, whole))
        assert float(abs(np.asarray(a) - np.asarray(b)).max()) < 2e-5
save_model(model, saved)
for mesh in (None, make_mesh((2, 4))):
    back = load_model(saved, mesh=mesh)
    for a, b in zip(jax.tree.leaves(back.params), jax.tree.leaves(whole.params), strict=True):
        assert np.array_equal(a, b)
print("same")
"""


def test_sharded_loading_equals_unsharded(tmp_path, run_python):
    folder = folder_of("llama-gqa-llama3", tmp_path)
    done = run_python(["-c", SHARDED, str(folder), str(tmp_path / "saved")], devices=8)
    assert "same" in done.stdout


def test_reading_holds_one_array_more_than_the_parameters(tmp_path):
    """Tensors are read one by one, and only after all headers were checked."""
    from tcircuits.models.assemble import assemble, plan
    from tcircuits.models.families import config_from_hf
    from tcircuits.models.hf_folder import open_folder
    from tcircuits.models.source import Source

    source = open_folder(folder_of("gpt2-plain", tmp_path))
    order = []

    def read_one(name):
        order.append(name)
        return source.read(name)

    watched = Source(source.name, source.where, source.config, source.headers, read_one, source.tokenizer)
    cfg = config_from_hf(source.config)
    filling = plan(cfg, watched)
    assert order == []
    assemble(cfg, watched, filling, jnp.float32, None)
    assert set(order) == set(source.headers)
    fused = [n for n in source.headers if "c_attn" in n]
    assert len(order) == len(source.headers) + 2 * len(fused)  # each of the three reads its part


def test_names_and_paths(tmp_path):
    folder = folder_of("llama-mha", tmp_path)
    assert load_model(folder).name == "llama-mha"
    assert load_model(f"{folder}/").name == "llama-mha"
    assert load_model(str(folder)).tokenizer is None


def test_a_hub_repository_is_downloaded_and_loaded(tmp_path, monkeypatch):
    import huggingface_hub

    folder = folder_of("llama-mha", tmp_path)
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("some-owner/some-model").name == "some-owner/some-model"
    ((repository, patterns),) = asked
    assert repository == "some-owner/some-model"
    assert "config.json" in patterns
    assert not any(p.endswith((".bin", ".py", ".pt")) or p == "*" for p in patterns)


def test_config_is_plain_json_on_disk(tmp_path):
    from tcircuits import checkpoint

    model = load_model(folder_of("llama-gqa-llama3", tmp_path))
    save_model(model, tmp_path / "saved")
    about = checkpoint.metadata(tmp_path / "saved", format_name="tcircuits.model", version=1)
    assert json.loads(about["config"])["rope_scaling"]["factor"] == 8.0
    with pytest.raises(ValueError, match="version 2"):
        checkpoint.metadata(tmp_path / "saved", format_name="tcircuits.model", version=2)

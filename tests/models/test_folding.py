"""Folded models: the same log-probabilities, from the NumPy oracle and from the forward pass; what is refused."""

from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.models.folding import fold, fold_params
from tcircuits.models.forward import MlpHook, forward_one
from tcircuits.models.loading import load_model
from tcircuits.models.model import save_model
from tcircuits.models.params import abstract
from tcircuits.types import InputError
from tests.models.folders import MODELS, folder_of, read

from .. import bridge
from ..reference import builders
from ..reference import model as oracle
from ..tiers import tiered

pytestmark = pytest.mark.usefixtures("quick_compile")

GOLDEN = ("gpt2-by-layer", "neox-sequential", "mistral-window", "qwen2-window", "qwen3-bias-window", "smollm3-biases",
          "olmo-biases", "olmo2-biases", "gemma2-caps", "gemma3_text-cap")  # fmt: skip


def case_of(family: str) -> builders.Case:
    cfg = builders.model_config(family)
    tokens = np.random.default_rng(100).integers(0, cfg.d_vocab, size=(2, 6))
    return builders.Case(family, cfg, builders.make_params(cfg), None, tokens)


def nested(tree):
    """Parameters as the oracle has them."""
    if is_dataclass(tree):
        return {f.name: nested(getattr(tree, f.name)) for f in fields(tree)}
    return None if tree is None else np.asarray(tree)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("family", builders.FAMILIES)
def test_log_probabilities_are_the_oracle_s(family, x64):
    """The oracle runs both models; the folded tree is the one that its configuration asks for."""
    case = case_of(family)
    model = bridge.model(case)
    folded = fold(model)
    shapes = jax.tree.map(lambda x: x.shape, folded.params)
    assert shapes == jax.tree.map(lambda x: x.shape, abstract(folded.cfg))
    cfg = SimpleNamespace(**vars(folded.cfg))
    for tokens in case.tokens:
        expected = oracle.run(case.cfg, case.params, tokens)
        got = oracle.run(cfg, nested(folded.params), tokens)
        np.testing.assert_allclose(log_softmax(got.logits), log_softmax(expected.logits), rtol=0, atol=1e-12)
        for site in ("pattern", "normalized"):
            if site in expected.sites:
                np.testing.assert_allclose(got.sites[site], expected.sites[site], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", tiered(GOLDEN, ("gpt2-by-layer", "olmo2-biases", "gemma2-caps")))
def test_log_probabilities_of_every_loader_s_family(case, tmp_path, x64):
    tokens = read(case)[2]["tokens"][None]
    model = load_model(folder_of(case, tmp_path), dtype=jnp.float64)
    folded = fold(model)
    expected, got = (bridge.logits(m.cfg, m.params, tokens) for m in (model, folded))
    np.testing.assert_allclose(log_softmax(got), log_softmax(expected), rtol=0, atol=1e-12)
    assert np.abs(np.asarray(got) - np.asarray(expected)).max() > 1e-3 or model.cfg.final_softcap is not None


@pytest.mark.parametrize("family", tiered(["gpt2", "neox", "llama", "gemma2"], ["gpt2"]))
def test_in_float32(family):
    """Each of some hundred roundings is 6e-8 of values of a few units."""
    case = case_of(family)
    model = bridge.model(case, "float32")
    expected, got = (bridge.logits(m.cfg, m.params, case.tokens) for m in (model, tc.fold(model)))
    np.testing.assert_allclose(log_softmax(got), log_softmax(expected), rtol=0, atol=1e-5)


def test_what_a_folded_gpt2_is(x64):
    """Every array by its definition, one head and one neuron at a time."""
    case = case_of("gpt2")
    p, folded = case.params, nested(fold(bridge.model(case)).params)
    b, got = p["blocks"], folded["blocks"]
    for layer in range(case.cfg.n_layers):
        g1, b1 = b["norm1"]["w"][layer], b["norm1"]["b"][layer]
        g2, b2 = b["norm2"]["w"][layer], b["norm2"]["b"][layer]
        written = b["attn"]["b_o"][layer].copy()
        for h in range(case.cfg.n_heads):
            w = b["attn"]["w_k"][layer, :, h]
            read_by = np.diag(g1) @ w
            np.testing.assert_allclose(got["attn"]["w_k"][layer, :, h], read_by - read_by.mean(0), atol=1e-14)
            np.testing.assert_allclose(got["attn"]["b_k"][layer, h], b["attn"]["b_k"][layer, h] + b1 @ w, atol=1e-14)
            values = b["attn"]["b_v"][layer, h] + b1 @ b["attn"]["w_v"][layer, :, h]
            written += values @ b["attn"]["w_o"][layer, h]
        np.testing.assert_allclose(got["attn"]["b_o"][layer], written - written.mean(), atol=1e-13)
        assert np.abs(got["attn"]["b_v"][layer]).max() == 0
        for neuron in range(case.cfg.d_mlp):
            w = b["mlp"]["w_in"][layer, :, neuron]
            np.testing.assert_allclose(got["mlp"]["w_in"][layer, :, neuron], g2 * w - (g2 * w).mean(), atol=1e-14)
            bias = b["mlp"]["b_in"][layer, neuron] + b2 @ w
            np.testing.assert_allclose(got["mlp"]["b_in"][layer, neuron], bias, atol=1e-14)
            out = b["mlp"]["w_out"][layer, neuron]
            np.testing.assert_allclose(got["mlp"]["w_out"][layer, neuron], out - out.mean(), atol=1e-14)
    w_u, final = p["embed"].T, p["final_norm"]
    read_by = np.diag(final["w"]) @ w_u
    read_by = read_by - read_by.mean(0)
    np.testing.assert_allclose(folded["unembed"], read_by - read_by.mean(1, keepdims=True), atol=1e-14)
    bias = final["b"] @ w_u
    np.testing.assert_allclose(folded["b_unembed"], bias - bias.mean(), atol=1e-14)
    np.testing.assert_allclose(folded["embed"], p["embed"] - p["embed"].mean(1, keepdims=True), atol=1e-14)
    for norm in (got["norm1"], got["norm2"], folded["final_norm"]):
        assert (norm["w"].min(), norm["w"].max(), np.abs(norm["b"]).max()) == (1, 1, 0)


LENS = {
    "embed.W_E": "embed", "pos_embed.W_pos": "pos_embed", "unembed.W_U": "unembed", "unembed.b_U": "b_unembed",
    "mlp.W_in": "mlp.w_in", "mlp.b_in": "mlp.b_in", "mlp.W_out": "mlp.w_out", "mlp.b_out": "mlp.b_out",
    **{f"attn.{kind}_{which}": f"attn.{kind.lower()}_{which.lower()}" for kind in "Wb" for which in "QKVO"},
}  # fmt: skip


@pytest.mark.parametrize("case", ["gpt2-plain", "neox-parallel"])
def test_every_array_is_that_of_transformer_lens(case, tmp_path):
    """In float32 on both sides: sums of some dozens of products of about one."""
    with np.load(MODELS / "folded.npz", allow_pickle=False) as file:
        theirs = {n.removeprefix(f"{case}:"): file[n] for n in file.files if n.startswith(f"{case}:")}
    params = nested(fold(load_model(folder_of(case, tmp_path))).params)
    assert len(theirs) == (16 if case == "gpt2-plain" else 15)
    for name, expected in theirs.items():
        got, parts = params, LENS[name.removeprefix("blocks.1.")].split(".")
        for part in (["blocks"] if name.startswith("blocks.") else []) + parts:
            got = got[part]
        got = got[1] if name.startswith("blocks.") else got
        got = np.moveaxis(got, 1, 0) if name.endswith(("W_Q", "W_K", "W_V")) else got
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5, err_msg=name)


def test_what_transcoders_of_the_folded_model_read_and_should_write(x64):
    """The input site is the same in both models; what the MLP writes differs by its mean over the width."""
    case = case_of("gpt2")
    model = bridge.model(case)

    def look(layer, state, reads, written):
        return written, state, (reads["normalized"], reads["mlp_in"], written)

    hook = MlpHook("mlp_out", (), look)
    tokens = jnp.asarray(case.tokens[0])
    raw, folded = (forward_one(m.cfg, m.params, tokens, hook=hook)[2] for m in (model, fold(model)))
    np.testing.assert_allclose(folded[0], raw[0], atol=1e-12)
    np.testing.assert_allclose(folded[1], raw[0], atol=1e-12)
    np.testing.assert_allclose(folded[2], raw[2] - raw[2].mean(-1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("option", ["norms", "centre_writing", "centre_unembed", "value_biases"])
def test_each_option_alone(option, x64):
    case = case_of("gpt2")
    model = bridge.model(case)
    options = dict.fromkeys(("norms", "centre_writing", "centre_unembed", "value_biases"), False) | {option: True}
    folded = fold(model, **options)
    expected, got = (oracle.run(c, nested(m.params), case.tokens[0]) for c, m in (
        (case.cfg, model), (SimpleNamespace(**vars(folded.cfg)), folded)
    ))  # fmt: skip
    np.testing.assert_allclose(log_softmax(got.logits), log_softmax(expected.logits), rtol=0, atol=1e-12)
    assert folded.cfg.tied == (option == "value_biases")
    changed = {
        jax.tree_util.keystr(k, simple=True, separator=".")
        for k, x in jax.tree.leaves_with_path(replace(folded.params, unembed=None, b_unembed=None))
        if not np.array_equal(x, dict(jax.tree.leaves_with_path(model.params))[k])
    }
    prefixes = {
        "norms": ("blocks.norm", "blocks.attn", "blocks.mlp.w_in", "blocks.mlp.b_in", "final_norm"),
        "centre_writing": ("embed", "pos_embed", "blocks.attn.w_o", "blocks.attn.b_o", "blocks.mlp.w_out",
                           "blocks.mlp.b_out"),
        "centre_unembed": (),
        "value_biases": ("blocks.attn.b_v", "blocks.attn.b_o"),
    }[option]  # fmt: skip
    assert all(name.startswith(prefixes) for name in changed), changed
    assert bool(changed) == (option != "centre_unembed")
    if option == "norms":
        assert "blocks.attn.w_o" not in changed


def test_nothing_to_fold_leaves_a_model_as_it_is():
    case = case_of("toy")
    model = bridge.model(case, "float32")
    folded = fold(model, centre_unembed=False)
    assert folded.cfg == model.cfg
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (folded.params, model.params)), strict=True))


@pytest.mark.parametrize(
    ("family", "option", "why"),
    [
        ("llama", "centre_writing", r"norms \(rms\) do not subtract the mean"),
        ("toy", "centre_writing", r"norms \(none\)"),
        ("relu", "centre_writing", "norms on what is written"),
        ("gemma2", "centre_unembed", "logits are capped"),
    ],
)
def test_what_would_change_the_model_is_refused(family, option, why):
    model = bridge.model(case_of(family), "float32")
    with pytest.raises(InputError, match=f"{option}=True would change the model: .*{why}"):
        fold_params(model.cfg, model.params, **{option: True})


def test_folding_again_changes_nothing_and_a_folded_model_can_be_saved(tmp_path):
    model = fold(bridge.model(case_of("gpt2"), "float32"))
    again = fold(model)
    assert again.cfg == model.cfg
    for a, b in zip(*map(jax.tree.leaves, (again.params, model.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    save_model(model, tmp_path / "saved")
    assert load_model(tmp_path / "saved").cfg == model.cfg


def test_under_jit_and_in_bfloat16():
    model = bridge.model(case_of("neox"), "bfloat16")
    cfg, params = fold_params(model.cfg, model.params)
    traced = jax.jit(lambda p: fold_params(model.cfg, p)[1])(model.params)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert jax.tree.structure(traced) == jax.tree.structure(params) == jax.tree.structure(abstract(cfg))

"""Long prompts: patterns computed in blocks where they are used, decoder rows looked up, few streams at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.attribution import memory
from tcircuits.attribution.frozen import freeze
from tcircuits.attribution.rows import effects
from tcircuits.attribution.sketch import influence_sketch
from tcircuits.attribution.targets import logit_vectors, output_targets
from tcircuits.models import blockwise, forward
from tcircuits.models.blockwise import Scores, mix_down, mix_up, pattern_rows, totals
from tcircuits.planning.sources import model_of
from tcircuits.transcoders.config import TranscoderConfig

from .. import bridge
from ..reference import builders
from ..tiers import tiered
from . import compare

CASES = [
    ("llama", "plt-jumprelu"), ("gemma2", "neurons"), ("gpt2", "clt-skip"), ("neox", "plt-skip"),
    ("mistral", "plt-topk"), ("encoder", "neurons"), ("relu", "some-filled"),
]  # fmt: skip
FAMILIES = ["llama", "gemma2", "mistral", "encoder", "gpt2"]


@pytest.fixture
def blocks(monkeypatch):
    """Prompts of a few tokens are long, and blocks have three positions at most."""
    monkeypatch.setattr(memory, "LEAN_BYTES", 0.0)
    monkeypatch.setattr(blockwise, "BLOCK", 3)


@pytest.mark.parametrize(("family", "name"), tiered(CASES, CASES[:3]))
@pytest.mark.usefixtures("blocks")
def test_graphs_are_the_oracles(family, name):
    both = compare.oracle(family, name)
    graph = compare.trace(both.case, both.targets, "attribute")
    assert max(compare.gaps(graph, both.a, compare.row_sizes(both.a)).values()) <= 1e-11


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_in_blocks_are_those_of_the_forward_pass(family, blocks, x64):
    case = builders.make_case(family, "neurons", length=7)
    m, _ = bridge.both(case, "float64")
    held = [freeze(m.cfg, m.params, tc.load_transcoders("neurons", model=m), case.tokens, lean=x).hold for x in (0, 1)]
    whole, scores = held[0].pattern, held[1].pattern
    assert isinstance(scores, Scores)
    assert whole.shape[-1] == 7  # three blocks of three, the last one not full
    rng, (G, R, K) = np.random.default_rng(0), (m.cfg.n_kv_heads, m.cfg.n_heads // m.cfg.n_kv_heads, m.cfg.d_head)
    for layer, pattern in enumerate(np.asarray(whole)):
        one = jax.tree.map(lambda x, i=layer: x[i], scores)
        at = np.array([6, 2, 2])
        np.testing.assert_allclose(pattern_rows(m.cfg, one, at, 5), pattern[:, at, :5], atol=1e-14)
        np.testing.assert_allclose(pattern_rows(m.cfg, pattern, at), pattern[:, at])
        v, grouped = rng.normal(size=(G, 7, 2 * K)), pattern.reshape(G, R, 7, 7)
        wanted = np.einsum("grts,gsx->grtx", grouped, v)
        np.testing.assert_allclose(mix_up(m.cfg, one, jnp.asarray(v)), wanted, atol=1e-14)
        for n in (7, 4) if m.cfg.causal else (7,):  # a cone's first positions
            read = rng.normal(size=(G, R, n, 2))
            wanted = np.einsum("grts,grtx->gsx", grouped[:, :, :n, :n], read)
            np.testing.assert_allclose(mix_down(m.cfg, one, jnp.asarray(read)), wanted, atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_forward_passes_attend_in_blocks(family, monkeypatch, x64):
    case = builders.make_case(family, "neurons", length=7)
    m, _ = bridge.both(case, "float64")
    tokens = jnp.asarray(case.tokens)[None]
    mask = jnp.arange(7)[None] >= 2  # padded on the left
    wanted = tc.forward(m.cfg, m.params, tokens, mask=mask, sites=("z", "pattern"))
    monkeypatch.setattr(blockwise, "BLOCK", 3)
    monkeypatch.setattr(forward, "LONG", 1)
    found = tc.forward(m.cfg, m.params, tokens, mask=mask, sites=("z",))
    np.testing.assert_allclose(found.logits[:, 2:], wanted.logits[:, 2:], atol=1e-12)
    np.testing.assert_allclose(found.acts["z"][:, :, 2:], wanted.acts["z"][:, :, 2:], atol=1e-13)


def test_no_pattern_of_the_whole_prompt_is_made():
    """Of 96 tokens in blocks of 16, no array of a compiled program has 96 x 96 numbers a head."""
    m = tc.load_model("tiny")
    d = tc.load_transcoders("tiny-transcoders", model=m)
    T, H = 96, m.cfg.n_heads
    tokens = jnp.zeros(T, jnp.int32)

    def makes_it(lean):
        jaxpr = jax.make_jaxpr(lambda p, d, t: freeze(m.cfg, p, d, t, n_slots=16, lean=lean))(m.params, d, tokens)
        return f"f32[{H},{T},{T}]" in str(jaxpr) or f"f32[{m.cfg.n_kv_heads},{H // m.cfg.n_kv_heads},{T},{T}]" in str(
            jaxpr
        )

    assert makes_it(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "BLOCK", 16)
        patch.setattr(forward, "LONG", 1)
        assert not makes_it(True)


@pytest.mark.usefixtures("blocks")
def test_the_sketch_and_effects_choose_as_they_do_with_patterns(x64):
    case = builders.make_case("llama", "clt-relu", length=7)
    m, d = bridge.both(case, "float64")
    ids, last = jnp.asarray([1, 2, 3]), jnp.full(3, 6)

    def scores(lean):
        frozen = freeze(m.cfg, m.params, d, jnp.asarray(case.tokens), lean=lean)
        vec, const = logit_vectors(m.params, ids)
        targets = output_targets(m.cfg, m.params, frozen, vec, const, last, jnp.asarray([0.5, 0.3, 0.2]))
        return [
            influence_sketch(m.cfg, m.params, d, frozen, targets, n_probes=8),
            effects(m.cfg, m.params, d, frozen, targets),
        ]

    for found, wanted in zip(scores(True), scores(False), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-14)
        assert np.asarray(wanted).max() > 0


def test_totals_are_logarithms_of_denominators(blocks, x64):
    cfg = bridge.both(builders.make_case("gemma2", "neurons"), "float64")[0].cfg
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(7, cfg.n_heads, cfg.d_head)), rng.normal(size=(7, cfg.n_kv_heads, cfg.d_head))
    raw = np.einsum("thk,shk->hts", q, np.repeat(k, cfg.n_heads // cfg.n_kv_heads, 1)) * cfg.query_scale
    raw = cfg.attn_softcap * np.tanh(raw / cfg.attn_softcap)
    back = np.arange(7)[:, None] - np.arange(7)
    wanted = np.log(np.where((back >= 0) & (back < 2), np.exp(raw), 0).sum(-1))
    np.testing.assert_allclose(totals(cfg, jnp.asarray(q), jnp.asarray(k), jnp.asarray(2)), wanted, atol=1e-13)


def test_what_counts_as_long():
    def lean(model, kind, length, slots, platform="cpu"):
        cfg = model_of(model)
        d = TranscoderConfig(kind, cfg.n_layers, cfg.d_model, 16384, tuple(range(cfg.n_layers)))
        return memory.lean(cfg, d, length, slots, platform)

    assert not lean("gpt2", "transcoder", 1024, 32)  # 600 MB of patterns, 1.2 GB of rows
    assert lean("gemma-2-2b", "neurons", 2300, 9216)
    assert not lean("gemma-2-2b", "transcoder", 64, 128)
    assert lean("gemma-2-2b", "clt", 64, 128)  # 26 GB of rows
    assert not lean("gemma-2-2b", "clt", 64, 128, "gpu")
    assert memory.streams(8192, 576) == 64
    assert memory.streams(10**9, 4096) == 8

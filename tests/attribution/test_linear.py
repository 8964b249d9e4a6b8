"""The maps of the frozen network and their transposes: <J x, y> = <x, J^T y>, and the oracle's maps."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.attribution.descent import Descent
from tcircuits.attribution.frozen import read_up, skip_up
from tcircuits.attribution.linear import block_down, block_up, layer, norm_down, norm_up
from tcircuits.attribution.sweep import Sweep

from .. import bridge
from ..reference import model as oracle
from . import compare

CASES = [
    ("gpt2", "plt-resid"),
    ("neox", "plt-relu"),
    ("llama", "neurons"),
    ("gemma2", "plt-normalized"),
    ("relu", "plt-raw"),
]
LAYER = 1


@cache
def products(family: str, name: str) -> dict[str, tuple[float, float]]:
    """<J x, y> and <x, J^T y> of every map of one layer, for random x and y; in one program."""
    both = compare.oracle(family, name)
    m, d = bridge.both(both.case)
    T, D, cfg = both.a.length, m.cfg.d_model, m.cfg
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, T, D))

    @jax.jit
    def run(params, d, tokens, x, y):
        frozen = compare.frozen_of(cfg, params, d, tokens)
        sweep, first = Sweep(cfg, params, d, frozen), Descent(cfg, params, d, frozen, T)
        block, h = sweep.at(LAYER)
        attention = (h.pattern, h.norm1, h.norm1_post)
        up = {
            "attention": lambda x: block_up(cfg, block, *attention, x, False),
            "attention, positions first": lambda x: first.attention_up(LAYER, x[:, None])[:, 0],
            "norm 1": lambda x: norm_up(cfg, block.norm1, h.norm1, x),
            "norm 2": lambda x: norm_up(cfg, block.norm2, h.norm2, x),
            "reading": lambda x: read_up(cfg, d, block.norm2, h.norm2, x, False),
            "skip": lambda x: skip_up(d, LAYER, True, read_up(cfg, d, block.norm2, h.norm2, x, False)) + 0 * x,
        }
        down = {
            "attention": lambda y: block_down(cfg, block, *attention, y[None])[0],
            "attention, positions first": lambda y: first.attention(LAYER, y[:, None])[:, 0],
            "norm 1": lambda y: norm_down(cfg, block.norm1, h.norm1, y),
            "norm 2": lambda y: norm_down(cfg, block.norm2, h.norm2, y),
            "reading": lambda y: sweep.to_stream(LAYER, y[None], d.cfg.reads)[0],
            "skip": lambda y: (sweep.skip(LAYER, y[None]) + 0 * y[None])[0],
        }
        found = {k: ((up[k](x) * y).sum(), (x * down[k](y)).sum()) for k in up}
        r = jnp.asarray(rng.normal(size=frozen.value.shape[1:]))[:, None]
        read, written = first.features_up(LAYER, x[:, None]), first.features(LAYER, r)[:, 0]
        found["features"] = ((read * r).sum(), (x * written).sum())
        return found

    found = run(m.params, d, jnp.asarray(both.case.tokens, jnp.int32), x, y)
    return {k: (float(a), float(b)) for k, (a, b) in found.items()}


@pytest.mark.parametrize(("family", "name"), CASES)
def test_down_is_the_transpose_of_up(family, name, x64):
    found = products(family, name)
    for name, (forward, backward) in found.items():
        assert forward == pytest.approx(backward, rel=1e-11, abs=1e-12), name
    assert found["attention"][0] != 0
    assert (found["skip"][0] != 0) == (family in ("gpt2", "relu"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "relu"])
def test_up_is_the_oracle_s_attention_with_frozen_pattern(family, x64):
    both = compare.oracle(family, "plt-raw" if family == "relu" else "plt-relu" if family != "gemma2" else "plt-raw")
    m, _ = bridge.both(both.case)
    frozen, blocks = both.here.frozen, both.case.params["blocks"]
    part = {k: oracle.layer_of(v, LAYER) for k, v in blocks.items()}
    x = np.random.default_rng(1).normal(size=(both.a.length, m.cfg.d_model))
    scale = {k: v[LAYER] for k, v in frozen.scales.items() if k != "final_norm"}

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return oracle.gain(part[name], oracle.centre(m.cfg, x) / scale[name][:, None]) if part[name] else x

    v = oracle.plus(np.einsum("td,dhk->thk", norm("norm1", x), part["attn"]["w_v"]), part["attn"]["b_v"])
    z = oracle.mix(both.case.cfg, frozen.pattern[LAYER], v)
    expected = norm("norm1_post", oracle.plus(np.einsum("thk,hkd->td", z, part["attn"]["w_o"]), part["attn"]["b_o"]))

    @jax.jit
    def got(params, pattern, norm1, norm1_post, x):
        block = layer(replace(params.blocks, mlp=None), LAYER)
        return block_up(m.cfg, block, pattern, norm1, norm1_post, x, True)

    made = got(m.params, frozen.pattern[LAYER], scale["norm1"], scale["norm1_post"], x)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-13)

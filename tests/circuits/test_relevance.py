"""Relevance patching against a NumPy forward mode of the frozen model: perturbations carried layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.scores import unit_scores
from tcircuits.circuits.units import units_of
from tcircuits.models.config import ModelConfig, with_relevance
from tcircuits.models.forward import forward

from .cases import random_behaviour
from .test_edges import writers
from .test_running import sized

pytestmark = pytest.mark.usefixtures("quick_compile")
SITES = ("resid_pre", "resid_mid", "q", "k", "v", "pattern", "z", "mlp_in", "mlp_out", "resid_post")


class Frozen:
    """A Llama-like model without rotary whose norms' scales and activation slopes are those of one prompt."""

    def __init__(self, model, tokens):
        self.cfg, self.p = model.cfg, jax.tree.map(lambda a: np.asarray(a, np.float64), model.params)
        acts = forward(model.cfg, model.params, jnp.asarray(tokens)[None], sites=SITES).acts
        self.acts = {k: np.asarray(a[:, 0], np.float64) for k, a in acts.items()}

    def norm(self, dx, stream, w):
        return dx / np.sqrt((stream**2).mean(-1, keepdims=True) + self.cfg.norm_eps) * w

    def metric_change(self, right, wrong, *, unit=None, heard=None, patterns=False):
        """What the metric gains from a change of a unit (kind, layer, head, change) or of what one reader hears.

        `heard` is (layer, role, head, change); a change is [T, ...].
        """
        b, acts = self.p.blocks, self.acts
        dx = np.zeros_like(acts["resid_pre"][0])
        for layer in range(self.cfg.n_layers):
            told = dict.fromkeys("qkv", dx)
            extra = None
            if heard is not None and heard[0] == layer and heard[1] in "qkv":
                extra = heard
            dz = self.attention(layer, told, extra, patterns)
            if unit is not None and unit[:2] == ("head", layer):
                dz[:, unit[2]] += unit[3]
            middle = dx + np.einsum("THK,HKD->TD", dz, b.attn.w_o[layer])
            into = middle if heard is None or heard[:2] != (layer, "mlp") else middle + heard[3]
            dh = self.norm(into, acts["resid_mid"][layer], b.norm2.w[layer])
            gate, up = (acts["mlp_in"][layer] @ w[layer] for w in (b.mlp.w_gate, b.mlp.w_in))
            slope = 1 / (1 + np.exp(-gate))
            hidden = 0.5 * (dh @ b.mlp.w_gate[layer] * slope * up + gate * slope * (dh @ b.mlp.w_in[layer]))
            wrote = hidden @ b.mlp.w_out[layer]
            if unit is not None and unit[:2] == ("mlp", layer):
                wrote = wrote + unit[3]
            dx = middle + wrote
        if heard is not None and heard[1] == "logits":
            dx = dx + heard[3]
        unembed = self.p.embed.T if self.p.unembed is None else self.p.unembed
        logits = (self.norm(dx, acts["resid_post"][-1], self.p.final_norm.w) @ unembed)[-1]
        return logits[right[right >= 0]].mean() - logits[wrong[wrong >= 0]].mean()

    def attention(self, layer, told, extra, patterns):
        """Changes of what heads read, [T, H, K], for what queries, keys and values are told."""
        b, acts, H, G = self.p.blocks.attn, self.acts, self.cfg.n_heads, self.cfg.n_kv_heads
        pattern, w = acts["pattern"][layer], {"q": b.w_q, "k": b.w_k, "v": b.w_v}
        d = {}
        for role in "qkv":
            dh = self.norm(told[role], acts["resid_pre"][layer], self.p.blocks.norm1.w[layer])
            d[role] = np.einsum("TD,DHK->THK", dh, w[role][layer])
        if extra is not None:
            _, role, head, change = extra
            dh = self.norm(change, acts["resid_pre"][layer], self.p.blocks.norm1.w[layer])
            d[role][:, head] += dh @ w[role][layer][:, head]
        group = np.arange(H) // (H // G)
        dz = np.einsum("HTS,SHK->THK", pattern, d["v"][:, group])
        if patterns:
            q, k, v = (acts[name][layer] for name in "qkv")
            ds = np.einsum("THK,SHK->HTS", d["q"], k[:, group]) + np.einsum("THK,SHK->HTS", q, d["k"][:, group])
            ds = ds * self.cfg.query_scale
            dp = pattern * (ds - (pattern * ds).sum(-1, keepdims=True))
            dz = dz + np.einsum("HTS,SHK->THK", dp, v[:, group])
        return dz


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        yield sized("llama", position="none", rotary_dim=0)


def test_values_are_those_of_the_model(model, x64):
    tokens = jnp.arange(6)[None]
    for edges in (False, True):
        cfg = with_relevance(model.cfg, edges=edges)
        assert cfg != model.cfg
        np.testing.assert_array_equal(
            forward(cfg, model.params, tokens).logits, forward(model.cfg, model.params, tokens).logits
        )
    assert not ModelConfig.relevance


def test_units_of_a_frozen_model(model, x64):
    behaviour, units = random_behaviour(model), units_of(model.cfg, ("head", "mlp"))
    found, p = unit_scores(model, behaviour, units, method="relp"), behaviour["attribution"]
    assert (found.forwards, found.backwards) == (3 * 3, 3)
    for i in range(p.n):
        own, other = Frozen(model, p.clean[i]), Frozen(model, p.other[i])
        for unit in range(units.n):
            kind, layer, head, _ = units.where(unit)
            site = "z" if kind == "head" else "mlp_out"
            change = (own.acts[site] - other.acts[site])[layer]
            change = change[:, head] if kind == "head" else change
            expected = own.metric_change(p.right[i], p.wrong[i], unit=(kind, layer, head, change))
            np.testing.assert_allclose(found.by_prompt[i, unit], expected, rtol=0, atol=1e-9)


def test_edges_of_a_frozen_model(model, x64):
    behaviour, edges = random_behaviour(model), edges_of(model.cfg)
    found, p = unit_scores(model, behaviour, edges, method="relp"), behaviour["attribution"]
    i, sizes = 1, set()
    own, gap = Frozen(model, p.clean[i]), writers(model, p.clean[i]) - writers(model, p.other[i])
    for unit in range(edges.n):
        reader, writer = edges.pairs[unit]
        name = edges.reader_name(int(reader)).split()
        layer = min(int(reader) // edges.readers, model.cfg.n_layers - 1)
        role, head = (name[2], int(name[1].split(".")[1])) if name[0] == "head" else (name[0], 0)
        change = own.metric_change(p.right[i], p.wrong[i], heard=(layer, role, head, gap[writer]), patterns=True)
        np.testing.assert_allclose(found.by_prompt[i, unit], change, rtol=0, atol=1e-9)
        sizes.add((role, abs(change) > 1e-6))
    assert {(role, True) for role in ("q", "k", "v", "mlp", "logits")} <= sizes

"""Edits of features in the real model, with attention, norms and MLPs free or held, against the NumPy forward pass."""

import numpy as np
import pytest

from tests.interventions import lanes as ln
from tests.interventions.lanes import Lane
from tests.reference import attribution as at
from tests.reference import builders, dictionary, model
from tests.tiers import tiered

pytestmark = pytest.mark.usefixtures("quick_compile")

FREE, HELD = False, True
TABLE = [
    # family, dictionary, attention, norms
    ("gpt2", "plt-relu", FREE, FREE),
    ("gpt2", "neurons", HELD, FREE),
    ("neox", "plt-skip", HELD, FREE),
    ("neox", "clt-jumprelu", FREE, HELD),
    ("llama", "clt-relu", FREE, FREE),
    ("llama", "plt-topk", HELD, HELD),
    ("gemma2", "neurons", FREE, FREE),
    ("gemma2", "plt-raw", FREE, HELD),
    ("relu", "some-layers", HELD, FREE),
]


class Edited:
    """The oracle's forward pass with the edits of a lane, and the features it meets on the way."""

    def __init__(self, here, lane):
        self.here, self.lane, self.d, self.cfg = here, lane, here.d, here.cfg
        self.state = np.zeros((self.cfg.n_layers, here.length, self.cfg.d_model))
        self.values, self.linear = [], []

    def features(self, layer, reads):
        """(values, linear values) [T,F] of a layer; a neuron's gate is frozen in the linear ones."""
        d, p = self.d, model.layer_of(self.here.params["blocks"]["mlp"], layer)
        if dictionary.kind(d, layer) == "neurons":
            factor, h = model.neurons(self.cfg, p, reads["mlp_in"])
            clean, _ = model.neurons(self.cfg, p, self.here.run.sites["mlp_in"][layer])
            return factor * h, clean * h
        if dictionary.kind(d, layer) == "error":
            return (np.zeros((self.here.length, d.cfg.d_feature)),) * 2
        rows, offsets = dictionary.encoder(self.cfg, self.here.params, d, self.here.run, layer)
        pre = np.einsum("tfd,td->tf", rows, reads[d.cfg.reads]) + offsets
        threshold = d.array("threshold", d.cfg.layers.index(layer))
        return np.stack([dictionary.activate(d.cfg, one, threshold) for one in pre]), pre

    def output(self, layer, reads):
        """What the real MLP writes, or what it wrote on the clean prompt with its skip moved."""
        site, p = dictionary.writes(self.d, layer), self.here.params["blocks"]
        clean, w = self.here.run.sites, dictionary.skip(self.d, layer)
        if layer in self.lane.held:
            name = dictionary.reads(self.d, layer)
            moved = 0.0 if w is None else (reads[name] - clean[name][layer]) @ w
            return clean[site][layer] + moved
        raw = model.feed_forward(self.cfg, model.layer_of(p["mlp"], layer), reads["mlp_in"])
        post = model.layer_of(p["norm2_post"], layer)
        if site == "mlp_raw" or post is None:
            return raw
        return model.gain(post, model.centre(self.cfg, raw) / model.denominator(self.cfg, raw)[:, None])

    def __call__(self, layer, reads):
        written = self.output(layer, reads)
        value, linear = self.features(layer, reads)
        present = self.here.values[layer] if layer in self.lane.held else value
        value, now = value.copy(), present.copy()
        for mode in ("set", "add", "scale"):
            for at_layer, start, stop, f, x in (e[1:] for e in self.lane.features if e[0] == mode):
                if at_layer == layer:
                    part = slice(start, stop)
                    old = now[part, f].copy()
                    now[part, f] = {"set": x, "add": old + x, "scale": old * x}[mode]
                    value[part, f] = now[part, f]
        self.values.append(value)
        self.linear.append(linear)
        for out, weights in dictionary.decoders(self.here.params, self.d, layer):
            self.state[out] += (now - present) @ weights
        extra = np.zeros_like(written)
        for at_layer, p, v in self.lane.mlp:
            extra[p] += v if at_layer == layer else 0.0
        return dictionary.writes(self.d, layer), written + self.state[layer] + extra


def reference(here, lane, attention, norms, monkeypatch):
    """Logits, feature values and linear values of the lane; what is held is replayed from the clean run."""
    clean, order = here.run, []
    real = model.denominator

    def remember(cfg, x):
        order.append(real(cfg, x))
        return order[-1]

    with monkeypatch.context() as patch:
        patch.setattr(model, "denominator", remember)
        model.run(here.cfg, here.params, here.tokens)
    edited, again = Edited(here, lane), iter(order)
    with monkeypatch.context() as patch:
        if attention == HELD:
            patch.setattr(model, "pattern_of", lambda cfg, layer, q, k: clean.sites["pattern"][layer])
        if norms == HELD:
            patch.setattr(model, "denominator", lambda cfg, x: next(again))
        embed = sum(
            (np.eye(here.length)[p][:, None] * v for p, v in lane.embed), np.zeros((here.length, here.cfg.d_model))
        )
        r = model.run(here.cfg, here.params, here.tokens, mlp=edited, add_embed=embed)
    return r.logits, np.stack(edited.values), np.stack(edited.linear)


def lanes_of(here, rng):
    """Ablations, scalings, values of other runs, ranges, several layers at once, some MLPs held."""
    cfg, T, F = here.cfg, here.length, here.d.cfg.d_feature
    top = cfg.n_layers - 1

    def active():
        return here.features[rng.integers(len(here.features) // 2)]

    out = [Lane()]
    for mode, value in (("set", 0.0), ("scale", -1.5), ("add", 2.0), ("set", 0.7)):
        layer, p, f = active()
        out.append(Lane([(mode, layer, p, p + 1, f, value)]))
        out.append(Lane([(mode, layer, 1, T, f, value)], held=(top,)))
    layer = here.d.cfg.layers[0]
    many = [("set", layer, 0, T, int(f), 0.0) for f in rng.choice(F, 5, replace=False)]
    out.append(Lane([*many, ("scale", top if top in here.d.cfg.layers else layer, 2, 4, 3, 2.0)], held=(0,)))
    layer, p, f = here.features[-1]  # an edit where the stream has moved since the clean run
    first = ("add", here.d.cfg.layers[0], 0, T, int(here.features[0][2]), 3.0)
    out += [Lane([first, ("set", layer, p, p + 1, f, 0.25)], held=held) for held in ((), (int(layer),))]
    vector = rng.normal(size=(2, cfg.d_model))
    out.append(Lane([], [(0, 1, vector[0])], [(2, vector[1])]))
    return out


@pytest.mark.parametrize(("family", "name", "attention", "norms"), tiered(TABLE, [TABLE[i] for i in (0, 3, 5, 7)]))
def test_edited_runs_equal_the_reference(family, name, attention, norms, x64, monkeypatch):
    case, rng = builders.make_case(family, name), np.random.default_rng(4)
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    lanes = lanes_of(here, rng)
    got = ln.run(case, lanes, freeze_attention=attention, freeze_norms=norms)
    moved = []
    for i, lane in enumerate(lanes):
        logits, values, linear = reference(here, lane, attention, norms, monkeypatch)
        np.testing.assert_allclose(got.logits[i], logits, rtol=0, atol=1e-11)
        np.testing.assert_allclose(got.activations[i], values, rtol=0, atol=1e-11)
        np.testing.assert_allclose(got.linear[i], linear, rtol=0, atol=1e-11)
        moved.append(np.abs(logits - here.run.logits).max())
    assert moved[0] < 1e-12, "no edit"
    assert np.median(moved[1:]) > 1e-2

"""The oracle against itself: the row identity, broken by every constant left out, and real frozen forward passes."""

import copy

import numpy as np
import pytest

from . import attribution as at
from . import builders

TABLE = [(f, d) for f in builders.PUBLISHED for d in builders.ACCEPTANCE]
MORE = [
    (f, d)
    for f in ("gemma2", "relu")
    for d in sorted(set(builders.DICTIONARIES) - set(builders.ACCEPTANCE))
] + [(f, "plt-relu") for f in ("toy", "attn_only", "encoder")]  # fmt: skip
CONSTANTS = {
    "gpt2": ("b_v", "b_o", "norm1", "norm2", "final_norm", "pos_embed", "b_dec"),
    "neox": ("b_v", "b_o", "norm1", "norm2", "final_norm", "b_dec"),
    "llama": ("b_dec",),
    "relu": ("b_v", "b_o", "norm1", "norm1_post", "norm2", "final_norm", "b_unembed", "b_dec"),
}


def targets_of(case, here):
    """Logits at the last and at an earlier position, a direction, and a feature that need not be active."""
    vector = np.random.default_rng(3).normal(size=case.cfg.d_model)
    out = [*at.top_logits(here.run), at.Target("logit", 2, token=5), at.Target("direction", 3, vector=vector)]
    layers = [layer for layer, v in enumerate(here.values) if v.shape[1]]
    return out + ([at.Target("feature", 4, layer=layers[-1], feature=7)] if layers else [])


@pytest.mark.parametrize("zero", ["attribute", "constant"])
@pytest.mark.parametrize(("family", "name"), TABLE + MORE)
def test_rows_and_biases_sum_to_the_values(family, name, zero):
    case = builders.make_case(family, name)
    here = at.localise(case.cfg, case.params, case.d, case.tokens, zero)
    a = at.attribute(case.cfg, case.params, case.d, case.tokens, targets_of(case, here), zero)
    assert a.gap() < 1e-13
    assert case.d is None or len(a.features) > 10
    np.testing.assert_allclose(a.values[: a.n_features], a.activations, atol=1e-14)
    if zero == "attribute" or case.d is None:
        assert not a.bos.any()
    elif family != "toy":  # with one layer only logits at position 0 see what was written there
        assert np.abs(a.bos).max() > 1e-3


@pytest.mark.parametrize(("family", "name"), [(f, c) for f, cs in CONSTANTS.items() for c in cs])
def test_leaving_a_constant_out_breaks_the_sum(family, name):
    case = builders.make_case(family, "plt-relu")
    a = at.attribute(case.cfg, case.params, case.d, case.tokens, leave_out=name)
    assert a.gap() > 1e-4


@pytest.mark.parametrize("name", ["plt-skip", "clt-relu", "neurons"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_leaving_a_source_out_breaks_the_sum(family, name):
    case = builders.make_case(family, name)
    a = at.attribute(case.cfg, case.params, case.d, case.tokens)
    size = np.abs(a.A).sum(1) + np.abs(a.bias)
    reached = np.abs(a.A / np.maximum(size, 1e-300)[:, None]).max(0)
    silent = [s for s in range(len(a.A) - len(a.targets)) if reached[s] <= 1e-6]
    # Only what the last layer wrote before the last position, or nothing (neurons leave no error), reaches nothing.
    last, n, t = case.cfg.n_layers - 1, a.n_features, len(case.tokens)
    for s in silent:
        layer, p = a.features[s][:2] if s < n else divmod(s - n, t)
        assert s < n + a.n_errors
        assert (layer == last and p < t - 1) or (name == "neurons" and s >= n)


@pytest.mark.parametrize(
    ("family", "name"), [*TABLE, ("relu", "plt-raw"), ("relu", "some-filled"), ("neox", "clt-skip")]
)
def test_adding_a_source_moves_every_target_by_its_column(family, name):
    case = builders.make_case(family, name)
    here = at.localise(case.cfg, case.params, case.d, case.tokens)
    targets = targets_of(case, here)
    a = at.attribute(case.cfg, case.params, case.d, case.tokens, targets)
    size = np.abs(a.A).sum(1) + np.abs(a.bias)
    rng = np.random.default_rng(0)
    for s in rng.choice(at.n_sources(here), 12, replace=False):
        assert (np.abs(at.perturb(here, targets, s) - a.A[:, s]) <= 1e-12 * np.maximum(size, 1)).all()
    weights = rng.normal(size=at.n_sources(here))
    together = [np.tensordot(weights, np.stack(part), 1) for part in zip(*sources(here), strict=True)]
    expected = a.A[:, : len(weights)] @ weights
    assert (np.abs(at.moved(here, targets, *together) - expected) <= 1e-12 * np.maximum(size, 1)).all()


def sources(here):
    return [at.source(here, s) for s in range(at.n_sources(here))]


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_edges_go_up_and_forward(family):
    case = builders.make_case(family, "clt-relu")
    a = at.attribute(case.cfg, case.params, case.d, case.tokens)
    n, layer, position = a.n_features, a.features[:, 0], a.features[:, 1]
    forbidden = (layer[:, None] <= layer[None]) | (position[:, None] < position[None])
    assert not a.A[:n, :n][forbidden].any()
    assert not a.A[n : len(a.A) - len(a.targets)].any()
    # With parallel blocks the next layer's features read the stream before its attention: no change of position.
    apart = position[:, None] != position[None] if family == "neox" else np.zeros((n, n), bool)
    unreached = forbidden | (apart & (layer[:, None] == layer[None] + 1))
    assert not a.A[:n, :n][unreached].any()
    assert np.abs(a.A[:n, :n][~unreached]).min() > 0


def swapped_heads(frozen):
    frozen.pattern = frozen.pattern[:, ::-1]


def transposed(frozen):
    frozen.pattern = frozen.pattern.swapaxes(2, 3)


def a_thousandth_more(frozen):
    frozen.scales["norm2"] = frozen.scales["norm2"] * 1.001


@pytest.mark.parametrize("mutate", [swapped_heads, transposed, a_thousandth_more])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_a_wrong_network_breaks_the_sum(family, mutate):
    case = builders.make_case(family, "plt-relu")
    frozen = copy.deepcopy(at.localise(case.cfg, case.params, case.d, case.tokens).frozen)
    mutate(frozen)
    a = at.attribute(case.cfg, case.params, case.d, case.tokens, frozen=frozen)
    assert a.gap() > 1e-5

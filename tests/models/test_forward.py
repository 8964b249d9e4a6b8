"""The forward pass against the oracle: every family and site, padding, edits; generation against repeated passes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.models.edits import SITES, Edit, edit
from tcircuits.models.forward import OUTSIDE, forward
from tcircuits.models.generate import generate
from tcircuits.types import InputError

from .. import bridge
from ..reference import builders
from ..reference import model as oracle
from ..tiers import tiered

pytestmark = pytest.mark.usefixtures("quick_compile")

T, MODES = 6, ("set", "add", "scale")


@cache
def case_of(family: str) -> builders.Case:
    """The family's model, without a dictionary."""
    cfg = builders.model_config(family)
    tokens = np.random.default_rng(100).integers(0, cfg.d_vocab, size=(2, T))
    return builders.Case(family, cfg, builders.make_params(cfg), None, tokens)


def sites_of(cfg) -> tuple[str, ...]:
    absent = {"resid_mid"} if cfg.parallel else set()
    absent |= {"resid_mid", "mlp_in", "mlp_raw", "mlp_out"} if cfg.attn_only else set()
    return tuple(s for s in SITES if s not in absent)


def near(got, expected: np.ndarray, tolerance: float) -> None:
    """Within the tolerance of the largest value."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def padded(tokens: np.ndarray, left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """A prompt between padding, and its mask. The padding is a token like any other."""
    return np.pad(tokens, (left, right), constant_values=3), np.pad(np.ones(len(tokens), bool), (left, right))


@cache
def passes(family: str, dtype: str):
    """One program: two prompts with all sites; the first of them padded left, right and on both sides."""
    case = case_of(family)
    m = bridge.model(case, dtype)
    sites = sites_of(case.cfg)
    filled, mask = (np.stack(x) for x in zip(*[padded(case.tokens[0], a, 3 - a) for a in (3, 0, 1)], strict=True))

    @jax.jit
    def run(params, tokens, filled, mask):
        return (
            forward(m.cfg, params, tokens, sites=sites),
            forward(m.cfg, params, filled, mask=mask, sites=("pattern", "resid_post")),
            forward(m.cfg, params, tokens, sites=()),
        )

    return run(m.params, case.tokens, filled, mask)


@pytest.mark.parametrize("family", builders.FAMILIES)
def test_every_site_equals_the_oracle_s(family, x64):
    case = case_of(family)
    out, _, bare = passes(family, "float64")
    assert set(out.acts) == set(sites_of(case.cfg))
    assert bare.acts == {}
    np.testing.assert_array_equal(out.logits, bare.logits)
    for b, tokens in enumerate(case.tokens):
        r = oracle.run(case.cfg, case.params, tokens)
        near(out.logits[b], r.logits, 1e-12)
        for site, value in out.acts.items():
            near(value[b] if site in OUTSIDE else value[:, b], r.sites[site], 1e-12)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_float32_logits_equal_the_oracle_s(family):
    case = case_of(family)
    out, _, _ = passes(family, "float32")
    assert out.logits.dtype == jnp.float32
    for b, tokens in enumerate(case.tokens):
        near(out.logits[b], oracle.run(case.cfg, case.params, tokens).logits, 1e-6)


@pytest.mark.parametrize("family", builders.FAMILIES)
def test_padding_changes_nothing(family, x64):
    out, filled, _ = passes(family, "float64")
    for i, left in enumerate((3, 0, 1)):
        real = slice(left, left + T)
        near(filled.logits[i, real], out.logits[0], 1e-13)
        near(filled.acts["resid_post"][:, i, real], out.acts["resid_post"][:, 0], 1e-13)
        pattern = filled.acts["pattern"][:, i, :, real]
        near(pattern[..., real], out.acts["pattern"][:, 0], 1e-13)
        assert np.abs(np.delete(pattern, np.r_[real], axis=-1)).max() == 0
        assert np.isfinite(filled.logits).all()


RANGES = (2, (1, 4), None, (3, None))


def edits_of(cfg, rotation: int) -> tuple[list[Edit], oracle.Edit]:
    """One edit of every site, with modes, layers and positions that differ; and the same for the oracle."""
    rng, ours, plain = np.random.default_rng(rotation), [], []
    for i, site in enumerate(sites_of(cfg)):
        mode, span = MODES[(i + rotation) % 3], RANGES[(i + rotation) % 4]
        layer = 0 if site in OUTSIDE else (i + rotation) % cfg.n_layers
        heads = {"q": cfg.n_heads, "z": cfg.n_heads, "k": cfg.n_kv_heads, "v": cfg.n_kv_heads}
        shape = {"pattern": (cfg.n_heads, T), "logits": (cfg.d_vocab,)}.get(site, (cfg.d_model,))
        shape = (heads[site], cfg.d_head) if site in heads else shape
        value, where = rng.normal(size=shape), rng.random(shape) < 0.7 if i % 2 else None
        ours.append(edit(site, layer, value, position=span, mode=mode, where=where))
        start, stop = span if isinstance(span, tuple) else (0, None) if span is None else (span, span + 1)
        plain.append((site, layer, slice(start, stop), mode, value, True if where is None else where))

    def apply(site: str, layer: int, x: np.ndarray) -> np.ndarray:
        for at, number, span, mode, value, where in plain:
            if (at, number) != (site, layer):
                continue
            x = np.moveaxis(x, 1, 0).copy() if site == "pattern" else x.copy()  # the queries' positions first
            new = {"set": value + 0 * x[span], "add": x[span] + value, "scale": x[span] * value}[mode]
            x[span] = np.where(where, new, x[span])
            x = np.moveaxis(x, 0, 1) if site == "pattern" else x
        return x

    return ours, apply


@pytest.mark.parametrize("rotation", tiered(range(3), [0]))
@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma2", "attn_only"])
def test_edits_of_every_site_equal_the_oracle_s(family, rotation, x64):
    case = case_of(family)
    m, sites = bridge.model(case), sites_of(case.cfg)
    edits, apply = edits_of(case.cfg, rotation)
    run = jax.jit(lambda p, tokens, edits: forward(m.cfg, p, tokens, sites=sites, edits=edits))
    out = run(m.params, case.tokens, tuple(edits))
    for b, tokens in enumerate(case.tokens):
        r = oracle.run(case.cfg, case.params, tokens, edit=apply)
        for site, value in out.acts.items():
            near(value[b] if site in OUTSIDE else value[:, b], r.sites[site], 1e-12)
        assert np.abs(r.logits - oracle.run(case.cfg, case.params, tokens).logits).max() > 0.1


def test_edits_count_real_tokens_and_compose_in_order(x64):
    """Two edits of one place: the second acts on what the first left. Left padding shifts no position."""
    case = case_of("llama")
    m, v = bridge.model(case), np.random.default_rng(0).normal(size=12)
    both = (edit("mlp_out", 1, v, position=2), edit("mlp_out", 1, 2.0, position=2, mode="scale"))
    filled, mask = padded(case.tokens[0], 3, 0)
    sites = ("mlp_out",)

    @jax.jit
    def run(params, edits):
        plain = forward(m.cfg, params, case.tokens[:1], sites=sites, edits=edits)
        return plain, forward(m.cfg, params, filled[None], mask=mask[None], sites=sites, edits=edits)

    plain, shifted = run(m.params, both)
    np.testing.assert_array_equal(plain.acts["mlp_out"][1, 0, 2], 2 * v)
    near(shifted.logits[0, 3:], plain.logits[0], 1e-13)
    other, _ = run(m.params, (edit("mlp_out", 1, v, position=2), edit("mlp_out", 1, 3.0, position=2, mode="scale")))
    assert np.abs(other.logits - plain.logits).max() > 1e-2


def test_to_set_the_stream_is_to_run_from_there(x64):
    """Layers before the edit no longer matter: with other weights there the logits are the same."""
    case = case_of("gemma3")
    m, x = bridge.model(case), np.random.default_rng(1).normal(size=12)
    run = jax.jit(lambda p, edits: forward(m.cfg, p, case.tokens, edits=edits).logits)
    changed = jax.tree.map(lambda a: a.at[:2].multiply(1.5), m.params.blocks)
    other = type(m.params)(**{**vars(m.params), "blocks": changed})
    stream = (edit("resid_post", 1, x),)
    np.testing.assert_allclose(run(other, stream), run(m.params, stream), atol=1e-13)
    assert np.abs(run(other, ()) - run(m.params, ())).max() > 1e-2


@pytest.mark.parametrize(
    ("family", "site"),
    [("llama", "mlp_post"), ("neox", "resid_mid"), ("attn_only", "mlp_in"), ("attn_only", "mlp_out")],
)
def test_a_site_that_the_model_does_not_have_is_named(family, site):
    case = case_of(family)
    m = bridge.model(case, "float32")
    with pytest.raises(
        InputError, match=rf"sites \['{site}'\] are unknown in this model; there are resid_pre, attn_in"
    ):
        forward(m.cfg, m.params, case.tokens, sites=(site,))


def test_wrong_requests():
    case = case_of("llama")
    m = bridge.model(case, "float32")
    with pytest.raises(InputError, match="site 'mlp' is unknown; there are resid_pre"):
        edit("mlp", 0, 0.0)
    with pytest.raises(InputError, match="mode 'multiply' is unknown; there are set, add, scale"):
        edit("mlp_out", 0, 0.0, mode="multiply")
    for wrong in (-1, (3, 3), (4, 2)):
        with pytest.raises(InputError, match="is no range of positions"):
            edit("mlp_out", 0, 0.0, position=wrong)
    with pytest.raises(InputError, match=r"shape \(6,\); give a batch \[B, T\]"):
        forward(m.cfg, m.params, case.tokens[0])
    with pytest.raises(InputError, match="no tokens"):
        forward(m.cfg, m.params, np.zeros((1, 0), int))
    with pytest.raises(InputError, match="17 tokens; the model's context is 16"):
        forward(m.cfg, m.params, np.zeros((1, 17), int))


def continued(case: builders.Case, tokens: np.ndarray, n: int, change: oracle.Edit | None = None) -> list[int]:
    """Greedy tokens by repeated passes of the oracle."""
    ids = list(tokens)
    for _ in range(n):
        ids.append(int(oracle.run(case.cfg, case.params, ids, edit=change).logits[-1].argmax()))
    return ids[len(tokens) :]


@pytest.mark.parametrize(
    "family", tiered(["gpt2", "neox", "llama", "mistral", "gemma2", "gemma3"], ["gpt2", "neox", "gemma3"])
)
def test_greedy_generation_is_repeated_passes(family, x64):
    """With windows that end inside the prompt and with positions beyond it; alone, and in a padded batch."""
    case = case_of(family)
    m = bridge.model(case)
    rows = [padded(case.tokens[0], 2, 0), padded(case.tokens[1], 0, 2), (np.r_[case.tokens[0], 1, 2], np.ones(8, bool))]
    filled, mask = (np.stack(x) for x in zip(*rows, strict=True))
    made = generate(m, filled, 7, mask=mask)
    assert made.shape == (3, 7)
    for row, real, got in zip(filled, mask, made, strict=True):
        assert got.tolist() == continued(case, row[real], 7)
    assert len({tuple(got) for got in made.tolist()}) >= 2


def test_generation_with_edits_is_repeated_passes_with_them(x64):
    case = case_of("llama")
    m, rng = bridge.model(case), np.random.default_rng(0)
    steer, fix = 2 * rng.normal(size=12), rng.normal(size=(2, 6))
    edits = [edit("resid_post", 1, steer, position=(T, None), mode="add"), edit("v", 0, fix, position=2)]

    def change(site: str, layer: int, x: np.ndarray) -> np.ndarray:
        if (site, layer) == ("resid_post", 1):
            return np.r_[x[:T], x[T:] + steer]
        return np.concatenate([x[:2], fix[None], x[3:]]) if (site, layer) == ("v", 0) else x

    made = generate(m, case.tokens[0], 7, edits=edits)
    assert made.tolist() == continued(case, case.tokens[0], 7, change)
    without = continued(case, case.tokens[0], 7)
    only_fix = generate(m, case.tokens[0], 7, edits=edits[1]).tolist()
    only_steer = generate(m, case.tokens[0], 7, edits=edits[:1]).tolist()
    assert without != made.tolist()
    assert only_steer[0] == without[0]  # made from the prompt, which is not steered
    assert len({tuple(x) for x in (without, made.tolist(), only_fix, only_steer)}) >= 3


def test_temperature_draws_from_the_softmax():
    case = case_of("llama")
    m = bridge.model(case, "float32")
    key = jax.random.key(7)
    many = np.repeat(case.tokens[:1], 2000, 0)
    drawn = generate(m, many, 1, temperature=2.0, key=key)[:, 0]
    z = oracle.run(case.cfg, case.params, case.tokens[0]).logits[-1] / 2.0
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    share = np.bincount(drawn, minlength=len(p)) / 2000
    assert (np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / 2000) + 1e-3).all()
    again = [generate(m, case.tokens[0], 8, temperature=3.0, key=k).tolist() for k in (key, key, jax.random.key(8))]
    assert again[0] == again[1] != again[2]
    cold = generate(m, case.tokens[0], 8, temperature=1e-5, key=key)
    assert cold.tolist() == continued(case, case.tokens[0], 8)


@pytest.mark.parametrize(
    ("tokens", "n", "options", "message"),
    [
        ([], 1, {}, "no tokens"),
        ([1, 2], 0, {}, "n=0: generate writes at least one token"),
        ([1] * 10, 7, {}, "10 tokens and 7 more do not fit the model's context of 16"),
        ([1, 17], 1, {}, r"token ids 1\.\.17 leave the vocabulary 0\.\.16"),
        ([1], 1, {"temperature": -1.0}, "temperature=-1.0"),
        ([1], 1, {"temperature": 1.0}, "give 0, or a positive one with a random key"),
    ],
)
def test_generation_that_cannot_be(tokens, n, options, message):
    m = bridge.model(case_of("llama"), "float32")
    with pytest.raises(InputError, match=message):
        generate(m, np.array(tokens, int), n, **options)


def test_a_model_that_looks_ahead_does_not_generate():
    with pytest.raises(InputError, match="causal"):
        generate(bridge.model(case_of("encoder"), "float32"), [1, 2], 2)

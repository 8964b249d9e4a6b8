"""The trial of a dictionary on a few tokens: its numbers against NumPy, which site it names, when it keeps quiet."""

import itertools
import warnings
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tcircuits.models.model import Model
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.transcoders.saving import save_transcoders
from tcircuits.transcoders.selfcheck import READS, WRITES, SiteCheck, SiteWarning, check_sites, check_tokens
from tests import bridge
from tests.reference import builders, dictionary
from tests.reference.model import centre, run

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")
# LayerNorm; parallel blocks; RMS norm; norms behind the MLP; those alone. The MLP's own ReLU in the last.
FAMILIES = ("gpt2", "neox", "llama", "gemma2", "olmo2", "relu")
KINDS = ("plt-relu", "plt-topk", "plt-skip", "clt-relu")
N, F = 24, 80  # positions of the prompt; more features than that can fit anything


def case_of(family, name="plt-relu"):
    """A model with norms whose gains matter, on the prompt that the check takes for models without tokenizer."""
    cfg = builders.model_config(family, n_ctx=N)
    params = builders.make_params(cfg)
    rng = np.random.default_rng(5)
    for norm in ("norm2", "norm2_post"):
        if params["blocks"][norm] is not None:
            params["blocks"][norm]["w"] *= rng.choice([-2.0, 0.2, 3.0], params["blocks"][norm]["w"].shape)
    tokens = np.random.default_rng(0).integers(0, cfg.d_vocab, N)
    d = builders.make_dictionary(cfg, params, tokens, name, d_feature=F)
    return builders.Case(f"{family}-{name}", cfg, params, d, tokens)


def at(d, reads, writes):
    """The same arrays, said to belong elsewhere."""
    return dictionary.Dictionary(SimpleNamespace(**(vars(d.cfg) | {"reads": reads, "writes": writes})), d.arrays)


def fvu(case, d, reads, writes, centred=True):
    """The variance that a dictionary leaves at a pair of sites, by layer."""
    d, r = at(d, reads, writes), run(case.cfg, case.params, case.tokens)
    values = [dictionary.encode(case.cfg, case.params, d, r, layer)[0] for layer in range(case.cfg.n_layers)]
    out = []
    for layer in d.cfg.layers:
        y = r.sites[writes][layer][1:]
        guess = dictionary.reconstruction(case.cfg, case.params, d, r, values, layer)[1:]
        if centred:
            y, guess = centre(case.cfg, y), centre(case.cfg, guess)
        out.append(((y - guess) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())
    return np.array(out)


def fitted(case, reads, writes, centred=False):
    """The case's dictionary, its decoders within each layer solved so that it misses nothing at this pair of sites."""
    d, r = at(case.d, reads, writes), run(case.cfg, case.params, case.tokens)
    d.arrays = {name: None if a is None else a.copy() for name, a in d.arrays.items()}
    for layer in d.cfg.layers:  # a third of the features is on, whatever the size of what they read
        d.arrays["b_enc"][layer] = 0
        pre = dictionary.encode(case.cfg, case.params, d, r, layer)[1]
        d.arrays["b_enc"][layer] = -np.quantile(pre, 0.67, axis=0)
    values = [dictionary.encode(case.cfg, case.params, d, r, layer)[0] for layer in range(case.cfg.n_layers)]
    for slot, layer in enumerate(d.cfg.layers):
        y = r.sites[writes][layer]
        y = centre(case.cfg, y) if centred else y
        rest = y - dictionary.reconstruction(case.cfg, case.params, d, r, values, layer)
        row = slot * (slot + 1) // 2 + slot if d.cfg.kind == "clt" else slot
        f = np.hstack([values[layer][1:], np.ones((N - 1, 1))])  # the first position is left out
        change = np.linalg.lstsq(f, rest[1:], rcond=None)[0]
        d.arrays["w_dec"][row] += change[:-1]
        d.arrays["b_dec"][slot] += change[-1]
    return d


def exact(case):
    """The MLP's own neurons as a transcoder: its activation function is a ReLU."""
    d, p = at(case.d, "mlp_in", "mlp_raw"), case.params["blocks"]["mlp"]
    arrays = {"w_enc": p["w_in"].swapaxes(1, 2), "b_enc": p["b_in"], "w_dec": p["w_out"], "b_dec": p["b_out"]}
    cfg = SimpleNamespace(**(vars(d.cfg) | {"d_feature": case.cfg.d_mlp}))
    return dictionary.Dictionary(cfg, arrays | {"threshold": None, "w_skip": None})


@pytest.mark.parametrize(
    ("family", "name"), [*((f, "plt-relu") for f in FAMILIES), *(("gemma2", k) for k in KINDS[1:])]
)
def test_the_numbers_are_numpys(family, name):
    case = case_of(family, name)
    check = check_sites(bridge.model(case), bridge.transcoders(case.d))
    for pair in itertools.product(READS, WRITES):
        np.testing.assert_allclose(check.fvu[pair], np.median(fvu(case, case.d, *pair)), rtol=1e-9)
    assert check.stated == (case.d.cfg.reads, case.d.cfg.writes)
    np.testing.assert_allclose(check.layers, fvu(case, case.d, *check.stated), rtol=1e-9)
    assert check.fvu[check.best] == min(check.fvu.values())


@pytest.mark.parametrize(
    ("family", "name"), [*((f, "plt-relu") for f in FAMILIES), ("gpt2", "clt-relu"), ("gemma2", "clt-relu")]
)
def test_the_right_pair_is_named_and_no_word_said_where_it_is_stated(family, name):
    """A dictionary that misses nothing at one pair of sites, said to belong to each."""
    case, told = case_of(family, name), 0
    model = bridge.model(case)
    pairs = list(itertools.product(READS, WRITES if case.cfg.post_norm else WRITES[:1]))
    distinct = [p for p in pairs if case.cfg.pre_norm or p[0] == "mlp_in"]  # without a norm all reads are one
    for right in distinct:
        d = bridge.transcoders(fitted(case, *right))
        for stated in distinct:
            check = check_sites(model, replace(d, cfg=replace(d.cfg, reads=stated[0], writes=stated[1])))
            assert check.best == right
            assert check.fvu[right] < 1e-9
            if stated == right:
                assert check.message is None
            elif check.fvu[stated] > 0.75:
                told += 1
                assert f"reading {stated[0]} and writing {stated[1]} it leaves {check.fvu[stated]:.2f}" in check.message
                assert f"Try reads={right[0]!r}, writes={right[1]!r}" in check.message
            else:
                assert check.message is None
    assert told >= 0.8 * (len(distinct) ** 2 - len(distinct))


def test_an_exact_transcoder_misses_nothing():
    case = case_of("relu")
    d = exact(case)
    check = check_sites(bridge.model(case), bridge.transcoders(d))
    assert check.stated == check.best == ("mlp_in", "mlp_raw")
    assert max(check.layers) < 1e-20
    assert check.message is None
    wrong = bridge.transcoders(at(d, "resid_mid", "mlp_raw"))
    assert "Try reads='mlp_in', writes='mlp_raw'" in check_sites(bridge.model(case), wrong).message


def test_means_that_no_layer_norm_sees_are_no_fault():
    """So were the transcoders of GPT-2 trained: on a model whose writing weights are centred."""
    case = case_of("gpt2")
    case.params["blocks"]["mlp"]["w_out"] += 3.0  # all dimensions move together
    d = fitted(case, "normalized", "mlp_out", centred=True)
    assert fvu(case, d, "normalized", "mlp_out", centred=False).min() > 0.75
    check = check_sites(bridge.model(case), bridge.transcoders(d))
    assert check.fvu["normalized", "mlp_out"] < 1e-9
    assert check.message is None
    assert (
        "Try reads='normalized'"
        in check_sites(bridge.model(case), bridge.transcoders(at(d, "mlp_in", "mlp_out"))).message
    )


def test_some_layers_only():
    case = case_of("llama")
    d = bridge.transcoders(fitted(case, "mlp_in", "mlp_out"))
    part = jax.tree.map(lambda x: x[1:2], d)
    check = check_sites(bridge.model(case), replace(part, cfg=replace(d.cfg, layers=(1,))))
    assert len(check.layers) == 1
    assert check.layers[0] < 1e-9


def check_of(own, best):
    pairs = dict.fromkeys(itertools.product(READS, WRITES), 3.0)
    pairs |= {("mlp_in", "mlp_out"): own, ("resid_mid", "mlp_out"): best}
    winner = ("mlp_in", "mlp_out") if own <= best else ("resid_mid", "mlp_out")
    return SiteCheck(pairs, ("mlp_in", "mlp_out"), winner, (own,))


@pytest.mark.parametrize(
    ("own", "best", "message"),
    [
        (0.3, 0.01, None),
        (0.75, 0.1, None),
        (float("nan"), 0.1, None),
        (
            0.9, 0.5,
            "reading mlp_in and writing mlp_out it leaves 0.90 of the variance unexplained; reading resid_mid and "
            "writing mlp_out leaves 0.50: wrong site or norm convention? Try reads='resid_mid', writes='mlp_out'",
        ),
        (0.9, 0.6, "reading mlp_in and writing mlp_out it leaves 0.90 of the variance unexplained: a weak dictionary, "
                   "or one for another model"),
        (4.0, 1.2, "reading mlp_in and writing mlp_out it leaves 4.00 of the variance unexplained, and no other site "
                   "is better: another model, a transposed matrix, or prompts without its BOS?"),
    ],
)  # fmt: skip
def test_messages(own, best, message):
    assert check_of(own, best).message == message


def saved(tmp_path, case, d):
    save_transcoders(bridge.transcoders(d), tmp_path / "set")
    return tmp_path / "set"


def test_loading_for_a_model_warns(tmp_path):
    case = case_of("llama")
    model = bridge.model(case)
    source = saved(tmp_path, case, at(fitted(case, "normalized", "mlp_out"), "resid_mid", "mlp_out"))
    with pytest.warns(
        SiteWarning, match=rf"transcoders {source} on llama-plt-relu: reading resid_mid .*Try reads='norm"
    ):
        load_transcoders(source, model=model, dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_transcoders(source, model=model, dtype=np.float64, check=False)
        load_transcoders(source, model=model.cfg, dtype=np.float64)
        load_transcoders(source, dtype=np.float64)
        load_transcoders(source, model=model, dtype=np.float64, reads="normalized")
        load_transcoders("neurons", model=model)


def test_the_prompt():
    """Text where there is a tokenizer, else tokens of the vocabulary; never more than the context."""
    case = case_of("llama")
    model = bridge.model(case)
    assert check_tokens(model) == case.tokens.tolist()
    short = Model(replace(model.cfg, n_ctx=5), model.params, None, "short")
    assert len(check_tokens(short)) == 5
    letters = SimpleNamespace(encode=lambda text: [ord(c) % 17 for c in text], bos_id=1, adds_bos=True)
    tokens = check_tokens(Model(model.cfg, model.params, letters, "letters"))
    assert (len(tokens), tokens[0]) == (N, 1)


def test_one_position_says_nothing():
    case = case_of("llama")
    model = bridge.model(case)
    short = Model(replace(model.cfg, n_ctx=1), model.params, None, "short")
    assert check_sites(short, bridge.transcoders(case.d)).message is None

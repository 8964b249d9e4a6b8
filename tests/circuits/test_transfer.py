"""Transfer to the same model with its heads and neurons in another order: everything must be found again."""

from dataclasses import replace

import numpy as np
import pytest

import tcircuits as tc
from tcircuits.circuits.behaviour_graph import BehaviourGraph
from tcircuits.circuits.profiles import unit_profiles
from tcircuits.circuits.scores import unit_scores
from tcircuits.circuits.transfer import Matching, edge_overlap, match_units, transfer
from tcircuits.circuits.units import Units, units_of
from tcircuits.models.forward import forward
from tcircuits.types import InputError

TEXTS = [
    "When Mary and John went to the store, John gave a drink to",
    "The old war lasted from the year 1732 to the year 17",
]


def shuffled_model(model, seed=0):
    """The same function; heads[l], neurons[l]: which of the old ones stand where."""
    rng, b = np.random.default_rng(seed), model.params.blocks
    L, H, M = model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_mlp
    heads, neurons = (np.array([rng.permutation(n) for _ in range(L)]) for n in (H, M))

    def taken(w, order, axis):
        return np.stack([np.take(np.asarray(w[i]), order[i], axis - 1) for i in range(L)])

    attn = replace(b.attn, **{n: taken(getattr(b.attn, n), heads, 2) for n in ("w_q", "w_k", "w_v")})
    attn = replace(attn, w_o=taken(b.attn.w_o, heads, 1))
    mlp = replace(
        b.mlp,
        w_in=taken(b.mlp.w_in, neurons, 2),
        w_gate=taken(b.mlp.w_gate, neurons, 2),
        w_out=taken(b.mlp.w_out, neurons, 1),
    )
    return replace(model, params=replace(model.params, blocks=replace(b, attn=attn, mlp=mlp))), heads, neurons


@pytest.fixture(scope="module")
def pair():
    model = tc.load_model("tiny")
    other, heads, neurons = shuffled_model(model)
    d = [tc.load_transcoders("neurons", model=m) for m in (model, other)]
    units = units_of(model.cfg, ("head", "feature"), d[0].cfg)
    profiles = [unit_profiles(m, TEXTS, units, dictionary=x)[0] for m, x in zip((model, other), d, strict=True)]
    # where old unit u stands in the other model
    places = [np.argsort(heads[i]) + i * model.cfg.n_heads for i in range(model.cfg.n_layers)]
    start = units.starts["feature"]
    places += [start + np.argsort(neurons[i]) + i * model.cfg.d_mlp for i in range(model.cfg.n_layers)]
    return model, other, d, units, profiles, np.concatenate(places)


def test_profiles_are_the_largest_of_each_word(pair):
    model, _, _, units, profiles, _ = pair
    text = TEXTS[1]
    ids = model.encode(text)
    acts = forward(model.cfg, model.params, np.asarray(ids)[None], sites=("z",)).acts["z"][:, 0]
    size = np.linalg.norm(np.asarray(acts), axis=-1).transpose(1, 0, 2).reshape(len(ids), -1)
    words, seen, expected = text.split(), "", {}
    for i, number in enumerate(ids):  # `tiny` begins texts without BOS
        seen += model.token(number)
        word = len(seen.split()) - 1
        expected[word] = np.maximum(expected.get(word, 0), size[i])
    first = len(TEXTS[0].split())
    own = profiles[0][first:, : units.starts["feature"]]
    assert own.shape[0] == len(words)
    np.testing.assert_allclose(own, np.stack([expected[i] for i in range(len(words))]), rtol=1e-4)
    last = unit_profiles(model, TEXTS, units_of(model.cfg, ("head",)))[1]
    assert np.flatnonzero(last).tolist() == [first - 1, first + len(words) - 1]


def test_units_in_another_order_are_found_again(pair):
    _, _, _, units, profiles, places = pair
    matching = match_units((units, units), profiles)
    # neurons that differ by less than rounding over these few words may be exchanged: none are here
    assert matching.live == (units.n, units.n)
    np.testing.assert_array_equal(matching.pairs[:, 0], np.arange(units.n))
    assert (matching.pairs[:, 1] == places).mean() > 0.999
    assert matching.r.min() > 0.999
    assert matching.coverage == 1.0
    some = match_units((units, units), profiles, among=(np.arange(4), None))
    assert (some.live[0], len(some.pairs)) == (4, 4)
    paper = match_units((units, units), profiles, rule="paper")
    assert (paper.pairs[:, 1] == places).mean() > 0.999


def test_a_circuit_works_where_it_is_mapped_to(pair):
    model, other, d, units, profiles, places = pair
    behaviour = tc.make_behaviour(model, "ioi", sizes={"attribution": 8, "selection": 1, "report": 16})
    scores = unit_scores(model, behaviour, units, method="gradient", dictionary=d[0]).values
    mask = scores >= np.sort(scores)[-400]
    matching, own = match_units((units, units), profiles), np.empty(units.n)
    own[places] = scores
    found = transfer(other, behaviour, (units, units), matching, mask, own, dictionary=d[1], random=10)
    direct = tc.run_circuits(model, behaviour, np.stack([mask, ~mask & mask]), units, dictionary=d[0])
    none, full = direct.circuits.metric[1].mean(), direct.model.metric.mean()
    expected = (direct.circuits.metric[0].mean() - none) / (full - none)
    assert found.kept == (400, 400)
    assert found.faithfulness.value == pytest.approx(expected, abs=2e-3)
    assert found.ratio == pytest.approx(1, abs=2e-3)
    assert found.p == pytest.approx(1 / 11)
    assert found.z > 2
    nothing = replace(matching, pairs=np.zeros((0, 2), int), r=np.zeros(0))
    with pytest.raises(InputError, match="has a counterpart"):
        transfer(other, behaviour, (units, units), nothing, mask, own, dictionary=d[1])


def small_graph(edges):
    source, target, weight = (np.array(x) for x in zip(*edges, strict=True))
    units, n = Units(("head",), 1, 6), 6
    zero = np.zeros(n)
    nodes = np.stack([np.full(n, 3), np.zeros(n), np.arange(n), np.full(n, -1)], 1).astype(int)
    weight = weight.astype(float)
    return BehaviourGraph(
        nodes, source, target, weight, weight, np.ones(len(weight)), zero, zero, np.arange(n), zero, units
    )


def test_overlap_is_that_of_shares_between_matched_units():
    first = small_graph([(0, 1, 2.0), (1, 2, 1.0), (3, 4, 5.0)])
    second = small_graph([(5, 4, 1.0), (4, 3, 1.0), (0, 1, 9.0)])
    matching = Matching(np.array([[0, 5], [1, 4], [2, 3]]), np.ones(3), (6, 6), (6, 6))
    # unit 3, 4 of the first and 0, 1, 2 of the second have no counterpart: their edges do not count
    expected = (min(2 / 3, 1 / 2) + min(1 / 3, 1 / 2)) / (max(2 / 3, 1 / 2) + max(1 / 3, 1 / 2))
    assert edge_overlap(first, second, matching) == pytest.approx(expected)
    assert edge_overlap(first, second, matching, weighted=False) == 1.0
    lone = replace(matching, pairs=matching.pairs[:1])
    assert np.isnan(edge_overlap(first, second, lone))


def test_the_band_keeps_depths_together():
    rng = np.random.default_rng(0)
    strengths = rng.random((20, 4))
    shallow, deep = Units(("head",), 2, 2), Units(("head",), 4, 1)
    moved = strengths[:, [2, 0, 1, 3]]  # the unit of layer 1 of 2 stands in layer 0 of 4
    wide = match_units((shallow, deep), (strengths, moved), band=1.0)
    np.testing.assert_array_equal(wide.pairs, [[0, 1], [1, 2], [2, 0], [3, 3]])
    narrow = match_units((shallow, deep), (strengths, moved), band=0.1, least=0.9)
    np.testing.assert_array_equal(narrow.pairs, [[3, 3]])


def test_bad_input_is_refused(pair):
    model, _, _, units, profiles, _ = pair
    with pytest.raises(InputError, match="give the same texts"):
        match_units((units, units), (profiles[0], profiles[1][:-1]))
    with pytest.raises(InputError, match="rule 'fuzzy' is unknown"):
        match_units((units, units), profiles, rule="fuzzy")
    with pytest.raises(InputError, match="numbers in"):
        match_units((units, units), profiles, band=2.0)
    with pytest.raises(InputError, match="not 3"):
        match_units((Units(("head",), 1, 3), units), profiles)
    with pytest.raises(InputError, match="no texts"):
        unit_profiles(model, [], units)
    with pytest.raises(InputError, match="no words"):
        unit_profiles(model, [" "], units)
    with pytest.raises(InputError, match="no tokenizer"):
        unit_profiles(replace(model, tokenizer=None), TEXTS, units)

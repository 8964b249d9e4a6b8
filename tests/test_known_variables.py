"""Known variables: annotations of examples that one can read, and F1 against its definition."""

import numpy as np
import scipy.sparse

import tcircuits as tc
from experiments.known.scoring import QUANTILES, score
from experiments.known.variables import annotate
from tcircuits.tasks import grammars

BACKEND = tc.load_model("tiny").tokenizer.backend


def _table(grammar, **options):
    (example,) = grammars.examples(grammar, 1, 5, held_out=True, **options)
    a = annotate(BACKEND, [example])
    texts = [BACKEND.decode([t]).strip() for t in a.tokens[a.real]]
    rows = [{a.names[v] for v in a.true[i].nonzero()[-1]} for i in range(a.true.shape[0])]
    return example, texts, rows


def test_every_token_knows_itself_and_the_one_before():
    _, texts, rows = _table("agreement")
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        assert f"token={text}" in row
        assert i == 0 or f"previous={texts[i - 1]}" in row
        assert "grammar=agreement" in row


def test_the_second_mention_tells_who_repeats_and_the_answer_is_told_before_it():
    example, texts, rows = _table("ioi")
    s, io = example.truth["s"], example.truth["io"]
    told = [f"s={s}" in row for row in rows]
    second = [i for i, t in enumerate(texts) if t == s][1]
    assert told == [i >= second for i in range(len(texts))]
    (place,) = (i for i, row in enumerate(rows) if "an answer follows" in row)
    assert f"answer={io}" in rows[place]
    assert texts[place + 1] == io


def test_years_are_told_behind_their_century():
    example, texts, rows = _table("greater_than")
    yy = example.truth["yy"]
    first = texts.index(f"{yy:02d}")
    for i, row in enumerate(rows):
        assert (f"yy={yy}" in row) == (i >= first)
        assert {f"yy>={t}" for t in range(10, 100, 10) if yy >= t} <= row or i < first
        assert not any(f"yy>={t}" in row for t in range(10, 100, 10) if t > yy)


def test_f1_is_that_of_the_best_threshold_and_variable_chosen_elsewhere():
    rng = np.random.default_rng(0)
    values = [np.maximum(rng.normal(size=(300, 4)) - 0.3, 0) for _ in range(2)]
    true = [rng.random((300, 6)) < 0.3 for _ in range(2)]
    for v, t in zip(values, true, strict=True):
        t[:, 2] = v[:, 1] > 0.8  # a feature that is a variable
    halves = [
        (scipy.sparse.csc_array(v), scipy.sparse.csr_array(t.astype(np.int32)))
        for v, t in zip(values, true, strict=True)
    ]
    found = score(*halves, tuple("abcdef"))
    for f in range(4):
        limits = [0.0, *np.quantile(values[0][values[0][:, f] > 0, f], QUANTILES[1:])]
        tried = {(limit, v): _f1(values[0][:, f] > limit, true[0][:, v]) for limit in limits for v in range(6)}
        limit, v = max(tried, key=tried.__getitem__)
        assert found.chosen[f] == tried[limit, v]
        assert found.variable[f] == "abcdef"[v]
        np.testing.assert_allclose(found.f1[f], _f1(values[1][:, f] > limit, true[1][:, v]), rtol=1e-12)
    assert found.variable[1] == "c"


def _f1(said, there):
    both = (said & there).sum()
    return 2 * both / (said.sum() + there.sum())

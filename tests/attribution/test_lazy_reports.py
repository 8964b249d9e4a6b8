"""What one feature does, why a head looks, which heads carry an edge: of a set on disk as of the same set in memory."""

import json
from functools import cache

import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.attribution.corpus import mean_hold
from tcircuits.attribution.edge_report import edge_report
from tcircuits.attribution.feature_weights import feature_weights
from tcircuits.attribution.head_report import attention_report
from tcircuits.cli import common
from tcircuits.transcoders import opening
from tcircuits.transcoders.lazy import chosen, products

from .lazy_sets import make

CASES = ("jumprelu", "topk", "some layers", "clt")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, set in memory, the same on disk, tokens) by name; each made once."""
    return cache(lambda name: make(name, tmp_path_factory.mktemp("lazy") / "saved"))


def assert_same(a, b, size):
    """The same lists; numbers within float32's rounding of sums whose terms are about `size`."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name], size)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y, size)
    else:
        assert a == (pytest.approx(b, rel=1e-4, abs=2e-6 * size) if isinstance(a, float) else b)


PLACES = [(3, 101, ()), (1, 7, ()), (2, 55, ((1, 2),)), (0, 3, ())]


@pytest.mark.parametrize(
    ("name", "layer", "index", "through"),
    [(name, *place) for name in CASES for place in (PLACES[:1] if name == "topk" else PLACES)],
)
def test_weights(made, name, layer, index, through):
    model, full, lazy, _ = made(name)
    a, b = (feature_weights(model, d, layer, index, through=through, top=9) for d in (full, lazy))
    assert len(a["earlier"]["excite"]) == (9 if layer else 0)
    assert len(a["later"]["inhibited"]) == (0 if layer == 3 else 9)
    assert_same(a, b, 10)


def test_only_the_rows_that_are_needed_are_read(made, monkeypatch):
    """Of layer 2: its own rows, the decoders of layers 0 and 1, the encoder of layer 3; nothing else of a matrix."""
    model, _, lazy, tokens = made("jumprelu")
    read, once = {}, opening.read_piece

    def watched(files, piece, index):
        out = once(files, piece, index)
        if len(index) == 2 and index[1].stop == 32 and index[0].stop <= 120 and "W_skip" not in piece.tensor:
            read.setdefault((piece.tensor, piece.row), []).append(len(out))
        return out

    monkeypatch.setattr(opening, "read_piece", watched)
    feature_weights(model, lazy, 2, 55)
    rows = {key: sum(n) for key, n in read.items()}
    assert max(max(n) for n in read.values()) <= 50, "blocks"
    encoders = {row: n for (tensor, row), n in rows.items() if "enc" in tensor.lower()}
    decoders = {row: n for (tensor, row), n in rows.items() if "dec" in tensor.lower()}
    assert encoders == {2: 1, 3: 120}
    assert {row: n for row, n in decoders.items() if n} == {0: 120, 1: 120}, "its own row is read by its number"
    read.clear()
    attention_report(model, lazy, tokens, (0, 1), 5)
    assert not read, "layer 0 has tokens before it, and no feature"


@pytest.mark.parametrize("name", CASES)
def test_products_of_every_row(made, name):
    _, full, lazy, _ = made(name)
    rng = np.random.default_rng(3)
    for array in ("w_enc", "w_dec"):
        w = np.asarray(getattr(full, array), np.float64)
        rows = (0, len(w) - 1)
        vectors = {row: rng.normal(size=32).astype(np.float32) for row in rows}
        seen: list[tuple[int, int]] = []
        found = products(lazy, array, vectors, lambda *x, seen=seen: seen.append(x))
        for row in rows:
            bound = 2**-23 * 32 * (np.abs(w[row]) @ np.abs(vectors[row])).max()
            np.testing.assert_allclose(found[row], w[row] @ vectors[row], rtol=0, atol=bound)
        assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
        assert len(seen) > 2, "in blocks"


def test_chosen_features_with_their_encoders(made):
    _, full, lazy, _ = made("jumprelu")
    some = chosen(lazy, {1: [119, 4], 3: [7]})
    assert [f.tolist() for f in some.features] == [[], [4, 119], [], [7]]
    for array in ("w_enc", "b_enc", "w_dec", "threshold"):
        got, whole = np.asarray(getattr(some.transcoders, array)), np.asarray(getattr(full, array))
        np.testing.assert_array_equal(got[1, :2], whole[1, [4, 119]])
        np.testing.assert_array_equal(got[3, :1], whole[3, [7]])


@pytest.mark.parametrize("name", ["jumprelu", "some layers"])
def test_denominators_of_a_corpus(made, name):
    model, full, lazy, tokens = made(name)
    a, b = (mean_hold(model, d, np.stack([tokens, tokens[::-1]])) for d in (full, lazy))
    for field in ("norm1", "norm2", "final_norm"):
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_heads(made, name):
    model, full, lazy, tokens = made(name)
    a, b = (attention_report(model, d, tokens, (3, 1), 5, 2, top=40) for d in (full, lazy))
    mass = sum(abs(v) for *_, v in a["pairs"]) + a["rest_abs"]
    assert any("f" in name and int(name.split()[1][1:]) > 64 for name, _ in a["by_key"] if name[0] == "L")
    for side in ("gap", "rest"):  # sums of thousands of terms, rounded otherwise
        assert a.pop(side) == pytest.approx(b.pop(side), abs=4e-6 * mass)
    assert_same(a, b, mass)


@pytest.mark.parametrize("name", CASES)
def test_edges(made, name):
    model, full, lazy, tokens = made(name)
    graph = tc.attribute(model, full, tokens, targets=[3])
    source, target = (graph.features[graph.features[:, 0] == layer] for layer in (1, 3))
    ends = [f"{i}_{f}_{t}" for i, t, f in (target[-1].tolist(), source[0].tolist())]
    a, b = (edge_report(model, d, tokens, *ends) for d in (full, lazy))
    assert a["gap"] < 1e-6
    assert a.pop("gap") == pytest.approx(b.pop("gap"), abs=1e-6)
    assert_same(a, b, 10 * a["mass"])


def test_commands(made, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(common, "start_jax", lambda: None)
    model = tc.load_model("tiny")
    tc.save_transcoders(tc.load_transcoders("tiny-transcoders", model=model), tmp_path / "set", format="circuit-tracer")
    where = ("--transcoders", str(tmp_path / "set"), "--json")

    def told(*arguments):
        assert cli.main([*arguments, *where]) == 0
        got = capsys.readouterr()
        return json.loads(got.out), got.err

    for arguments in (("weights", "2/7", "--top", "5"), ("attention", "a b a", "--head", "2/1")):
        (a, _), (b, said) = told(*arguments), told(*arguments, "--lazy")
        if arguments[0] == "weights":
            assert "reading all decoders of layers 0, 1 and all encoders of layers 3 in blocks" in said
            assert_same(a, b, 10)
        else:
            assert [p[:2] for p in a["by_key"]] == [[n, pytest.approx(v, abs=1e-3)] for n, v in b["by_key"]]
    assert cli.main(["weights", "2/7", "--transcoders", "neurons", "--lazy"]) == 2
    assert "'neurons' are in the model's own memory" in capsys.readouterr().err

"""The blind rating: what the page hides, and counts against those made by hand."""

import json

import numpy as np
import pytest
import scipy.stats

import tcircuits as tc
from experiments.blind_rating import Config, counted, difference, kappa, prepare, read_ratings, tally
from tcircuits.types import InputError

KEY = {
    "page": "0a",
    "items": {
        "001": {"set": "transcoder", "layer": 0, "feature": 1},
        "002": {"set": "sae", "layer": 1, "feature": 2},
        "003": {"set": "transcoder", "layer": 2, "feature": 3},
        "004": {"set": "sae", "layer": 3, "feature": 4},
    },
}


def _ratings(**said):
    return {n: {"rating": r, "context_free": r == "yes"} for n, r in said.items()}


A = {"001": "yes", "002": "no", "003": "maybe", "004": "yes"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("blind") / "rating"
    cfg = Config(out=out, first="tiny-transcoders", second="tiny-skip", n=3, top=4, drawn=3, tokens=2048)
    prepare(cfg)
    return cfg


def test_the_page_says_nothing_of_what_an_item_is(prepared):
    text = (prepared.out / "rate.html").read_text()
    data = json.loads(text.split('id="graph-json">')[1].split("</script>")[0])
    key = json.loads((prepared.out / "key.json").read_text())
    assert data["page"] == key["page"]
    assert [i["name"] for i in data["items"]] == [f"{n:03d}" for n in range(1, 7)] == list(key["items"])
    assert set(data) == {"page", "items", "words", "ratings"}
    assert all(set(i) == {"name", "examples"} for i in data["items"])
    assert sorted(i["set"] for i in key["items"].values()) == ["tiny-skip"] * 3 + ["tiny-transcoders"] * 3
    assert [i["set"] for i in key["items"].values()] != ["tiny-transcoders"] * 3 + ["tiny-skip"] * 3


def test_examples_are_the_features_activations(prepared):
    """Shades, computed anew: the feature's value at each token over its largest."""
    data = json.loads((prepared.out / "rate.html").read_text().split('id="graph-json">')[1].split("</script>")[0])
    key = json.loads((prepared.out / "key.json").read_text())["items"]
    model = tc.load_model("tiny")
    item = next(i for i in data["items"] if key[i["name"]]["set"] == "tiny-transcoders")
    where = key[item["name"]]
    d = tc.load_transcoders("tiny-transcoders", model=model)
    w, b = np.asarray(d.w_enc)[where["layer"], where["feature"]], np.asarray(d.b_enc)[where["layer"], where["feature"]]
    threshold = np.asarray(d.threshold)[where["layer"], where["feature"]]
    words, parts, chosen = item["examples"][0]
    assert max(parts) == parts[chosen] == 1
    text = "".join(data["words"][n] for n in words)
    ids = _row_with(model, prepared, text)
    read = np.asarray(tc.forward(model.cfg, model.params, ids[None], sites=("mlp_in",)).acts["mlp_in"])
    value = read[where["layer"], 0] @ w + b
    value = np.where(value > threshold, value, 0.0)
    at = _places(model, ids, words, data["words"])
    found = [value[at : at + len(words)] for at in at]
    expected = np.round(20 * np.asarray(parts)) / 20
    assert any(np.abs(v / v[chosen] - expected).max() <= 0.026 for v in found if v[chosen] > 0)  # half a shade


def _row_with(model, cfg, text):
    from experiments.blind_rating import _text

    return next(row for row in _text(cfg, model) if text in "".join(model.token(int(t)) for t in row))


def _places(model, ids, words, texts):
    spelled = [model.token(int(t)) for t in ids]
    wanted = [texts[n] for n in words]
    return [i for i in range(len(ids)) if spelled[i : i + len(wanted)] == wanted]


def test_counts_and_their_difference():
    table = counted(KEY, _ratings(**A))
    assert [(r["set"], r["rated"], r["yes"], r["maybe"], r["no"], r["context_free"]) for r in table] == [
        ("sae", 2, 1, 0, 1, 1),
        ("transcoder", 2, 1, 1, 0, 1),
    ]
    big = [
        {"yes": 38, "rated": 50, "yes_share": _wilson(38, 50)},
        {"yes": 41, "rated": 50, "yes_share": _wilson(41, 50)},
    ]
    found = difference(big)
    # Newcombe 1998, method 10: d -+ sqrt((p1 - l1)^2 + (u2 - p2)^2)
    (l1, u1), (l2, u2) = (scipy.stats.binomtest(k, 50).proportion_ci(method="wilson") for k in (38, 41))
    assert found["difference"] == pytest.approx(0.06)
    assert found["low"] == pytest.approx(0.06 - np.hypot(0.82 - l2, u1 - 0.76), abs=1e-4)
    assert found["high"] == pytest.approx(0.06 + np.hypot(u2 - 0.82, 0.76 - l1), abs=1e-4)
    assert found["fisher_p"] == pytest.approx(0.624, abs=1e-3)


def _wilson(k, n):
    low, high = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    return {"value": k / n, "low": low, "high": high}


def test_kappa():
    a = _ratings(**A)
    assert kappa(a, a) == 1
    b = _ratings(**{"001": "yes", "002": "yes", "003": "maybe", "004": "no"})
    # agree 2 of 4; chance: yes .5 x .5, maybe .25 x .25, no .25 x .25
    assert kappa(a, b) == pytest.approx((0.5 - 0.375) / (1 - 0.375))
    assert kappa(a, {}) is None


def test_a_saved_file_is_tallied(tmp_path, capsys):
    (tmp_path / "key.json").write_text(json.dumps(KEY))
    saved = {"page": "0a", "ratings": {n: {**r, "note": "x"} for n, r in _ratings(**A).items()}}
    saved["ratings"]["002"] = {"rating": None, "context_free": False, "note": ""}
    path = tmp_path / "ratings.json"
    path.write_text(json.dumps(saved))
    assert set(read_ratings(path, KEY)) == {"001", "003", "004"}
    (tmp_path / "other.json").write_text(path.read_text())
    tally(Config(out=tmp_path, ratings=(path, tmp_path / "other.json")))
    printed = capsys.readouterr().out
    assert "transcoder less sae: -0.50" in printed
    assert f"Cohen's kappa of {path} and {tmp_path}/other.json: 1.00" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "holds no ratings"),
        ('{"page": "0a"}', "holds no ratings"),
        ('{"page": "0b", "ratings": {}}', "belongs together"),
        ('{"page": "0a", "ratings": {"009": {"rating": "yes", "context_free": false}}}', "not of this page"),
        ('{"page": "0a", "ratings": {"001": {"rating": "good", "context_free": false}}}', "does not exist"),
    ],
)
def test_files_that_are_no_ratings(content, message, tmp_path):
    path = tmp_path / "ratings.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_ratings(path, KEY)


def test_what_cannot_be_prepared(prepared, tmp_path):
    with pytest.raises(InputError, match="new folder"):
        prepare(prepared)
    with pytest.raises(InputError, match="both"):
        prepare(Config(out=tmp_path / "a", first="tiny-skip"))
    cfg = Config(out=tmp_path / "b", first="tiny-transcoders", second="tiny-skip", n=5000, tokens=256)
    with pytest.raises(InputError, match="5000 are asked for"):
        prepare(cfg)
    assert not (tmp_path / "b").exists()

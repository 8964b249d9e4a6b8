"""One feature and one head by name, and the commands that print them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.attribution.promote import top_effects, written_by
from tcircuits.cli import common

PROMPT = "While Robert and James were working at the beach, Robert gave a drink to"


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setattr(common, "start_jax", lambda: None)


@pytest.fixture(scope="module")
def tiny():
    model = tc.load_model("tiny")
    return model, tc.load_transcoders("tiny-transcoders", model=model)


@pytest.fixture
def run(capsys):
    def go(*arguments, code=0):
        assert cli.main([str(a) for a in arguments]) == code
        told = capsys.readouterr()
        return told.err if code else told.out

    return go


def test_a_feature_of_the_embedded_model(run, tiny):
    """Each list against a dense product of the stored matrices."""
    model, d = tiny
    layer, index = 2, 7
    found = json.loads(run("weights", f"{layer}/{index}", "--json", "--top", 5))
    assert (found["model"], found["layer"], found["feature"]) == ("tiny", layer, index)
    blocks, embed = model.params.blocks, np.asarray(model.params.embed, np.float64)
    gain = np.asarray(blocks.norm2.w, np.float64)
    enc, dec = np.asarray(d.w_enc, np.float64), np.asarray(d.w_dec, np.float64)
    u = enc[layer, index] * gain[layer] if d.cfg.reads == "mlp_in" else enc[layer, index]
    scores = embed @ u
    best = np.argsort(-scores)[:5]
    assert [t for t, _ in found["tokens"]["largest"]] == [model.token(int(i)) for i in best]
    np.testing.assert_allclose([v for _, v in found["tokens"]["largest"]], scores[best], rtol=1e-4)
    past = np.stack([dec[i] @ u if i < layer else 0 * dec[i, :, 0] for i in range(4)])
    order = np.argsort(-past, axis=None)[:5]
    assert [tuple(f[:2]) for f in found["earlier"]["excite"]] == [
        tuple(int(x) for x in np.unravel_index(i, past.shape)) for i in order
    ]
    later = enc[3] * gain[3] @ dec[layer, index]
    assert found["later"]["inhibited"][0][:2] == [3, int(np.argmin(later))]
    place = jnp.array([[layer, 0, index]])
    effect, tokens = top_effects(model.cfg, model.params, written_by(model.cfg, model.params, d, place, jnp.ones(1)), 5)
    assert [t for t, _ in found["logits"]["promoted"]] == [model.token(int(t)) for t in tokens[0, 0]]
    np.testing.assert_allclose([v for _, v in found["logits"]["promoted"]], effect[0, 0], rtol=1e-4)
    assert len(found["heads"]) == 6
    norms = [h["norm"] for h in found["heads"]]
    assert norms == sorted(norms, reverse=True)
    first = found["heads"][0]
    chain = f"{first['layer']}/{first['head']}"
    through = json.loads(run("weights", f"{layer}/{index}", "--json", "--top", 5, "--through", chain))
    assert [t for t, _ in through["tokens"]["largest"]] == [t for t, _ in first["largest"]]
    assert all(h["layer"] < first["layer"] for h in through["heads"])


def test_an_attention_score_of_the_embedded_model(run, tiny):
    model, _ = tiny
    ids = model.encode(PROMPT, bos="auto")
    found = json.loads(run("attention", PROMPT, "--head", "2/1", "--query", "-1", "--json", "--top", 7))
    out = tc.forward(model.cfg, model.params, jnp.asarray(ids)[None], sites=("pattern",))
    pattern = np.asarray(out.acts["pattern"])[2, 0, 1, -1]
    assert found["key"]["position"] == int(pattern.argmax())
    assert found["pattern"] == pytest.approx(float(pattern.max()), rel=1e-4)
    assert found["query"] == {"position": len(ids) - 1, "token": " to"}
    total = sum(v for *_, v in found["pairs"]) + found["rest"]
    assert total == pytest.approx(
        found["score"], abs=1e-6 * (found["rest_abs"] + sum(abs(p[2]) for p in found["pairs"]))
    )
    assert found["gap"] < 1e-6
    assert len(found["pairs"]) == len(found["by_query"]) == 7


def test_tables(run):
    shown = run("weights", "1/3", "--through", "1/0", "--data", "README.md", "--n-tokens", 512)
    assert "means over README.md" in shown
    assert "through head 1/0" in shown
    shown = run("attention", "a b a", "--head", "0/1", "--query", 1, "--key", 0)
    assert "Head 0/1" in shown
    assert "all other pairs" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weights", "2"), "feature '2': write LAYER/INDEX"),
        (("weights", "2/5000"), "feature 5000 of layer 2: its dictionary has features 0..1023"),
        (("weights", "9/1"), "layer 9: the model has layers 0..3"),
        (("weights", "2/5", "--through", "2/4"), "head 2/4 does not exist"),
        (("weights", "2/5", "--through", "3/0"), "head 3/0 cannot come here"),
        (("weights", "2/5", "--top", "0"), "--top 0"),
        (("attention", "a", "--head", "x"), "head 'x': write LAYER/HEAD"),
        (("attention", "a", "--head", "4/0"), "head 4/0 does not exist"),
        (("attention", "a b", "--head", "1/0", "--query", "90"), "position 90 is outside the prompt"),
        (("attention", "a b", "--head", "1/0", "--query", "0", "--key", "1"), "comes after query position 0"),
    ],
)
def test_refused(run, arguments, message):
    assert message in run(*arguments, code=2)

"""The guided case study: what is hidden stays hidden, and steps come in their order."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

import tcircuits as tc
from experiments.case_study import Config, from_end, main, read
from tcircuits.types import InputError


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    out = tmp_path_factory.mktemp("case") / "study"
    cfg = Config(out=out, tokens=4096, prompts=2, least=4, seed=1, restricted=True, iterations=2, branches=5)
    main(cfg)
    return cfg


def _step(cfg, **step):
    main(dataclasses.replace(cfg, **step))


def test_the_first_step_shows_no_text_and_its_values_are_the_features(begun, capsys):
    study = read(begun.out)
    model = tc.load_model("tiny")
    d = tc.load_transcoders(study.about["transcoders"], model=model)
    layer, number = study.about["layer"], study.about["feature"]
    assert layer > 0
    for tokens, value in zip(study.prompts, study.about["values"], strict=True):
        read_ = tc.forward(model.cfg, model.params, tokens[None], sites=("mlp_in",)).acts["mlp_in"][layer, 0, -1]
        pre = np.asarray(d.w_enc[layer, number]) @ np.asarray(read_) + np.asarray(d.b_enc[layer, number])
        np.testing.assert_allclose(pre, value, rtol=1e-4)  # float32 products of 128 terms, twice through the model
    about = (begun.out / "study.json").read_text()
    assert not any(word in about for word in _words(model, study))


def _words(model, study):
    return {model.token(int(t)).strip() for p in study.prompts for t in p if len(model.token(int(t)).strip()) > 4}


def test_paths_are_numbers_and_the_first_layers_features_are_hidden(begun, capsys):
    _step(begun, prompt=0)
    _step(begun, together=True)
    printed = capsys.readouterr().out
    assert "<-" in printed
    assert "mlp0tc[hidden]" in printed
    assert "mlp0tc[0" not in printed
    study = read(begun.out)
    assert not any(word in printed for word in _words(tc.load_model("tiny"), study))
    assert study.steps[-2:] == ("prompt", "together")


def test_a_hypothesis_comes_before_the_reveal_and_not_after(begun, capsys):
    with pytest.raises(InputError, match="no hypothesis"):
        _step(begun, reveal=True)
    with pytest.raises(InputError, match="not revealed"):
        _step(begun, verdict="success")
    with pytest.raises(InputError, match="empty"):
        _step(begun, hypothesis=" ")
    _step(begun, hypothesis="years")
    _step(begun, weights="0/1")
    _step(begun, reveal=True)
    printed = capsys.readouterr().out
    assert "Hypothesis: years" in printed
    assert any(word in printed for word in _words(tc.load_model("tiny"), read(begun.out)))
    with pytest.raises(InputError, match="revealed already"):
        _step(begun, hypothesis="months")
    _step(begun, verdict="failure")
    assert "restricted blind, failure (years)" in capsys.readouterr().out
    lines = [json.loads(line) for line in (begun.out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines][-4:] == ["hypothesis", "weights", "reveal", "verdict"]


def test_a_finished_study_as_a_page(begun, capsys, tmp_path):
    """Every step with its answer in order; activations of the prompts against a forward pass multiplied out here."""
    study = read(begun.out)
    begin_only = tmp_path / "other"
    shutil.copytree(begun.out, begin_only)
    (begin_only / "log.jsonl").write_text(json.dumps(study.log[0]) + "\n")
    with pytest.raises(InputError, match="not finished"):
        main(Config(out=begin_only, page=True))
    assert not (begin_only / "page.html").exists()
    text = (begun.out / "log.jsonl").read_text().replace("years", "years </script><b>")
    (begun.out / "log.jsonl").write_text(text)
    _step(begun, page=True)
    assert "page.html" in capsys.readouterr().out
    written = (begun.out / "page.html").read_text()
    blocks = re.findall(r'<script type="application/json" id="graph-json">(.*?)</script>', written, re.S)
    assert len(blocks) == 1
    data = json.loads(blocks[0])
    assert data["hypothesis"] == "years </script><b>"
    assert data["verdict"] == "failure"
    assert len(data["hidden"]) == 2, "restricted: layer 0 too"
    assert [s["question"].split()[0] for s in data["steps"]] == [
        "Began;", "Paths", "Components", "Hypothesis:", "Feature", "Reveal", "Verdict:"]  # fmt: skip
    paths, together, weights = (data["steps"][i] for i in (1, 2, 4))
    assert "mlp0tc[hidden]" in "".join(paths["lines"])
    assert len(together["rows"]) == len(study.log[2]["components"]) > 3
    assert weights["rows"][0][0]["text"] == "answers to tokens"
    model = tc.load_model("tiny")
    d, layer, number = (
        tc.load_transcoders("tiny-transcoders", model=model),
        study.about["layer"],
        study.about["feature"],
    )
    for tokens, passage in zip(study.prompts, data["prompts"], strict=True):
        x = np.asarray(tc.forward(model.cfg, model.params, tokens[None], sites=("mlp_in",)).acts["mlp_in"][layer, 0])
        pre = x @ np.asarray(d.w_enc[layer, number]) + np.asarray(d.b_enc[layer, number])
        expected = np.where(pre > np.asarray(d.threshold[layer, number]), pre, 0)[-48:]
        np.testing.assert_allclose(passage["values"], expected, rtol=1e-3, atol=1e-5)
        assert passage["words"] == [model.token(int(t)) for t in tokens[-48:]]
        assert passage["chosen"] == len(passage["words"]) - 1
        assert passage["cut"] == (len(tokens) > 48)


def test_positions_from_the_end():
    assert from_end("attn2[1]@4", 10) == "attn2[1]@-6"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"prompt": 7}, "prompts 0..1"),
        ({"prompt": 0, "reveal": True}, "one step at a time"),
        ({"weights": "three"}, "two numbers"),
        ({}, "exists"),
    ],
)
def test_steps_that_make_no_sense(begun, step, message):
    with pytest.raises(InputError, match=message):
        _step(begun, **step)


def test_what_is_no_study(tmp_path):
    with pytest.raises(InputError, match="no study"):
        main(Config(out=tmp_path, reveal=True))
    with pytest.raises(InputError, match=r"feature 9999|0\.\.1023"):
        main(Config(out=tmp_path / "new", feature="2/9999", tokens=1024))
    assert not (tmp_path / "new").exists()

"""`tcircuits discover` and `tcircuits validate`: what they write, print and refuse."""

import json

import pytest

from tcircuits.cli import main

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("circuit") / "agreement"
    few = ["--prompts", "8", "8", "12", "--units", "attn,mlp"]
    assert main(["discover", "--task", "agreement_across", "--out", str(folder), *few]) == 0
    return folder


def test_a_circuit_is_found_tested_and_shown(found, capsys):
    head = json.loads((found / "circuit.json").read_text())
    assert head["about"]["behaviour"]["prompts"] == {"attribution": 8, "selection": 8, "report": 12}
    assert head["size"] == len(head["labels"]) <= 8
    assert main(["validate", str(found), "--random", "10"]) == 0
    out = capsys.readouterr().out
    assert "nothing" in out
    assert "10 random" in out
    report = json.loads((found / "report.json").read_text())
    assert report["about"]["prompts"] == 12
    assert report["circuit"]["units"] == head["size"]
    assert report["nothing"]["faithfulness"]["value"] == 0
    assert abs(report["curves"]["signed"]["faithfulness"][-1] - 1) < 1e-5
    page = (found / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert main(["validate", str(found), "--random", "5", "--json", "--ablation", "zero"]) == 0
    assert json.loads(capsys.readouterr().out)["about"]["ablation"] == "zero"


def test_a_circuit_is_extracted_and_the_command_goes_on(tmp_path, capsys):
    out = tmp_path / "extracted"
    few = ["--prompts", "4", "4", "6", "--budget", "64", "--nodes", "200", "--share", "0.01", "--random", "5"]
    command = ["extract", "--task", "agreement_across", "--out", str(out), *few]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "graph ..." in said
    assert "nothing" in said
    first = (out / "circuit.json").read_text()
    assert json.loads(first)["size"] <= 42  # a hundredth of all units
    assert {p.name for p in out.iterdir()} >= {"behaviour.json", "report.json", "report.html", "tree.html", "stages"}
    (out / "circuit.json").unlink()
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["seconds"]) == {"choice"}
    assert (out / "circuit.json").read_text() == first
    assert main(["extract", "--task", "ioi", "--out", str(out), *few]) == 2
    assert "another call" in capsys.readouterr().err
    assert main(["validate", str(out), "--random", "5", "--json"]) == 0


def test_units_apart_by_position(tmp_path, capsys):
    out = tmp_path / "apart"
    some = ["--task", "ioi", "--prompts", "6", "4", "6", "--units", "head,mlp", "--positions", "--out", str(out)]
    assert main(["discover", *some]) == 0
    head = json.loads((out / "circuit.json").read_text())
    assert all(-head["units"]["positions"] <= int(label.rsplit("@", 1)[1]) < 0 for label in head["labels"])
    assert main(["validate", str(out), "--random", "5"]) == 0
    capsys.readouterr()
    assert main(["discover", "--task", "ioi", "--units", "edge", "--positions", "--out", str(tmp_path / "other")]) == 2
    assert "edges are pooled over positions" in capsys.readouterr().err


def test_patching_is_shown_as_heat_maps(tmp_path, capsys):
    out = tmp_path / "patched"
    few = ["--prompts", "4", "--sites", "resid_pre,z"]
    assert main(["patch", "--task", "agreement_across", "--out", str(out), *few]) == 0
    assert "Strongest places" in capsys.readouterr().out
    found = json.loads((out / "patching.json").read_text())
    first, last = found["places"]["resid_pre"][0], found["places"]["resid_pre"][-1]
    assert sum(first) == pytest.approx(1, abs=0.3)  # the prompts differ in one word: its place has nearly all
    assert last[-1] == max(last)
    page = (out / "patching.html").read_text()
    assert page.count("<svg") == 2
    assert "src=" not in page


def test_paths_into_readers_are_shown_as_a_heat_map(tmp_path, capsys):
    out = tmp_path / "patched"
    some = ["--prompts", "4", "--to", "logits,head 1.0 v"]
    assert main(["patch", "--task", "ioi", "--out", str(out), *some]) == 0
    assert "Strongest paths" in capsys.readouterr().out
    found = json.loads((out / "patching.json").read_text())
    assert found["readers"] == ["head 1.0 v", "logits"]
    assert found["shares"][0].count(None) == len(found["writers"]) - 6  # it hears the embedding and layer 0 alone
    assert (out / "patching.html").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["discover", "--task", "chess", "--out", "OUT"], "'chess' is unknown"),
        (["discover", "--task", "ioi", "--out", "OUT", "--units", "head,tail"], "'tail' is unknown"),
        (["extract", "--task", "chess", "--out", "OUT"], "'chess' is unknown"),
        (["extract", "--task", "ioi", "--out", "OUT", "--budget", "0"], "at least 60"),
        (["discover", "--task", "modular", "--out", "OUT"], "cannot do 'modular'"),
        (["patch", "--task", "chess", "--out", "OUT"], "'chess' is unknown"),
        (["patch", "--task", "ioi", "--out", "OUT", "--to", "head 9.9 q"], "['head 9.9 q'] are unknown"),
        (["validate", "OUT"], "is no folder"),
        (["validate", "HERE"], "no behaviour at"),
    ],
)
def test_wrong_input_ends_with_a_message(arguments, words, tmp_path, capsys):
    paths = {"OUT": str(tmp_path / "new"), "HERE": str(tmp_path)}
    assert main([paths.get(a, a) for a in arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_used_is_left_alone(found, capsys):
    assert main(["discover", "--task", "ioi", "--out", str(found)]) == 2
    assert "not empty" in capsys.readouterr().err

"""A slice of the fuzzer, and proof that it sees what it looks for."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from experiments import common, fuzz_loaders
from experiments.fuzz import mutations
from experiments.fuzz.subjects import SUBJECTS

TENSORS = ("safetensors", "npz", "npy", "torch-zip", "torch-stream", "pickle", "gzip", "texts")


def test_a_slice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    cfg = fuzz_loaders.Config(n=200, seed=1, subjects=TENSORS, workers=1, keep=tmp_path / "failures")
    found = fuzz_loaders.main(cfg)
    assert found["failures"] == []
    assert found["files"] == 200
    assert found["outcomes"]["refused"] > 100
    assert found["outcomes"]["loaded"] > 10
    assert {row["subject"] for row in found["subjects"]} == set(TENSORS)
    assert not cfg.keep.exists()
    assert json.loads((tmp_path / "fuzz_loaders.json").read_text())["figures"]["files"] == 200
    assert "torch-stream" in capsys.readouterr().out


def test_so_many_of_each_and_rows_that_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    cfg = fuzz_loaders.Config(each=10, seed=1, subjects=("npy", "texts"), workers=1, keep=tmp_path / "failures")
    first = fuzz_loaders.main(cfg)
    assert [(row["subject"], row["files"]) for row in first["subjects"]] == [("npy", 10), ("texts", 10)]
    assert first["least_of_a_subject"] == 10
    assert all(sum(row[kind] for kind in fuzz_loaders.KINDS) == 10 for row in first["subjects"])
    assert all(sum(row["damage"].values()) >= 10 for row in first["subjects"])
    merged = fuzz_loaders.main(dataclasses.replace(cfg, subjects=("texts", "npz"), merge=True))
    assert [row["subject"] for row in merged["subjects"]] == ["npy", "npz", "texts"]
    assert merged["subjects"][0] == first["subjects"][0]
    assert merged["files"] == 30 == sum(merged["outcomes"].values())
    with pytest.raises(ValueError, match="another --each"):
        fuzz_loaders.main(dataclasses.replace(cfg, each=11, merge=True))


def test_only_the_first_failures_are_kept_but_all_are_counted():
    tally = fuzz_loaders.Tally()
    for i in range(200):
        kind = "failed" if i % 2 else "loaded"
        outcome = {"subject": "npy", "seed": [0, 2, i], "how": ["a.npy", "flip"], "wrong": ["x"] * (i % 2), "peak": i}
        tally.add(outcome | {"outcome": kind, "message": "m", "seconds": 0.5})
    row = tally.row("npy", "c0ffee")
    assert (row["loaded"], row["refused"], row["failed"], row["files"]) == (100, 0, 100, 200)
    assert (row["damage"], row["seconds"], row["slowest_s"]) == ({"flip": 200}, 100.0, 0.5)
    assert len(tally.failures) == fuzz_loaders.SHOWN


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    fuzz_loaders.make_base(folder, ("pickle", "npz", "safetensors", "gzip"))
    return folder


@pytest.mark.parametrize("name", ["pickle", "npz", "safetensors", "gzip"])
def test_the_same_seed_makes_the_same_file(name, base):
    for path in sorted((base / name).iterdir()):
        data = path.read_bytes()
        made = [mutations.mutate(path.name, data, np.random.default_rng([3, i])) for i in range(30)]
        assert made == [mutations.mutate(path.name, data, np.random.default_rng([3, i])) for i in range(30)]
        assert sum(changed != data for changed, _ in made) > 25


# Loaders that do what none may do, and what must be said of them.
BAD = {
    "raises": ("[][1]", "IndexError"),
    "exits": ("sys.exit(3)", "SystemExit"),
    "unpickles": ("pickle.loads(b'\\x80\\x02cos\\ngetpid\\n)R.')", "pickle.find_class"),
    "runs a command": ("os.system('true')", "os.system"),
    "runs a program": ("subprocess.run(['true'])", "subprocess.Popen"),
    "runs foreign code": ("exec(compile('x = 1', '/elsewhere.py', 'exec'))", "ran: exec"),
    "opens a connection": ("socket.socket().close()", "socket"),
    "imports a named module": ("__import__('runpy')", "ran: import"),
    "writes elsewhere": ("open(os.path.expanduser('~/.fuzz_probe'), 'w').close()", "ran: open"),
    "leaves a canary": ("open('CANARY', 'w').close()", "CANARY"),
    "takes memory": ("x = bytearray(200 << 20); x[::4096] = b'1' * len(x[::4096])", "memory"),
    "asks for memory that it does not touch": ("x = numpy.empty(3 << 30, 'u1')", "memory"),
    "says nothing": ("raise InputError('')", "message"),
    "says what cannot be printed": ("raise InputError('\\ud800')", "cannot be printed"),
    "dies": ("os.abort()", "the process died"),
    "dies quietly": ("os._exit(0)", "the process died"),
    "computes without end": ("while True: pass", "more than 3"),
}
PROGRAM = """
import json, numpy, os, pickle, socket, subprocess, sys
from pathlib import Path
from experiments.fuzz import subjects, worker
from tcircuits.types import InputError

ACTIONS = json.loads(sys.argv[3])
action = [None]

def load(path, note):
    note(0)
    if action[0] is not None:
        exec(compile(ACTIONS[action[0]], worker.__file__, "exec"))

run, warm = worker.Runner.run, worker._warm

def then(self, subject, seed):
    action[0] = seed[-1] if armed else None
    return run(self, subject, seed)

def first(*arguments):
    global armed
    warm(*arguments)
    armed = True

armed = False
worker.Runner.run, worker._warm = then, first
worker.TRACED = 1
subjects.SUBJECTS["npy"] = subjects.Subject(subjects.make_npy, load)
worker.main(Path(sys.argv[1]), Path(sys.argv[2]), ["npy"])
"""


@pytest.fixture(scope="module")
def misled(tmp_path_factory):
    """A worker whose loader does what the job's number says."""
    folder, probe = tmp_path_factory.mktemp("misled"), os.path.expanduser("~/.fuzz_probe")
    fuzz_loaders.make_base(folder / "base", ("npy",))
    worker = fuzz_loaders.Worker(folder / "base", folder / "scratch0", ("npy",))
    actions = json.dumps([action for action, _ in BAD.values()])
    worker.command = [sys.executable, "-c", PROGRAM, *worker.command[3:5], actions]
    yield worker
    worker.stop()
    if os.path.exists(probe):
        os.remove(probe)


@pytest.mark.parametrize("name", BAD)
def test_the_fuzzer_sees(name, misled):
    found = misled.run({"subject": "npy", "seed": [0, 0, list(BAD).index(name)]}, 3.0)
    assert found["outcome"] == "failed"
    assert any(BAD[name][1] in wrong for wrong in found["wrong"]), found["wrong"]


def test_every_subject_has_a_share_and_every_failure_is_kept(tmp_path, monkeypatch):
    cfg = fuzz_loaders.Config(n=5000)
    counts = dict.fromkeys(SUBJECTS, 0)
    for job in fuzz_loaders.jobs(cfg):
        counts[job["subject"]] += 1
    total = sum(s.weight for s in SUBJECTS.values())
    for name, subject in SUBJECTS.items():
        assert abs(counts[name] / 5000 - subject.weight / total) < 0.02
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "a.npy").write_bytes(b"x")
    cfg = fuzz_loaders.Config(keep=tmp_path / "keep")
    fuzz_loaders._keep(cfg, scratch, {"subject": "npy", "seed": [0, 2, 5], "wrong": ["x"]})
    assert (tmp_path / "keep" / "npy-0-2-5" / "a.npy").read_bytes() == b"x"
    assert json.loads((tmp_path / "keep" / "npy-0-2-5" / "outcome.json").read_text())["wrong"] == ["x"]

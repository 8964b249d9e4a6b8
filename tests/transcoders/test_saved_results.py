"""Files of statistics and evaluations: what is saved comes back, what was changed is refused with a message."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from tcircuits.transcoders.evaluation.saved import load_evaluation, save_evaluation
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.statistics.result import load_statistics, origin
from tcircuits.transcoders.statistics.run import feature_statistics
from tcircuits.types import InputError
from tests import bridge
from tests.transcoders import evaluated


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One file of each kind."""
    folder, c = tmp_path_factory.mktemp("saved"), evaluated.case("llama", "some-layers")
    model, d = bridge.model(c, "float32"), bridge.transcoders(c.d, "float32")
    feature_statistics(model, d, c.rows, top=2, drawn=3).save(folder / "statistics.npz")
    evaluation = evaluate(model, d, c.rows)
    save_evaluation(evaluation, folder / "evaluation.npz")
    return folder, evaluation


def test_an_evaluation_comes_back(saved):
    folder, evaluation = saved
    again = load_evaluation(folder / "evaluation.npz")
    for f in dataclasses.fields(evaluation):
        if f.name not in ("sums", "losses"):
            np.testing.assert_array_equal(getattr(again, f.name), getattr(evaluation, f.name))
    for part in ("sums", "losses"):
        for f in dataclasses.fields(getattr(evaluation, part)):
            np.testing.assert_array_equal(
                getattr(getattr(again, part), f.name), getattr(getattr(evaluation, part), f.name)
            )
    assert again.ce_original == evaluation.ce_original


def change(path, out, arrays=(), **told):
    """The file with other arrays (functions of the old ones; None drops one) and other fields in its text."""
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    about = json.loads(str(values.pop("about"))) | told
    for name, f in dict(arrays).items():
        values[name] = None if f is None else f(values.get(name))
    np.savez_compressed(out, about=json.dumps(about), **{k: v for k, v in values.items() if v is not None})
    return out


CFG = {"kind": "transcoder", "n_layers": 2, "d_model": 8, "d_feature": 2**40, "layers": [0]}
STATISTICS = {
    "version": ({"version": 2}, {}, "version 2; this release reads version 1"),
    "kind": ({"cfg": CFG | {"kind": "magic"}}, {}, 'kind: "magic" is none of'),
    "sizes": ({"cfg": CFG}, {}, "has shape"),
    "text for a size": ({"cfg": CFG | {"d_feature": "9"}}, {}, 'd_feature: "9" is no whole number'),
    "config": ({"cfg": CFG | {"layers": [1, 0]}}, {}, "must be ascending"),
    "keeping": ({"keeping": {"top": 0}}, {}, "keep at least 1"),
    "unknown": ({"more": 1}, {}, "'more' is unknown"),
    "no name": ({"model": None}, {}, "model: null is no text"),
    "rows": ({"n_rows": 0}, {}, "0 rows"),
    "missing": ({}, {"total": None}, "total is missing"),
    "shape": ({}, {"drawn": lambda x: x[..., :1]}, "drawn has shape"),
    "type": ({}, {"token": lambda x: x.astype(float)}, "token holds F64"),
    "tokens": ({}, {"token": lambda x: x * 0 + np.uint32(10**6)}, "token has tokens outside"),
    "negative": ({}, {"count": lambda x: x.astype(np.int64) * -1}, "negative counts"),
    "not finite": ({}, {"value": lambda x: x * np.nan}, "not finite"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_changed_statistics_are_refused(name, saved, tmp_path):
    told, arrays, message = STATISTICS[name]
    path = change(saved[0] / "statistics.npz", tmp_path / "a.npz", arrays, **told)
    with pytest.raises(InputError, match=message):
        load_statistics(path)


def test_where_statistics_came_from_is_read_alone(saved, tmp_path):
    path = change(saved[0] / "statistics.npz", tmp_path / "a.npz", {"total": None}, dictionary="somewhere")
    assert origin(path) == "somewhere"
    with pytest.raises(InputError, match="dictionary: 3 is no text"):
        origin(change(path, tmp_path / "b.npz", dictionary=3))


EVALUATION = {
    "version": ({"version": 0}, {}, "version 0"),
    "sets": ({"sets": [[7]]}, {}, "7"),
    "sets in disorder": ({"sets": [[1], [1]]}, {}, "sets"),
    "sets of texts": ({"sets": [["x"]]}, {}, "no whole number"),
    "rows": ({"n_rows": 10**9}, {}, "has shape"),
    "no about": ({"about": []}, {}, "about: a JSON list of 0 is no object"),
    "config": ({"cfg": []}, {}, "cfg: a JSON list of 0 is no object"),
    "missing": ({}, {"sums.error": None}, "sums.error is missing"),
    "shape": ({}, {"losses.ce": lambda x: x[:2]}, "losses.ce has shape"),
    "type": ({}, {"largest": lambda x: x > 0}, "largest holds BOOL"),
}


@pytest.mark.parametrize("name", EVALUATION)
def test_changed_evaluations_are_refused(name, saved, tmp_path):
    told, arrays, message = EVALUATION[name]
    path = change(saved[0] / "evaluation.npz", tmp_path / "a.npz", arrays, **told)
    with pytest.raises(InputError, match=message):
        load_evaluation(path)


@pytest.mark.parametrize("load", [load_statistics, origin, load_evaluation])
def test_what_is_no_such_file_is_refused(load, tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    (tmp_path / "none.npz").write_bytes(b"")
    np.savez(tmp_path / "foreign.npz", a=np.ones(2))
    np.savez(tmp_path / "text.npz", about="{")
    for name in ("empty", "none", "foreign", "text", "absent"):
        with pytest.raises(InputError, match=rf"{name}\.npz cannot be read as"):
            load(tmp_path / f"{name}.npz")

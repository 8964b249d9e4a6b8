"""The .npz of a graph: nothing is lost, equal graphs are equal bytes, and no file can do harm."""

import json
import os
import pickle
import resource
import zipfile
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import pytest

from tcircuits.attribution.graph import Graph
from tcircuits.attribution.graph_io import load_graph, save_graph
from tcircuits.attribution.prune import prune, scores
from tcircuits.types import InputError

from .graphs import GRAPHS, LOGITS, NAMES, random_graph


def assert_same(a: Graph, b: Graph) -> None:
    """Field by field, arrays bit by bit and of the same type."""
    for field in fields(Graph):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), field.name
        else:
            assert x == y, field.name
            assert type(x) is type(y), field.name


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost(name, tmp_path):
    graph = GRAPHS[name]()
    path = save_graph(graph, tmp_path / "graph.npz")
    assert_same(graph, load_graph(path))
    assert [p.name for p in tmp_path.iterdir()] == ["graph.npz"]


def test_numpy_alone_reads_the_file(tmp_path):
    graph = prune(random_graph())
    with np.load(save_graph(graph, tmp_path / "graph.npz"), allow_pickle=False) as stored:
        text = json.loads(str(stored["json"]))
        np.testing.assert_array_equal(stored["edge_mask"], graph.edge_mask)
        assert set(stored) - {"json"} == {
            f.name for f in fields(Graph) if isinstance(getattr(graph, f.name), np.ndarray)
        }
    assert (text["model"], text["targets"][0]["token"], text["version"]) == ("model", 7, 1)


def test_equal_graphs_are_equal_bytes(tmp_path, monkeypatch):
    first = prune(random_graph())
    save_graph(first, tmp_path / "a.npz")
    monkeypatch.setattr("time.time", lambda: 2e9)
    again = replace(prune(random_graph()), settings=dict(reversed(first.settings.items())))
    again = replace(again, features=np.asfortranarray(again.features), weight=np.repeat(again.weight, 2)[::2])
    save_graph(again, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    save_graph(replace(again, n_active=again.n_active + 1), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "b.npz").read_bytes()


def test_numpy_scalars_in_settings_and_targets_are_plain_numbers(tmp_path):
    target = replace(LOGITS[0], token=np.int32(7), prob=np.float32(0.5), weight=np.float64(0.5))
    graph = random_graph(targets=(target,), settings={"n": np.int64(3)})
    back = load_graph(save_graph(graph, tmp_path / "graph.npz"))
    assert back.settings == {"n": 3}
    assert type(back.targets[0].prob) is float


def test_a_compacted_graph_keeps_the_scores_of_the_whole(tmp_path):
    whole = prune(random_graph(n=60, seed=3))
    path = save_graph(whole.compact(), tmp_path / "graph.npz")
    loaded = load_graph(path)
    assert len(loaded.weight) < len(whole.weight)
    assert scores(loaded) == scores(whole)
    assert loaded.max_row_gap < 1e-6


# ---- damaged and hostile files ------------------------------------------------------------------------------------


def rewrite(path, arrays=(), text=(), drop=()):
    """The file with some arrays and JSON values replaced, written by NumPy."""
    with np.load(path, allow_pickle=False) as stored:
        values = dict(stored)
    plain = json.loads(str(values["json"])) | dict(text)
    values |= {"json": np.array(json.dumps(plain))} | dict(arrays)
    np.savez(path, **{name: x for name, x in values.items() if name not in drop})
    return path


@pytest.fixture
def graph():
    return prune(random_graph())


@pytest.fixture
def saved(graph, tmp_path):
    return save_graph(graph, tmp_path / "graph.npz")


def test_the_rewritten_file_itself_is_fine(graph, saved):
    assert_same(graph, load_graph(rewrite(saved)))


def test_a_cut_file_is_refused_wherever_it_is_cut(saved):
    whole = saved.read_bytes()
    for size in [0, 1, 100, *range(1000, len(whole), 1500), len(whole) - 1]:
        saved.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"graph\.npz"):
            load_graph(saved)


def test_a_changed_byte_is_noticed_or_means_nothing(graph, saved):
    whole, rng, refused = saved.read_bytes(), np.random.default_rng(0), 0
    for at in rng.integers(0, len(whole), 150):
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.integers(0, 8)
        saved.write_bytes(changed)
        try:
            assert_same(graph, load_graph(saved))
        except InputError:
            refused += 1
    assert refused > 100


class Mine:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_objects_are_refused_and_never_unpickled(saved, tmp_path):
    trace = tmp_path / "code ran"
    with np.load(saved) as stored:
        values = dict(stored)
    np.savez(saved, **{**values, "tokens": np.array([Mine(trace), None], object)}, allow_pickle=True)
    with pytest.raises(InputError, match="never objects"):
        load_graph(saved)
    assert not trace.exists()
    with np.load(saved, allow_pickle=True) as stored:
        stored["tokens"]
    assert trace.exists(), "the file does hold code"


def test_a_plain_pickle_or_array_is_refused(tmp_path):
    trace, path = tmp_path / "code ran", tmp_path / "graph.npz"
    with open(path, "wb") as file:
        np.save(file, np.array([Mine(trace)], object), allow_pickle=True)
    for content in (path.read_bytes(), pickle.dumps(Mine(trace)), b"", b"PK\x03\x04", b"not a graph" * 9):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            load_graph(path)
    assert not trace.exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(InputError, match=f"cannot read {path}"):
            load_graph(path)


def test_another_version_is_refused_by_name(saved):
    with pytest.raises(InputError, match=r"version is 2.*reads version 1"):
        load_graph(rewrite(saved, text={"version": 2}))


def spoil(name, change):
    """Loaded from a file in which one array was changed."""
    return lambda g: {"arrays": {name: change(np.array(getattr(g, name)))}}


def put(index, value):
    def change(x):
        x[index] = value
        return x

    return change


def level(source):
    """A source of the first row of layer 1, moved to the row's own layer."""

    def change(g):
        row = int(np.searchsorted(g.features[:, 0], 1))
        return {"arrays": {"source": put(g.row_start[row], source(g, row))(g.source.copy())}}

    return change


def target(**changes):
    return lambda g: {"text": {"targets": [{**vars(LOGITS[0]), **changes}, vars(LOGITS[1])]}}


def orphan(g):
    mask = g.node_mask.copy()
    mask[g.source[np.flatnonzero(g.edge_mask)[0]]] = False
    return {"arrays": {"node_mask": mask}}


WRONG = {
    "source too high": (spoil("source", put(3, 999)), r"source is in 0\.\.999"),
    "source negative": (spoil("source", put(3, -1)), r"source is in -1\.\."),
    "feature as high as its target": (level(lambda g, row: row), "not below them"),
    "error as high as its target": (level(lambda g, row: g.n_features + len(g.tokens)), "not below them"),
    "row_start falls": (spoil("row_start", put(5, 10**9)), "row_start"),
    "row_start begins late": (spoil("row_start", put(0, 1)), "row_start"),
    "row_start ends early": (spoil("row_start", lambda x: np.minimum(x, x[-1] - 1)), "row_start"),
    "weight not finite": (spoil("weight", put(0, np.nan)), "weight holds numbers that are not finite"),
    "weight of integers": (spoil("weight", lambda x: x.astype(np.int32)), "weight has type int32"),
    "weight too short": (spoil("weight", lambda x: x[:-1]), r"weight has shape"),
    "features out of order": (spoil("features", lambda x: x[::-1]), "rising order"),
    "feature twice": (spoil("features", lambda x: np.concatenate([x[:1], x[:1], x[2:]])), "stands twice"),
    "feature above the model": (spoil("features", put((-1, 0), 4)), r"layer of a feature is in 0\.\.4"),
    "feature past the prompt": (spoil("features", put((0, 1), 6)), "position of a feature"),
    "feature negative": (spoil("features", put((0, 2), -2)), "index of a feature"),
    "token past the vocabulary": (spoil("tokens", put(0, 17)), r"tokens is in 0\.\.17"),
    "row without leaves": (spoil("row_unexpanded", lambda x: x[:, :, 0]), "row_unexpanded has shape"),
    "edges of dropped nodes": (orphan, "drops"),
    "only one mask": (lambda g: {"drop": ["cumulative"]}, "only node_mask, edge_mask"),
    "no weights": (lambda g: {"drop": ["weight"]}, "missing: weight"),
    "no text": (lambda g: {"drop": ["json"]}, "text named 'json'"),
    "text of numbers": (lambda g: {"arrays": {"json": np.zeros(())}}, "text named 'json'"),
    "text of another program": (lambda g: {"arrays": {"json": np.array("[]")}}, "format"),
    "text that is not JSON": (lambda g: {"arrays": {"json": np.array("{")}}, "damaged"),
    "text without end": (lambda g: {"arrays": {"json": np.array("[" * 100_000)}}, "damaged"),
    "not a number": (lambda g: {"text": {"settings": {"x": float("nan")}}}, "NaN"),
    "unknown array": (lambda g: {"arrays": {"extra": np.zeros(3)}}, "extra"),
    "unknown value": (lambda g: {"text": {"extra": 1}}, "extra"),
    "layers as text": (lambda g: {"text": {"n_layers": "4"}}, "n_layers is no positive whole number"),
    "no layers": (lambda g: {"text": {"n_layers": 0}}, "n_layers is no positive whole number"),
    "too many layers": (lambda g: {"text": {"n_layers": 10**30}}, "n_layers"),
    "texts as numbers": (lambda g: {"text": {"token_text": [1, 2]}}, "token_text is no list of texts"),
    "too few texts": (lambda g: {"text": {"token_text": ["a"]}}, "token_text has 1 entries for 6 tokens"),
    "fewer active than selected": (lambda g: {"text": {"n_active": 3}}, "n_active=3"),
    "target without label": (lambda g: {"text": {"targets": [{"kind": "logit"}]}}, "targets is no list of targets"),
    "target of no kind": (target(kind="other"), "kind 'other'"),
    "logit without token": (target(token=None), "logits have a token"),
    "target past the vocabulary": (target(token=99), "token 99"),
    "probability above one": (target(prob=1.5), "probability 1.5"),
    "target past the prompt": (target(pos=6), "position 6"),
    "weight of a target": (target(weight=-1.0), "weight -1"),
    "scores of another kind": (lambda g: {"text": {"settings": {"scores": {"x": 1}}}}, "settings.scores"),
}


@pytest.mark.parametrize("name", WRONG)
def test_contents_that_do_not_fit_are_refused(name, graph, saved):
    change, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        load_graph(rewrite(saved, **change(graph)))


def test_all_problems_come_at_once(graph, saved):
    arrays = spoil("tokens", put(0, 99))(graph)["arrays"] | spoil("weight", put(0, np.inf))(graph)["arrays"]
    with pytest.raises(InputError, match=r"(?s)tokens is in.*weight holds"):
        load_graph(rewrite(saved, arrays=arrays))


def test_a_small_file_that_would_unpack_to_a_huge_one_is_refused(saved):
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("weight.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (25 * 10**6,)})
        for _ in range(100):
            member.write(bytes(10**6))
    assert saved.stat().st_size < 2 * 10**5
    with pytest.raises(InputError, match="compressed"):
        load_graph(saved)


@pytest.mark.parametrize("shape", [(10**12,), (10**30, 10**30), (-5, -8), (0, 10**40), (3,)])
def test_a_member_that_declares_another_size_than_it_has_is_refused(shape, saved):
    with zipfile.ZipFile(saved, "a") as archive, archive.open("extra.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        member.write(bytes(160))
    data = saved.read_bytes().replace(b"cumulative.npy", b"cumulativX.npy").replace(b"extra.npy", b"cumul.npy")
    saved.write_bytes(data)
    with pytest.raises(InputError):
        load_graph(saved)
    with zipfile.ZipFile(saved, "w") as archive, archive.open("weight.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        member.write(bytes(160))
    with pytest.raises(InputError, match="which is not its size"):
        load_graph(saved)


def test_a_member_that_stands_twice_is_refused(saved):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("tokens.npy", b"x")
    with pytest.raises(InputError, match="twice"):
        load_graph(saved)


# ---- what is not written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": np.zeros(3, np.int32)}, "weight has shape"),
        ({"weight": None}, "missing: weight"),
        ({"token_text": ("a",)}, "token_text"),
        ({"settings": {"x": object()}}, "plain values"),
        ({"settings": {"x": float("inf")}}, "plain values"),
    ],
)
def test_a_damaged_graph_is_not_saved(changes, message, graph, tmp_path):
    with pytest.raises(InputError, match=message):
        save_graph(replace(graph, **changes), tmp_path / "bad.npz")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def room(size):
    """No file may grow above `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved, tmp_path):
    old = saved.read_bytes()
    with room(4096), pytest.raises(InputError, match=r"cannot write .*graph\.npz: .*make room"):
        save_graph(random_graph(seed=9, n=70), saved)
    assert saved.read_bytes() == old
    assert list(tmp_path.iterdir()) == [saved]


def test_an_interrupted_write_leaves_the_old_file(saved, tmp_path, monkeypatch):
    old = saved.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_graph(random_graph(seed=9), saved)
    assert saved.read_bytes() == old
    assert list(tmp_path.iterdir()) == [saved]


@pytest.mark.parametrize("place", ["missing/graph.npz", "."])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        save_graph(random_graph(), tmp_path / place)
    assert list(tmp_path.iterdir()) == []

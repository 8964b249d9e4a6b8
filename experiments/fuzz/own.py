"""Small valid files of this package's own formats, and the public entry points that read them.

Folders of one variant each, since most are of several files. Checkpoints are Orbax's: what lies in their key-value
store is damaged there too (`in_store`), so that its checksums fit.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import tokenizers

import tcircuits as tc
from experiments.fuzz.mutations import BLIND, json_value, renumber, reword
from experiments.toys import random_dictionary, random_model
from tcircuits.attribution.specify import parse
from tcircuits.circuits.behaviour_graph import (
    BehaviourGraph,
    capped,
    load_behaviour_graph,
    most_edges,
    save_behaviour_graph,
)
from tcircuits.circuits.circuit import Circuit, load_circuit, save_circuit
from tcircuits.circuits.edges import Edges
from tcircuits.circuits.hierarchy import hierarchy
from tcircuits.circuits.tree import load_hierarchy, save_hierarchy
from tcircuits.circuits.units import Units
from tcircuits.data.rows import Rows
from tcircuits.data.text import open_text
from tcircuits.data.tokens import open_tokens
from tcircuits.data.writing import write_tokens
from tcircuits.files.opening import open_tensors
from tcircuits.files.strided import DTYPES
from tcircuits.models.tokenizers import Tokenizer
from tcircuits.tasks.behaviour import SPLITS, Behaviour, Prompts, load_behaviour, save_behaviour
from tcircuits.transcoders.evaluation.saved import load_evaluation, save_evaluation
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.statistics.result import load_statistics, origin
from tcircuits.transcoders.statistics.run import feature_statistics
from tcircuits.transcoders.statistics.viewer_file import FeatureFiles, write_features
from tcircuits.types import InputError

Note = Callable[[int], None]
ROWS = np.random.default_rng(0).integers(0, 20, (3, 7))
TOKENS = np.array([3, 1, 4, 1])


def _model(**changes: Any) -> Any:
    return random_model("llama", n_layers=2, d_mlp=16, d_vocab=20, **changes)


def _set(model: Any, kind: str = "plt-relu") -> Any:
    return random_dictionary(model, kind, TOKENS, d_feature=24, share=0.2)


def _decoded(path: Path, note: Note) -> None:
    """Note the bytes of all arrays in a file."""
    note(0)
    try:
        headers = open_tensors(path).headers.values()
    except InputError:
        return
    note(sum(int(np.prod(h.shape, dtype=object)) * DTYPES[h.dtype].itemsize for h in headers))


def make_paths(folder: Path) -> None:
    """Paths into a logit of a tiny random model."""
    model = _model()
    tc.save_paths(tc.find_paths(model, _set(model), TOKENS, iterations=2, branches=3), folder / "paths.npz")


def load_paths(path: Path, note: Note) -> None:
    """Paths, written out and merged."""
    _decoded(path, note)
    graph = tc.load_paths(path)
    assert len(graph.text) >= 0 <= len(graph.merged.value)


def make_records(folder: Path) -> None:
    """A behaviour, a circuit of heads and features, and one of edges; a JSON file and an npz each."""
    rng = np.random.default_rng(0)
    splits = {}
    for name in SPLITS:
        clean, other = rng.integers(0, 20, (2, 3, 6)).astype(np.int32)
        right, wrong = np.array([[0, 1]] * 3, np.int32), np.array([[2, 3, -1]] * 3, np.int32)
        splits[name] = Prompts(clean, other, np.array([0, 1, 2], np.int32), right, wrong)
    save_behaviour(Behaviour("task", "m", "logit_difference", splits, {"seed": 0}), folder / "behaviour" / "b.json")
    for name, units in (("units", Units(("head", "feature"), 2, 4, (0, 1), 9)), ("edges", Edges(2, 4, 2))):
        chosen = rng.random(units.n) < 0.5
        save_circuit(Circuit(units, chosen, rng.normal(size=units.n), "m", {"method": "eap"}), folder / name / "c.json")


def load_record(path: Path, note: Note) -> None:
    """A behaviour or a circuit, and what is shown of it."""
    name, load = ("b", load_behaviour) if path.name == "behaviour" else ("c", load_circuit)
    _decoded(path / f"{name}.npz", note)
    found: Any = load(path / f"{name}.json")
    if name == "c":
        found.labels()


def make_trees(folder: Path) -> None:
    """The graph of a behaviour, and a hierarchy of its nodes."""
    units, n = Units(("head", "feature"), 2, 2, (0, 1), 3), 10
    nodes = np.stack([np.r_[[3] * 4, [2] * 6], np.arange(n) % 2, np.arange(n) % 3, np.full(n, -1)], 1)
    source, target = np.triu_indices(n, 1)
    rng, zero = np.random.default_rng(0), np.zeros(n)
    signed = rng.normal(size=len(source))
    edges = source, target, np.abs(signed), signed, np.ones(len(source))
    g = BehaviourGraph(nodes, *edges, zero, zero, np.arange(n), rng.normal(size=n), units, "m", {"prompts": 3})
    save_behaviour_graph(g, folder / "graph" / "t.json")
    save_hierarchy(hierarchy(g, b=2, leaf=2), folder / "tree" / "t.json")


def load_tree(path: Path, note: Note) -> None:
    """A graph and what thins it out, or a hierarchy and its sets."""
    _decoded(path / "t.npz", note)
    if path.name == "graph":
        g = load_behaviour_graph(path / "t.json")
        capped(most_edges(g), 5), [g.label(i) for i in range(min(g.n, 50))]
        return
    h = load_hierarchy(path / "t.json")
    assert sum(h.size[h.leaves]) == h.n
    h.labels(1)


def make_results(folder: Path) -> None:
    """Statistics and an evaluation."""
    model = _model()
    feature_statistics(model, _set(model), ROWS, top=3, drawn=2).save(folder / "statistics.npz")
    save_evaluation(evaluate(model, _set(model), ROWS), folder / "evaluation.npz")


def load_result(path: Path, note: Note) -> None:
    """Statistics and their figures, or an evaluation and its figures."""
    _decoded(path, note)
    if path.name == "statistics.npz":
        origin(path)
        found = load_statistics(path)
        found.table(), found.quantiles([0.5]), found.tokens_of(found.cfg.layers[0], 0)
    else:
        evaluation = load_evaluation(path)
        assert evaluation.histogram.shape[0] == len(evaluation.cfg.layers)


def make_tokens(folder: Path) -> None:
    """Token ids of two and of four bytes."""
    rng = np.random.default_rng(0)
    for name, size in (("small", 50), ("large", 70_000)):
        documents = [rng.integers(0, size, int(n)) for n in rng.integers(3, 40, 30)]
        write_tokens(folder / name, documents, vocab_size=size, bos_id=1, separator=0, sources=["a.txt"])


def load_tokens(path: Path, note: Note) -> None:
    """A file of tokens: documents and rows."""
    note(0)
    tokens = open_tokens(path)
    for number in (0, tokens.n_documents - 1):
        tokens.document(number)
    rows = Rows(tokens, 8, seed=1)
    rows.rows(0, min(64, rows.per_epoch))


def make_features(folder: Path) -> None:
    """Records of features as viewers read them."""
    example = {"tokens": ["a", "\n", "b"], "tokens_acts_list": [0.0, 1.5, 0.25], "train_token_ind": 1}
    record = {"transcoder_id": 0, "examples_quantiles": [{"quantile_name": "top", "examples": [example] * 3}]}
    layers = {layer: [record | {"index": i, "act_max": 0.5 * i} for i in range(5)] for layer in (0, 3)}
    write_features(folder / "set", layers)


def load_features(path: Path, note: Note) -> None:
    """Every record."""
    note(0)
    files = FeatureFiles(path)
    for layer in files.layers:
        for feature in range(min(files.n_features(layer), 20)):
            files.read(layer, feature)


def make_checkpoints(folder: Path) -> None:
    """A model with a tokenizer, one without, and dictionaries, as `save_model` and `save_transcoders` write them."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    model = _model()
    with_tokenizer = tc.Model(model.cfg, model.params, Tokenizer(backend, bos_id=0, eos_id=1), "named")
    tc.save_model(with_tokenizer, folder / "model-tokenizer")
    tc.save_model(random_model("gpt2", n_layers=1, d_mlp=8, d_vocab=12), folder / "model-plain")
    tc.save_transcoders(_set(model, "plt-jumprelu"), folder / "set-layers", "orbax", model_name="m")
    tc.save_transcoders(_set(model, "clt-relu"), folder / "set-cross", "orbax")


def load_checkpoint(path: Path, note: Note) -> None:
    """A model or dictionaries."""
    note(0)
    (tc.load_transcoders if path.name.startswith("set") else tc.load_model)(path)


def in_store(path: Path, rng: np.random.Generator) -> list[str]:
    """Damage to one value in the key-value store of a checkpoint: checksums of the store fit it."""
    base = f"file://{path.resolve()}/state/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = sorted(store.list().result())
    described = [key for key in keys if key.endswith(b"zarr.json")]
    key = described[int(rng.integers(len(described)))] if rng.random() < 0.8 else keys[int(rng.integers(len(keys)))]
    for file in (path / "state").glob("manifest.ocdbt"):  # it is a link to the valid one
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    if rng.random() < 0.1:
        store.delete_range(tensorstore.KvStore.KeyRange(key, key + b"\0")).result()
        return [key.decode(), "delete_key"]
    some = (json_value, renumber, reword) if key in described else BLIND
    mutation = some[int(rng.integers(len(some)))]
    store.write(key, mutation(store.read(key).result().value, rng)).result()
    return [key.decode(), f"store_{mutation.__name__}"]


def make_directions(folder: Path) -> None:
    """Vectors that a target names."""
    np.save(folder / "f4.npy", np.arange(8, dtype=np.float32))
    np.save(folder / "i8.npy", np.arange(8).reshape(2, 4))


def load_direction(path: Path, note: Note) -> None:
    """A target that is a direction."""
    _decoded(path, note)
    parse(f"direction:{path}")


def make_corpora(folder: Path) -> None:
    """Text, and one object a line."""
    (folder / "a.txt").write_text("Once upon a time \u00e9\u4e2d there was a dog.\n\n" * 40, encoding="utf-8")
    lines = [json.dumps({"text": f"line {i} \u00fc", "n": i, "more": [1, {"a": None}]}) for i in range(30)]
    (folder / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "c").mkdir()
    shutil.copy(folder / "b.jsonl", folder / "c" / "x.jsonl")


def load_corpus(path: Path, note: Note) -> None:
    """All documents."""
    note(0)
    for document in open_text([path], part=500):
        assert isinstance(document.text, str)

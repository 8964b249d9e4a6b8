"""The pure search under `jit` and `vmap` and on other platforms; that it repeats; the file of a path graph."""

import importlib
import io
import json
import zipfile
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from experiments.toys import random_dictionary, random_model
from tcircuits.attribution.frozen import freeze
from tcircuits.attribution.paths import find, root_from, rules, search
from tcircuits.attribution.paths.filters import parse_filters
from tcircuits.attribution.targets import logit_vectors, output_targets

from .. import bridge
from ..reference import builders
from ..tiers import tiered
from ..transcoders.on_disk import lazily
from .test_paths import found, small
from .test_transforms import near

LENGTH = 5
CASES = [("gpt2", "clt-skip"), ("llama", "neurons")]


@cache
def setting(family, name):
    case = builders.make_case(family, name, length=LENGTH)
    m, d = bridge.both(case, "float32")
    tokens = np.random.default_rng(5).integers(0, m.cfg.d_vocab, (3, LENGTH))
    return m, d, jnp.asarray(tokens, jnp.int32)


def whole(cfg, given, **options):
    """A function from tokens to levels, the root the likeliest logit at the last position."""

    def run(params, d, tokens, encoded):
        frozen = freeze(cfg, params, d, tokens, n_slots=20)
        token = jnp.argmax(frozen.logits[-1])[None]
        pos, one = jnp.full(1, LENGTH - 1), jnp.ones(1)
        t = output_targets(cfg, params, frozen, *logit_vectors(params, token), pos, one)
        return search(cfg, params, d, frozen, root_from(cfg, t), encoded, iterations=3, branches=6, **options)

    return run


PATTERN = parse_filters("layer<=2", "kind=head", (), (), LENGTH)


@pytest.mark.parametrize(("family", "name"), tiered(CASES, CASES[1:]))
def test_many_prompts_in_one_call_equal_single_calls_and_nothing_is_traced_twice(family, name):
    m, d, tokens = setting(family, name)
    encoded, fn = rules(PATTERN), whole(m.cfg, PATTERN)
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(fn, n=1))
    singles = [once(m.params, d, t, encoded) for t in tokens]
    other = once(m.params, d, tokens[0], rules(parse_filters("layer<=1", "kind=feature", (), (), LENGTH)))
    stacked = jax.tree.map(lambda *x: np.stack(x), *singles)
    chex.clear_trace_counter()
    many = jax.jit(jax.vmap(chex.assert_max_traces(fn, n=1), in_axes=(None, None, 0, None)))
    near(many(m.params, d, tokens, encoded), stacked)
    many(m.params, d, tokens[::-1], encoded)
    assert np.asarray(stacked.nodes.alive[:, 1:]).any((1, 2)).all()
    assert (np.asarray(other.nodes.index) != np.asarray(singles[0].nodes.index)).any(), "other filters, same program"


@pytest.mark.parametrize("platform", tiered(["tpu", "cuda"], ["tpu"]))
@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_search_lowers_for(family, name, platform):
    m, d, tokens = setting(family, name)
    fn = jax.jit(whole(m.cfg, PATTERN, cap=True))
    made = jax.export.export(fn, platforms=[platform])(m.params, d, tokens[0], rules(PATTERN))
    assert made.platforms == (platform,)


def test_wide_beams_read_in_parts_what_narrow_ones_read_at_once(monkeypatch):
    m, d, tokens = setting(*CASES[0])
    at_once = jax.jit(whole(m.cfg, PATTERN))(m.params, d, tokens[0], rules(PATTERN))
    monkeypatch.setattr(importlib.import_module("tcircuits.attribution.paths.search"), "TOGETHER", 4)
    in_parts = jax.jit(whole(m.cfg, PATTERN))(m.params, d, tokens[0], rules(PATTERN))
    near(in_parts, at_once)


def test_a_set_on_disk_has_the_paths_of_the_same_in_memory(tmp_path):
    model = random_model("llama", n_layers=2)
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, 5)
    d = random_dictionary(model, "plt-jumprelu", tokens, d_feature=120, share=0.04)
    tc.save_transcoders(d, tmp_path / "saved")
    full = tc.load_transcoders(tmp_path / "saved", model=model.cfg)
    lazy = lazily(tmp_path / "saved", model.cfg, block_bytes=50 * 32 * 4)
    options = {"iterations": 3, "branches": 8, "filters": "feature!=3"}
    a, b = (tc.find_paths(model, t, tokens, **options) for t in (full, lazy))
    for name in ("kind", "layer", "pos", "index", "parent", "level"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.index[a.kind == 0] > 20).any(), "numbers of the whole set"
    np.testing.assert_allclose(a.value, b.value, atol=4e-6 * a.size[0])


@pytest.mark.parametrize("name", ["plt-skip", "clt-skip", "neurons"])
def test_a_prompt_frozen_up_to_a_depth_is_the_whole_one_below_it_and_empty_above(name):
    m, d, tokens = setting("gpt2", name)
    depth = m.cfg.n_layers - 1
    part, all_ = (freeze(m.cfg, m.params, d, tokens[0], n_slots=20, depth=n) for n in (depth, None))
    by_layer = ("index", "value", "factor", "valid", "values", "error", "n_active")
    for got, wanted in [(getattr(part, n), getattr(all_, n)) for n in by_layer] + [
        (part.hold.pattern, all_.hold.pattern),
        (part.hold.norm1, all_.hold.norm1),
        (part.hold.norm2, all_.hold.norm2),
    ]:
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got[:depth], wanted[:depth], rtol=1e-5, atol=1e-6)
    for n in by_layer:
        assert not getattr(part, n)[depth:].any()
    assert np.asarray(all_.valid)[depth:].any()


@pytest.fixture(scope="module")
def graph():
    case, _ = small("gpt2", "plt-skip")
    return found(case, tc.Difference(3, 5, -1), "float32", iterations=3, branches=5, infix="kind=head")


def test_two_runs_write_the_same_bytes_and_a_file_gives_back_what_it_took(graph, tmp_path):
    case, _ = small("gpt2", "plt-skip")
    find._freeze.clear_cache(), find._search.clear_cache()
    again = found(case, tc.Difference(3, 5, -1), "float32", iterations=3, branches=5, infix="kind=head")
    first, second = (tc.save_paths(g, tmp_path / name) for g, name in ((graph, "a.npz"), (again, "b.npz")))
    assert first.read_bytes() == second.read_bytes()
    back = tc.load_paths(first)
    assert back.text == graph.text
    for name, value in vars(graph).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(back, name), value)
            assert getattr(back, name).dtype == value.dtype
        elif name != "merged":
            assert getattr(back, name) == value
    with np.load(first, allow_pickle=False) as plain:
        assert plain["value"].tolist() == graph.value.tolist()


def changed(path, name, **arrays):
    """The file with some arrays exchanged."""
    with np.load(path, allow_pickle=False) as stored:
        values = {k: stored[k] for k in stored.files} | arrays
    out = path.with_name(name)
    np.savez(out, **values)
    return out


def told(path, name, **fields):
    """The file with other fields in its text."""
    with np.load(path, allow_pickle=False) as stored:
        about = json.loads(str(stored["json"]))
    return changed(path, name, json=np.array(json.dumps(about | fields)))


def test_damaged_files_are_refused(graph, tmp_path):
    path = tc.save_paths(graph, tmp_path / "good.npz")
    parent, text = graph.parent.copy(), path.read_bytes()
    parent[1] = len(parent) - 1
    (tmp_path / "cut.npz").write_bytes(text[: len(text) // 2])
    (tmp_path / "none.npz").write_bytes(b"")
    value = graph.value.copy()
    value[2] = np.nan
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive, zipfile.ZipFile(path) as good:
        for name in good.namelist():
            data = good.read(name)
            if name == "value.npy":
                head = io.BytesIO()
                np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
                data = head.getvalue()
            archive.writestr(name, data)
    files = {
        "cut.npz": "cut off",
        "none.npz": "it is empty",
        "huge.npz": r"declares shape \(1099511627776,\).*it holds 0",
        "absent.npz": "no such file",
        changed(path, "parent.npz", parent=parent).name: "its paths do not continue one another",
        changed(path, "short.npz", value=value[:-1]).name: r"value has shape \(\d+,\), not \(\d+\)",
        changed(path, "nan.npz", value=value).name: "not finite",
        changed(path, "kind.npz", kind=graph.kind + 3).name: "unknown kinds",
        changed(path, "other.npz", more=value).name: "'more' is not expected",
        changed(path, "text.npz", json=np.array("{}")).name: "not of the format",
        changed(path, "object.npz", value=np.array([None] * len(value))).name: "Python objects",
        told(path, "negative.npz", n_layers=-1).name: "its layers",
        told(path, "list.npz", model=["x"]).name: "model: a JSON list of 1 is no text",
        told(path, "target.npz", target={"label": 3}).name: "label: 3 is no text",
        told(path, "more.npz", extra=1).name: "'extra' is unknown",
        told(path, "tokens.npz", token_text=["a"]).name: "tokens has shape",
    }
    for name, message in files.items():
        with pytest.raises(tc.InputError, match=message):
            tc.load_paths(tmp_path / name)
    with pytest.raises(tc.InputError, match="cannot write"):
        tc.save_paths(graph, tmp_path / "no" / "folder.npz")


def test_the_papers_notation(graph):
    lines = graph.text.splitlines()
    root = f"difference[#3 - #5]@2: {graph.value[0]:.2g}"
    assert [line.split(":")[0] for line in lines if line.startswith("---")] == [
        "--- paths of 1 node below the root",
        "--- paths of 2 nodes below the root",
        "--- paths of 3 nodes below the root",
    ]
    assert sum(line.startswith(root) for line in lines) == graph.n_paths
    longest = graph.path_text(graph.levels[-1][0])
    assert longest in lines
    path = graph.levels[-1][0]
    parts = longest.split(" <- ")
    assert len(parts) == 4
    for part, i in zip(parts[1:], graph.chain(path)[1:], strict=True):
        name, value = part.split(": ")
        layer, pos, index = (int(x[i]) for x in (graph.layer, graph.pos, graph.index))
        names = (f"mlp{layer}tc[{index}]@{pos}", f"attn{layer}[{index}]@{pos}", f"embed0@{pos}")
        assert name == names[graph.kind[i]]
        assert float(value) == pytest.approx(graph.value[i], rel=0.06)

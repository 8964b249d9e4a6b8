"""Statistics of features against NumPy float64, one position at a time; batches, cut-off passes, files, bad input."""

import dataclasses
import gzip
import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.attribution.feature_words import deembedded_words, promoted_words
from tcircuits.transcoders.statistics import resume, run, state
from tcircuits.transcoders.statistics.contexts import windows
from tcircuits.transcoders.statistics.keeping import (
    EMPTY,
    N_BINS,
    Keeping,
    edges,
    feature_keys,
    mixed,
    token_of,
    unmixed,
)
from tcircuits.transcoders.statistics.neighbours import nearest
from tcircuits.transcoders.statistics.result import load_statistics
from tcircuits.transcoders.statistics.run import feature_statistics, only_layers
from tcircuits.transcoders.statistics.sparse import marked, nth
from tcircuits.transcoders.statistics.viewer_file import FeatureFiles, write_features
from tcircuits.types import InputError
from tests import bridge
from tests.reference import model as ref
from tests.transcoders import evaluated

pytestmark = pytest.mark.usefixtures("quick_compile")

ARRAYS = ("value", "token", "count", "in_bin", "drawn", "total", "least")
CASES = [("gpt2", "plt-relu"), ("llama", "plt-topk"), ("neox", "clt-jumprelu"), ("gemma2", "neurons")]


def both(c, dtype="float64"):
    return bridge.model(c, dtype), bridge.transcoders(c.d, dtype)


def hashed(x):
    """The published finaliser, in Python's integers."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
    return x ^ (x >> 16)


def activations(c):
    """By layer: {token number: features [F]} of all positions but the first of each row."""
    found = {layer: {} for layer in c.d.cfg.layers}
    for r, row in enumerate(c.rows):
        _, read, _ = evaluated.run(c, row)
        for layer in found:
            for t, f in enumerate(evaluated.values(c, layer, read[layer])):
                if t > 0:
                    found[layer][r * len(row) + t] = f
    return found


def expected(c, top, drawn, seed):
    """Every array of `Statistics`, feature by feature."""
    acts, F = activations(c), c.d.cfg.d_feature
    shape = (len(c.d.cfg.layers), F)
    out = {
        "value": np.zeros((*shape, top)),
        "token": np.full((*shape, top), EMPTY),
        "count": np.zeros((*shape, N_BINS), int),
        "in_bin": np.full((*shape, N_BINS), EMPTY),
        "drawn": np.full((*shape, drawn), EMPTY),
        "total": np.zeros(shape),
        "least": np.zeros(shape),
    }
    for slot, layer in enumerate(c.d.cfg.layers):
        for f in range(F):
            key = hashed((layer * F + f + seed * 0x9E3779B9) % 2**32)
            on = [(v[f], t) for t, v in acts[layer].items() if v[f] != 0]
            # Equal tokens have equal features in the first layer of a parallel block, but for the rounding of a product
            # that a processor sums in another order row by row.
            for i, (v, t) in enumerate(sorted(on, key=lambda x: (-round(x[0], 12), x[1]))[:top]):
                out["value"][slot, f, i], out["token"][slot, f, i] = v, t
            bins, parts = {}, {}
            for v, t in on:
                b, p = int(np.searchsorted(edges(np.float64), v, side="right")), hashed((t + key) % 2**32)
                out["count"][slot, f, b] += 1
                bins.setdefault(b, []).append((p, t))
                parts.setdefault(p % drawn, []).append((p, t))
            for b, some in bins.items():
                out["in_bin"][slot, f, b] = min(some)[1]
            for i, (_, t) in enumerate(sorted(map(min, parts.values()))):
                out["drawn"][slot, f, i] = t
            if on:
                out["total"][slot, f], out["least"][slot, f] = sum(v for v, _ in on), min(v for v, _ in on)
    return out


@pytest.mark.parametrize(("family", "kind"), CASES)
@pytest.mark.usefixtures("x64")
def test_every_figure_and_example_is_that_of_the_definition(family, kind):
    c = evaluated.case(family, kind)
    found = feature_statistics(*both(c), c.rows, top=3, drawn=4, seed=5, batch=2, parts=2)
    wanted = expected(c, 3, 4, 5)
    for name in ("token", "count", "in_bin", "drawn"):
        np.testing.assert_array_equal(getattr(found, name), wanted[name], err_msg=name)
    for name in ("value", "total", "least"):
        np.testing.assert_allclose(getattr(found, name), wanted[name], rtol=1e-12, atol=1e-12, err_msg=name)
    acts = activations(c)
    for slot, layer in enumerate(c.d.cfg.layers):
        f = np.stack(list(acts[layer].values()))
        on = f != 0
        np.testing.assert_allclose(found.density[slot], on.mean(0), rtol=1e-14)
        np.testing.assert_array_equal(found.dead[slot], ~on.any(0))
        np.testing.assert_allclose(found.l0[slot], on.sum(1).mean(), rtol=1e-14)
        means = [v[o].mean() if o.any() else 0 for v, o in zip(f.T, on.T, strict=True)]
        np.testing.assert_allclose(found.mean[slot], means, rtol=1e-12, atol=1e-13)
    assert found.count.sum() > 50


@pytest.mark.usefixtures("x64")
def test_quantiles_are_within_a_bin_of_the_true_ones():
    c = evaluated.case("gpt2", "plt-relu", n_rows=12)
    found = feature_statistics(*both(c), c.rows)
    shares, ratio = np.array([0.0, 0.1, 0.5, 0.9, 1.0]), 2 ** (1 / 3) * (1 + 1e-6)  # edges are rounded to float32
    got, checked = found.quantiles(shares), 0
    for slot, layer in enumerate(c.d.cfg.layers):
        f = np.stack(list(activations(c)[layer].values()))
        for i in range(f.shape[1]):
            on = np.sort(f[:, i][f[:, i] != 0])
            if not len(on):
                assert (got[slot, i] == 0).all()
                continue
            true = on[np.maximum(np.ceil(shares * len(on)).astype(int) - 1, 0)]
            inside = true > edges(np.float64)[0]
            assert (got[slot, i] <= true * ratio)[inside].all()
            assert (got[slot, i] >= true / ratio)[inside].all()
            np.testing.assert_allclose(got[slot, i, [0, -1]], on[[0, -1]], rtol=1e-12)
            checked += 1
    assert checked > 20


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_batches_and_slots_change_nothing(monkeypatch):
    c = evaluated.case("gpt2", "plt-relu", n_rows=7)
    whole = feature_statistics(*both(c), c.rows, top=4, drawn=3, batch=7, parts=1)
    monkeypatch.setattr(run, "SLOTS", 1)  # a batch has more: steps are repeated
    monkeypatch.setattr(state, "FEW", 5)  # candidates are sorted in many rounds
    for batch, parts in ((1, 1), (2, 3)):
        again = feature_statistics(*both(c), c.rows, top=4, drawn=3, batch=batch, parts=parts)
        for name in ("token", "count", "in_bin", "drawn"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
        for name in ("value", "total", "least"):
            np.testing.assert_allclose(getattr(again, name), getattr(whole, name), rtol=1e-13, atol=1e-14)


def test_the_strongest_of_many_with_ties():
    rng, F, K, M = np.random.default_rng(0), 5, 4, 300
    kept, tokens = jnp.full((F, K), -jnp.inf), jnp.full((F, K), EMPTY)
    seen = []
    for part in range(3):
        feature, value = rng.integers(0, F + 1, M), rng.integers(1, 9, M).astype(np.float32)  # F: an empty slot
        token = (part * M + np.arange(M)).astype(np.uint32)
        arrays = (jnp.asarray(x) for x in (feature.astype(np.int32), value, token))
        kept, tokens = jax.jit(state.strongest)(kept, tokens, *arrays)
        seen += zip(feature.tolist(), value.tolist(), token.tolist(), strict=True)
    for f in range(F):
        best = sorted([(-v, t) for g, v, t in seen if g == f])[:K]
        assert [(-v, t) for v, t in zip(kept[f].tolist(), tokens[f].tolist(), strict=True)] == best


def test_sums_do_not_drift_over_many_batches():
    keeping, key = Keeping(1, 1), jnp.asarray(feature_keys([0], 1, 0)[0])
    one = jax.tree.map(lambda a: a[0], state.empty(keeping, 1, 1, jnp.float32))
    value, index, token = jnp.full((1, 1), 0.1), jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.uint32)

    @jax.jit
    def many(one):
        return jax.lax.fori_loop(0, 30_000, lambda _, s: state.add(s, key, value, index, token), one)

    done = many(one)
    exact = 30_000 * float(np.float32(0.1))
    total = float(np.float64(done.total[0]) - np.float64(done.lost[0]))
    assert abs(total - exact) <= 2**-24 * exact
    assert done.count.sum() == 30_000


def test_the_hash_is_the_published_one_and_can_be_undone():
    x = np.random.default_rng(1).integers(0, 2**32, 1000).astype(np.uint32)
    assert [hashed(int(v)) for v in x] == mixed(x).tolist() == np.asarray(mixed(jnp.asarray(x))).tolist()
    np.testing.assert_array_equal(unmixed(mixed(x)), x)
    assert token_of(np.array([EMPTY]), np.array([3], np.uint32)) == [EMPTY]
    assert len(np.unique(feature_keys([0, 3], 500, 7))) == 1000


def test_what_is_drawn_is_a_fair_sample():
    """Each of 40 tokens is drawn for about as many of 4,000 features: chi-square with 39 degrees of freedom."""
    F, n, Q = 4000, 40, 5
    keys = feature_keys([0], F, 0)[0]
    one = jax.tree.map(lambda a: a[0], state.empty(Keeping(1, Q), 1, F, jnp.float32))
    index = np.broadcast_to(np.arange(F, dtype=np.int32), (n, F))
    token = jnp.broadcast_to(jnp.arange(n, dtype=jnp.uint32)[:, None], (n, F))
    done = jax.jit(state.add)(one, jnp.asarray(keys), jnp.ones((n, F)), jnp.asarray(index), token)
    drawn = token_of(np.asarray(done.drawn), keys[:, None])
    hits = np.bincount(drawn[drawn != EMPTY], minlength=n)
    assert hits.sum() > 0.99 * F * Q  # a part of 40 / 5 tokens is hardly ever empty
    mean = hits.sum() / n
    assert ((hits - mean) ** 2 / mean).sum() < 39 + 5 * (2 * 39) ** 0.5


class CutError(Exception):
    """What kills a pass."""


def test_a_pass_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    c = evaluated.case("gpt2", "plt-relu", n_rows=9)
    options = {"top": 3, "drawn": 3, "batch": 2, "parts": 1}
    whole = feature_statistics(*both(c, "float32"), c.rows, **options)

    def cut(done, total):
        if done >= 4:
            raise CutError

    with pytest.raises(CutError):
        feature_statistics(*both(c, "float32"), c.rows, folder=tmp_path, every=0, progress=cut, **options)
    assert [p.name for p in resume.states(tmp_path)] == ["000000000004"]
    half = tmp_path / "000000000006"
    half.mkdir()
    (half / "rest").write_text("what a killed process left")
    with pytest.raises(InputError, match=r"other settings \(keeping.top: 3 -> 4\)"):
        feature_statistics(*both(c, "float32"), c.rows, folder=tmp_path, **options | {"top": 4})
    seen = []
    again = feature_statistics(
        *both(c, "float32"), c.rows, folder=tmp_path, every=0, progress=lambda *x: seen.append(x), **options
    )
    assert seen == [(6, 9), (8, 9), (9, 9)]
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), err_msg=name)


def test_files_repeat(tmp_path):
    c = evaluated.case("llama", "some-layers")
    found = feature_statistics(*both(c, "float32"), c.rows, top=2)
    found.save(tmp_path / "statistics.npz")
    again = load_statistics(tmp_path / "statistics.npz")
    for f in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(again, f.name), getattr(found, f.name))
    assert again.cfg == found.cfg
    (tmp_path / "statistics.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot be read as statistics"):
        load_statistics(tmp_path / "statistics.npz")


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "plt-relu"), ("llama", "plt-topk")])
@pytest.mark.usefixtures("x64")
def test_activations_around_examples(family, kind):
    c = evaluated.case(family, kind)
    model, d = both(c)
    found, acts, T, w = feature_statistics(model, d, c.rows), activations(c), c.rows.shape[1], 3
    slot, feature, i = np.nonzero(found.token != EMPTY)
    token = found.token[slot, feature, i]
    got = windows(model, d, c.rows, found, slot, feature, token, width=w, batch=2)
    for s, f, t, values in zip(slot, feature, token.astype(int), got, strict=True):
        layer = acts[c.d.cfg.layers[s]]
        near = [layer[u][f] if u // T == t // T and u in layer else 0.0 for u in range(t - w, t + w + 1)]
        np.testing.assert_allclose(values, near, rtol=1e-6, atol=1e-7)  # they are kept in float32
    with pytest.raises(InputError, match="not the rows that the statistics were made from"):
        windows(model, d, c.rows[::-1], found, slot, feature, token)


def test_nearest_rows():
    rows = np.random.default_rng(2).normal(size=(23, 5))
    rows[4] = 0
    index, cosine = nearest(jnp.asarray(rows, jnp.float32), 3, block=8)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    wanted = unit @ unit.T
    np.fill_diagonal(wanted, -np.inf)
    np.testing.assert_allclose(cosine, -np.sort(-wanted, 1)[:, :3], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(wanted, index, 1), cosine, atol=1e-6)


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "plt-relu"), ("gemma2", "plt-topk"), ("neox", "plt-skip")])
@pytest.mark.usefixtures("x64")
def test_words_of_features(family, kind):
    c = evaluated.case(family, kind)
    model, d = both(c)
    for slot, layer in enumerate(c.d.cfg.layers):
        words = deembedded_words(model, d, slot, 3)
        read = c.d.array("w_enc", slot).copy()
        norm = c.params["blocks"]["norm2"]
        if c.d.cfg.reads == "mlp_in" and norm is not None:
            read *= norm["w"][layer]
        embeddings = ref.centre(c.cfg, c.params["embed"] * c.cfg.embed_scale)
        score = read @ embeddings.T
        np.testing.assert_allclose(words.high_score, -np.sort(-score, 1)[:, :3], rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(words.low, np.argsort(score, 1)[:, :3])
        promoted = promoted_words(model, d, slot, 3)
        assert promoted is not None
        assert promoted.high.shape == (c.d.cfg.d_feature, 3)
        assert (promoted.high_score[:, 0] >= promoted.high_score[:, 1]).all()


RECORDS = {0: [{"index": i, "tokens": ["\n", "é", "<b>", "\ud800"]} for i in range(3)], 4: [{"index": 0}]}


def test_viewers_files_repeat(tmp_path):
    write_features(tmp_path, RECORDS)
    index = json.loads(gzip.decompress((tmp_path / "features" / "index.json.gz").read_bytes()))
    for folder in (tmp_path, tmp_path / "features"):
        files = FeatureFiles(folder)
        assert files.layers == (0, 4)
        assert files.n_features(0) == 3
        for layer, some in RECORDS.items():
            begin = index[str(layer)]["offsets"]
            content = (tmp_path / "features" / index[str(layer)]["filename"]).read_bytes()
            for i, record in enumerate(some):
                packed = content[begin[i] : begin[i + 1]]
                assert struct.unpack("<I", packed[:4])[0] == len(packed) - 4
                wanted = json.loads(json.dumps(record).replace("\\ud800", "?"))
                assert json.loads(gzip.decompress(packed[4:])) == files.read(layer, i) == wanted
    with pytest.raises(InputError, match=r"feature 3 of layer 0 .*: there are 0..2"):
        files.read(0, 3)
    with pytest.raises(InputError, match=r"no layer 1; there are \[0, 4\]"):
        files.read(1, 0)
    with pytest.raises(InputError, match=r"has no features/index.json.gz"):
        FeatureFiles(tmp_path / "elsewhere")


def index_of(**changes):
    return gzip.compress(json.dumps({"0": {"filename": "layer_0.bin", "offsets": [0, 40]} | changes}).encode(), mtime=0)


DAMAGE = [
    ("index.json.gz", b"no gzip", "damaged"),
    ("index.json.gz", gzip.compress(b"[" * 100_000, mtime=0), "damaged"),
    ("index.json.gz", gzip.compress(b"{}", mtime=0), "names no layer"),
    ("index.json.gz", index_of(filename="../secret"), "a plain name is needed"),
    ("index.json.gz", index_of(offsets=[0, -1]), "no list of whole numbers"),
    ("index.json.gz", index_of(offsets=[9, 3]), "fall"),
    ("index.json.gz", index_of(offsets=0), "no list of whole numbers"),
    ("index.json.gz", index_of(offsets=[10**18]), "no list of whole numbers"),
    ("index.json.gz", index_of(offsets=[[0, 40]]), "no list of whole numbers"),
    ("index.json.gz", index_of(offsets=[]), "no list of whole numbers"),
    ("index.json.gz", gzip.compress(b'{"0": {"offsets": [' + b"0," * 50_000_000 + b"0]}}", 1, mtime=0), "more offsets"),
    ("index.json.gz", gzip.compress(b"[" + b"[],{}," * 5_000_000 + b"0]", 1, mtime=0), "more values"),
    ("index.json.gz", index_of(offsets=[0, 10**9]), "missing or shorter"),
    ("layer_0.bin", b"\xff\xff\xff\xff" + b"x" * 500, "its length does not fit"),
    ("layer_0.bin", b"", "missing or shorter"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE, ids=[f"{d[0]}-{d[2]}" for d in DAMAGE])
def test_damaged_viewers_files_are_refused(tmp_path, name, content, message):
    write_features(tmp_path, RECORDS)
    (tmp_path / "features" / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        FeatureFiles(tmp_path).read(0, 0)


def test_a_record_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    write_features(tmp_path, {0: [{"index": 0, "text": "x" * 10_000}]})
    monkeypatch.setattr("tcircuits.transcoders.statistics.viewer_file.LARGEST_RECORD", 5000)
    with pytest.raises(InputError, match="larger than 5,000 bytes when decompressed"):
        FeatureFiles(tmp_path).read(0, 0)


def test_records_compressed_by_zlib_are_read(tmp_path):
    (tmp_path / "features").mkdir()
    packed = zlib.compress(b'{"index": 0}')
    (tmp_path / "features" / "layer_0.bin").write_bytes(struct.pack("<I", len(packed)) + packed)
    (tmp_path / "features" / "index.json.gz").write_bytes(index_of(offsets=[0, len(packed) + 4]))
    assert FeatureFiles(tmp_path).read(0, 0) == {"index": 0}


def test_bad_input():
    c = evaluated.case("gpt2", "plt-relu")
    model, d = both(c, "float32")
    dead = dataclasses.replace(d, b_enc=d.b_enc - 1e6)
    nan = dataclasses.replace(d, b_enc=d.b_enc * jnp.nan)
    refusals = [
        (d, c.rows[:0], {}, "the corpus has no whole row"),
        (d, c.rows, {"n_tokens": 3}, "3 tokens were asked for; a row has 7 tokens"),
        (d, c.rows, {"top": 0}, "keep at least 1 of each"),
        (d, c.rows, {"seed": -1}, "give a number in"),
        (d, c.rows, {"batch": 0}, "give at least 1"),
        (d, c.rows + 10**6, {}, "made with another tokenizer"),
        (dead, c.rows, {}, "no feature of any layer is on at any of 30 positions"),
        (nan, c.rows, {}, "not finite"),
    ]
    for dictionary, rows, options, message in refusals:
        with pytest.raises(InputError, match=message):
            feature_statistics(model, dictionary, rows, **options)
    found = feature_statistics(model, d, c.rows)
    with pytest.raises(InputError, match=rf"feature {d.cfg.d_feature} of layer 0: features are 0\.\."):
        found.tokens_of(0, d.cfg.d_feature)
    with pytest.raises(InputError, match="layer 9 has no dictionary"):
        found.tokens_of(9, 0)
    with pytest.raises(InputError, match=r"layers \[9\] have no dictionary"):
        run.check_layers(d, (0, 9))
    some = only_layers(d, (1,))
    np.testing.assert_array_equal(feature_statistics(model, some, c.rows).value[0], found.value[1])


@pytest.mark.parametrize(("shape", "share"), [((7, 70), 0.1), ((1, 300), 0.9), ((5, 64), 1.0), ((4, 32), 0.0)])
def test_marks_list_what_is_true_row_by_row(shape, share):
    on = np.random.default_rng(0).random(shape) < share
    marks = marked(jnp.asarray(on))
    row, column = nth(marks, jnp.arange(on.size))
    n = int(marks.n)
    assert n == on.sum()
    np.testing.assert_array_equal(np.stack([row, column])[:, :n], np.nonzero(on))

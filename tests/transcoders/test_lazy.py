"""Dictionaries on disk: the features that a prompt switches on, found and loaded without the rest."""

import dataclasses
import tracemalloc
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tcircuits.transcoders import streaming
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.describing import describe
from tcircuits.transcoders.dictionary import Transcoders, encode, pair, spec
from tcircuits.transcoders.lazy import decoders, narrow
from tcircuits.transcoders.loading import load_transcoders
from tcircuits.transcoders.saving import save_transcoders
from tcircuits.types import InputError

from ..reference.dictionary import activate
from . import ct_files as ct
from . import format_files as files
from .on_disk import lazily, saved

pytestmark = pytest.mark.usefixtures("quick_compile")

L, D, F, N = 3, 8, 150, 5
ALL = tuple(range(L))
CONFIGS = {
    "plt relu": TranscoderConfig("transcoder", L, D, F, ALL),
    "plt jumprelu skip": TranscoderConfig("transcoder", L, D, F, ALL, "jumprelu", skip=True),
    "plt batchtopk": TranscoderConfig("transcoder", L, D, F, ALL, "batchtopk"),
    "plt topk": TranscoderConfig("transcoder", L, D, F, ALL, "topk", 4),
    "plt topk signed": TranscoderConfig("transcoder", L, D, F, ALL, "topk", 4, True),
    "plt some layers": TranscoderConfig("transcoder", 6, D, F, (1, 4), fill="neurons"),
    "clt relu": TranscoderConfig("clt", L, D, F, ALL),
    "clt jumprelu skip": TranscoderConfig("clt", L, D, F, ALL, "jumprelu", skip=True),
}
BLOCKS = (1, 7 * D * 4, 40 * D * 4, 1 << 20)  # one feature at a time, uneven blocks, some blocks, one block


def make(cfg: TranscoderConfig, seed: int = 0, off: float = 3.0) -> Transcoders:
    """Whole numbers, so that no sum is rounded and equal pre-activations, and ones at a threshold, are common."""
    rng = np.random.default_rng(seed)
    d = jax.tree.map(lambda s: jnp.asarray(rng.integers(-2, 3, s.shape), jnp.float32), spec(cfg))
    bias = None if cfg.activation == "topk" else d.b_enc - off
    threshold = None if d.threshold is None else abs(d.threshold) + 1
    return dataclasses.replace(d, cfg=cfg, source="test", threshold=threshold, b_enc=d.b_enc if bias is None else bias)


def inputs(cfg: TranscoderConfig, seed: int = 9, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2, 3, (len(cfg.layers), n, cfg.d_model)).astype(np.float32)


def values(d: Transcoders, x: np.ndarray, slot: int) -> np.ndarray:
    """[N, F] by the oracle, in float64."""
    w, b = np.asarray(d.w_enc[slot], np.float64), np.asarray(d.b_enc[slot], np.float64)
    t = None if d.threshold is None else np.asarray(d.threshold[slot], np.float64)
    return np.stack([activate(d.cfg, w @ row + b, t) for row in x[slot].astype(np.float64)])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_active_features_and_their_rows(tmp_path, name, block):
    cfg = CONFIGS[name]
    d, x = make(cfg), inputs(cfg)
    some = narrow(saved(d, tmp_path / "set", block), x)
    got = some.transcoders
    assert got.cfg == dataclasses.replace(cfg, d_feature=got.cfg.d_feature)
    for slot, features in enumerate(some.features):
        f, n = values(d, x, slot), len(features)
        expected = np.flatnonzero((f != 0).any(0))
        assert 0 < len(expected) < F
        if cfg.signed_topk:  # those with the value 0 among the k largest are kept, so that no padding takes their place
            assert set(expected) <= set(features)
            assert len(features) <= N * cfg.k
        else:
            np.testing.assert_array_equal(features, expected)
        for array in ("w_enc", "b_enc", "threshold"):
            if getattr(d, array) is not None:
                np.testing.assert_array_equal(getattr(got, array)[slot, :n], getattr(d, array)[slot][features])
        sources = [(slot, m) for m in range(slot, L)] if cfg.kind == "clt" else [(slot, slot)]
        for i, m in sources:
            np.testing.assert_array_equal(got.w_dec[pair(cfg, i, m), :n], d.w_dec[pair(cfg, i, m)][features])
            assert not np.asarray(got.w_dec[pair(cfg, i, m), n:]).any()
        narrowed = np.asarray(encode(got, slot, jnp.asarray(x[slot])))
        np.testing.assert_array_equal(narrowed[:, :n], f[:, features])
        assert not narrowed[:, n:].any(), "padding is never active"
    np.testing.assert_array_equal(got.b_dec, d.b_dec)
    assert cfg.skip == (got.w_skip is not None)
    assert not cfg.skip or (got.w_skip == d.w_skip).all()


def test_ties_of_topk_go_to_the_lower_number_in_every_block(tmp_path):
    """All features of a layer are equal: the first k win, whatever the blocks; and then the last two are larger."""
    for name in ("plt topk", "plt topk signed"):
        cfg = CONFIGS[name]
        d = make(cfg)
        w = jnp.ones_like(d.w_enc).at[1, -2:].set(2.0)
        d = dataclasses.replace(d, w_enc=w, b_enc=jnp.zeros_like(d.b_enc))
        lazy = saved(d, tmp_path / name)
        x = np.abs(inputs(cfg)) + 1
        for block in BLOCKS:
            first, second, _ = narrow(dataclasses.replace(lazy, block_bytes=block), x).features
            assert first.tolist() == [0, 1, 2, 3]
            assert second.tolist() == [0, 1, F - 2, F - 1]


def test_nothing_is_active(tmp_path):
    for name in ("plt relu", "clt jumprelu skip", "plt topk", "plt topk signed"):
        cfg = CONFIGS[name]
        d = make(cfg)
        d = dataclasses.replace(d, b_enc=jnp.full_like(d.b_enc, -100.0))
        some = narrow(saved(d, tmp_path / name, 40 * D * 4), inputs(cfg))
        off = [np.asarray(encode(some.transcoders, s, jnp.asarray(inputs(cfg)[s]))) for s in range(L)]
        if cfg.signed_topk:
            assert all(((f != 0).sum(-1) == cfg.k).all() and f.min() < -50 for f in off)
        else:
            assert [len(f) for f in some.features] == [0] * L
            assert not np.any(off)
        none = narrow(saved(d, tmp_path / f"{name} without positions"), inputs(cfg, n=0))
        assert [len(f) for f in none.features] == [0] * L


def test_numbers_go_there_and_back(tmp_path):
    cfg = CONFIGS["plt some layers"]
    some = narrow(saved(make(cfg), tmp_path / "set"), inputs(cfg))
    layer = np.array([1] * len(some.features[0]) + [4] * len(some.features[1]) + [0, 5])
    feature = np.concatenate([*some.features, [17, 3]])
    here = some.here(layer, feature)
    np.testing.assert_array_equal(some.whole(layer, here), feature)
    assert here[-2:].tolist() == [17, 3], "neurons that fill a layer keep their numbers"
    absent = np.setdiff1d(np.arange(F), some.features[1])
    assert (some.here(np.full(len(absent), 4), absent) == -1).all()
    assert some.here(np.array([4]), np.array([10**9])).tolist() == [-1]


@pytest.mark.parametrize("name", ["plt jumprelu skip", "clt relu", "plt topk signed"])
def test_decoders_of_given_features(tmp_path, name):
    cfg = CONFIGS[name]
    d = make(cfg)
    some = decoders(saved(d, tmp_path / "set"), {0: [140, 3, 3], 2: [0]})
    assert [f.tolist() for f in some.features] == [[3, 140], [], [0]]
    got = some.transcoders
    assert got.w_enc is None
    assert got.w_dec.nbytes < d.w_dec.nbytes / 10
    for i, m in [(0, 0), (0, 2), (2, 2)] if cfg.kind == "clt" else [(0, 0), (2, 2)]:
        rows = d.w_dec[pair(cfg, i, m)][some.features[i]]
        np.testing.assert_array_equal(got.w_dec[pair(cfg, i, m), : len(rows)], rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_the_dtype_in_memory_is_the_one_asked_for(tmp_path, stored, dtype):
    """Values whose conversion rounds: the same as loading whole gives, whoever converts them."""
    ct.per_layer(tmp_path, n_layers=L, d_model=D, d_feature=F, threshold=True, dtype=stored)
    full = load_transcoders(tmp_path, dtype=dtype)
    lazy = lazily(tmp_path, dtype=dtype, block_bytes=1000)
    x = ct.inputs(L, D)
    some = narrow(lazy, x)
    for slot, features in enumerate(some.features):
        f = np.asarray(encode(full, slot, jnp.asarray(x[slot])))
        np.testing.assert_array_equal(features, np.flatnonzero((f != 0).any(0)))
        assert 0 < len(features) < F
        for array in ("w_enc", "b_enc", "threshold", "w_dec"):
            got, want = getattr(some.transcoders, array), getattr(full, array)
            assert got.dtype == want.dtype == dtype
            np.testing.assert_array_equal(got[slot, : len(features)], want[slot][features])


OTHERS = {
    "gemma scope": files.npz,
    "gemma scope 2": lambda top: files.gemma_scope_2(top / "transcoder_all", skip=True),
    "gemma scope 2 clt": files.gemma_scope_2_clt,
    "saelens": lambda top: files.saelens(top, "jumprelu_skip_transcoder"),
    "saelens, bias subtracted": lambda top: files.saelens(top, "", files.old_saelens_config, apply_b_dec_to_input=True),
    "sparsify": lambda top: files.sparsify(top, skip=True, transcode=False),
    "llama scope": lambda top: files.llama_scope(top, sparsity_include_decoder_norm=True),
}


@pytest.mark.parametrize("block_bytes", [80, 1 << 20])
@pytest.mark.parametrize("name", OTHERS)
def test_every_format_gives_the_rows_that_loading_it_whole_gives(tmp_path, name, block_bytes):
    """Whichever way its files turn and scale the matrices, and whatever is computed from several tensors."""
    OTHERS[name](tmp_path)
    model = ct.model()
    full, lazy = load_transcoders(tmp_path, model=model), lazily(tmp_path, model, block_bytes=block_bytes)
    x = ct.inputs(n=2)
    some = narrow(lazy, x)
    assert some.transcoders.cfg == dataclasses.replace(full.cfg, d_feature=some.transcoders.cfg.d_feature)
    for slot, features in enumerate(some.features):
        f, n = np.asarray(encode(full, slot, jnp.asarray(x[slot]))), len(features)
        np.testing.assert_array_equal(features, np.flatnonzero((f != 0).any(0)))
        assert 0 < n < ct.F
        for array in ("w_enc", "b_enc", "threshold", "w_dec"):
            got, want = getattr(some.transcoders, array), getattr(full, array)
            if want is not None:  # what is computed is a float64 sum, perhaps in another order, rounded to float32
                row = pair(full.cfg, slot, ct.L - 1) if array == "w_dec" and full.cfg.kind == "clt" else slot
                np.testing.assert_allclose(got[row, :n], want[row][features], rtol=2**-23)
    np.testing.assert_array_equal(some.transcoders.b_dec, full.b_dec)
    assert full.w_skip is None or (some.transcoders.w_skip == full.w_skip).all()


class Reads:
    """Counts the bytes that leave files, at the system's door, and the largest piece that was asked for at once."""

    def __init__(self, monkeypatch) -> None:
        self.bytes: Counter[str] = Counter()
        self.largest = 0
        opening = Path.open

        def counted(path, *arguments, **options):
            return Counted(opening(path, *arguments, **options), path.name, self)

        monkeypatch.setattr(Path, "open", counted)


class Counted:
    """A file that tells what is read of it."""

    def __init__(self, file, name, reads) -> None:
        self.file, self.name, self.reads = file, name, reads

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def readinto(self, buffer):
        n = self.file.readinto(buffer)
        self.reads.bytes[self.name] += n
        self.reads.largest = max(self.reads.largest, n)
        return n

    def read(self, n=-1):
        out = self.file.read(n)
        self.reads.bytes[self.name] += len(out)
        return out


WIDE = 1024  # a row of this width is a page: smaller gaps between rows are read over


def test_bytes_that_leave_a_per_layer_set(tmp_path, monkeypatch):
    """The encoder once, one row of the decoder for each active feature, the vectors; W_skip whole."""
    cfg = TranscoderConfig("transcoder", 2, WIDE, F, (0, 1), "jumprelu", skip=True)
    d, x = make(cfg, off=120.0), inputs(cfg)
    lazy = saved(d, tmp_path / "set", 20 * WIDE * 4)
    reads = Reads(monkeypatch)
    some = narrow(lazy, x)
    counts = [len(f) for f in some.features]
    assert all(0 < n < F / 2 for n in counts)
    for i, n in enumerate(counts):
        rows = F + n + 1 + WIDE  # W_enc, W_dec, b_dec, W_skip
        assert reads.bytes[f"layer_{i}.safetensors"] == 4 * (rows * WIDE + 2 * F)
    assert reads.largest <= max(lazy.block_bytes, 4 * WIDE * WIDE)


def test_bytes_that_leave_a_cross_layer_set(tmp_path, monkeypatch):
    """A feature's decoders to all outputs lie together and are read together."""
    cfg = TranscoderConfig("clt", L, WIDE, F, ALL)
    d, x = make(cfg, off=130.0), inputs(cfg)
    lazy = saved(d, tmp_path / "set", 20 * WIDE * 4)
    reads = Reads(monkeypatch)
    some = narrow(lazy, x)
    for i, features in enumerate(some.features):
        assert 0 < len(features) < F / 4
        assert reads.bytes[f"W_enc_{i}.safetensors"] == 4 * (F * WIDE + F + WIDE)
        assert reads.bytes[f"W_dec_{i}.safetensors"] == 4 * len(features) * (L - i) * WIDE
    reads.bytes.clear()
    decoders(lazy, {1: some.features[1].tolist()})
    assert reads.bytes["W_dec_0.safetensors"] == reads.bytes["W_dec_2.safetensors"] == 0
    assert reads.bytes["W_dec_1.safetensors"] == 4 * len(some.features[1]) * 2 * WIDE


def rewrite(folder: Path, layer: int, tensor: str, change) -> None:
    path = folder / f"layer_{layer}.safetensors"
    tensors = load_file(path)
    tensors[tensor] = change(tensors[tensor])
    save_file(tensors, path)


def test_a_decoder_that_keeps_features_apart_passes_by_in_blocks(tmp_path, monkeypatch):
    """circuit-tracer's old files: W_dec [D, F]."""
    width, many = 64, 20_000
    ct.per_layer(tmp_path, n_layers=2, d_model=width, d_feature=many, threshold=True, old=True)
    for layer in (0, 1):
        rewrite(tmp_path, layer, "activation_function.threshold", lambda t: t + 3)
    lazy = lazily(tmp_path, block_bytes=500_000)
    full, x = load_transcoders(tmp_path), ct.inputs(2, width) / 8
    narrow(lazy, x)  # imports and compilation take memory once
    reads = Reads(monkeypatch)
    tracemalloc.start()
    some = narrow(lazy, x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for slot, features in enumerate(some.features):
        assert 100 < len(features) < 2000
        rows = some.transcoders.w_dec[slot, : len(features)]
        np.testing.assert_array_equal(rows, full.w_dec[slot][features])
        assert reads.bytes[f"layer_{slot}.safetensors"] == 4 * (2 * width * many + 2 * many + width)
    assert reads.largest <= lazy.block_bytes
    kept = sum(a.nbytes for a in jax.tree.leaves(some.transcoders))
    # What is kept is in memory at most twice, while it goes to its place; besides there are a few blocks.
    assert peak < 2 * kept + 6 * lazy.block_bytes < full.w_dec.nbytes / 1.5


def test_memory_is_that_of_blocks_and_active_rows(tmp_path):
    cfg = TranscoderConfig("transcoder", 2, 64, 20_000, (0, 1))
    d = make(cfg, off=40.0)
    lazy = saved(d, tmp_path / "set", 1 << 18)
    x = inputs(cfg)
    narrow(lazy, x)  # imports and compilation take memory once
    tracemalloc.start()
    some = narrow(lazy, x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 20 < max(map(len, some.features)) < 2000
    assert peak < 3_000_000 < d.w_enc.nbytes / 3


def damage(folder: Path, tensor: str, row: int) -> None:
    def change(t: np.ndarray) -> np.ndarray:
        t[row] = np.nan
        return t

    rewrite(folder, 1, tensor, change)


@pytest.mark.parametrize("tensor", ["W_enc", "b_enc", "activation_function.threshold", "W_dec", "b_dec"])
def test_what_is_read_must_be_finite(tmp_path, tensor):
    ct.per_layer(tmp_path, threshold=True)
    x = ct.inputs()
    some = narrow(lazily(tmp_path), x)
    row = 2 if tensor == "b_dec" else int(some.features[1][0])
    damage(tmp_path, tensor, row)
    bad = ct.D if tensor in ("W_enc", "W_dec") else 1
    with pytest.raises(InputError, match=rf"transcoders .*tensor {tensor} of layer_1\S+ has {bad} values that are NaN"):
        narrow(lazily(tmp_path), x)


def test_a_decoder_row_that_nobody_needs_is_not_looked_at(tmp_path):
    ct.per_layer(tmp_path, threshold=True)
    some = narrow(lazily(tmp_path), ct.inputs())
    absent = np.setdiff1d(np.arange(ct.F), some.features[1])
    damage(tmp_path, "W_dec", int(absent[0]))
    again = narrow(lazily(tmp_path), ct.inputs())
    np.testing.assert_array_equal(again.transcoders.w_dec, some.transcoders.w_dec)


def test_a_set_on_disk_says_what_it_is_and_is_not_written(tmp_path):
    ct.per_layer(tmp_path, threshold=True)
    told, whole = describe(lazily(tmp_path)), describe(load_transcoders(tmp_path))
    assert {name: told[name] for name in whole} == whole
    assert told["format"] == "circuit-tracer"
    for format in ("circuit-tracer", "saelens", "orbax"):
        with pytest.raises(InputError, match="they stay on disk: load them whole"):
            save_transcoders(lazily(tmp_path), tmp_path / "copy", format)


def test_files_that_went_away(tmp_path):
    ct.per_layer(tmp_path)
    lazy = lazily(tmp_path)
    (tmp_path / "layer_2.safetensors").unlink()
    with pytest.raises(InputError, match=r"transcoders .*layer_2\.safetensors"):
        narrow(lazy, ct.inputs())


def test_the_next_block_is_read_while_one_is_used():
    done = []

    def job(i):
        done.append(i)
        if i == 3:
            raise InputError("the fourth")
        return i

    got = streaming.ahead(lambda i=i: job(i) for i in range(6))
    assert next(got) == 0
    assert next(got) == 1
    assert next(got) == 2
    with pytest.raises(InputError, match="the fourth"):
        next(got)
    assert done[:4] == [0, 1, 2, 3]
    assert max(done) <= 4, "no further ahead than one"


def test_blocks_are_equal_and_within_the_bound():
    cfg = TranscoderConfig("transcoder", 1, 2304, 131_072, (0,))
    size = streaming.block_size(cfg, 24, 4, 64 << 20)
    assert size * 2304 * 4 <= 64 << 20
    n_blocks = -(-131_072 // size)
    assert n_blocks * size - 131_072 < n_blocks
    assert streaming.block_size(cfg, 8192, 4, 64 << 20) * 8192 * 4 <= 64 << 20
    assert streaming.block_size(cfg, 24, 4, 1) == 1

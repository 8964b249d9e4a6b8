"""Arrays of a checkpoint: what its store says is compared with its bytes before Orbax reads it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from tcircuits import checkpoint
from tcircuits.files.array_store import open_array, read_parts, stored_shapes
from tcircuits.files.storage import MalformedError
from tcircuits.types import InputError

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.c": np.ones(5, np.int32),
    "d": np.ones((1, 2), np.float32),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "c"
    checkpoint.save(path, {name: jnp.asarray(x) for name, x in ARRAYS.items()}, format_name="test", version=1)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "c")


def changed(path, key, content):
    """Put another value into the store; its checksums fit."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/state/"}).result()
    if content is None:
        store.delete_range(tensorstore.KvStore.KeyRange(key, key + "\0")).result()
    else:
        value = content(json.loads(store.read(key).result().value)) if callable(content) else content
        store.write(key, value if isinstance(value, bytes) else json.dumps(value).encode()).result()


def test_shapes_are_those_that_were_saved(whole):
    assert stored_shapes(whole / "state") == {"a": (3, 4), "b.c": (5,), "d": (1, 2)}


def grid(n):
    return lambda about: about | {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": n}}}


def codec(change):
    def content(about):
        change(about["codecs"])
        return about

    return content


HOSTILE = {
    "endless, without its pieces": ("b.c/zarr.json", lambda x: x | {"shape": [2**40]}, "1 pieces of 219902325556"),
    "endless in one piece": ("b.c/zarr.json", lambda x: grid([2**45])(x | {"shape": [2**45]}), "would decode to"),
    "a piece that is missing": ("b.c/c/0", None, "0 pieces of 1"),
    "pieces larger than the array": ("a/zarr.json", grid([2**30, 4]), "for an array of"),
    "pieces of nothing": ("a/zarr.json", grid([0, 4]), "pieces of sizes"),
    "another rank": ("a/zarr.json", grid([3]), "sizes"),
    "negative": ("a/zarr.json", lambda x: x | {"shape": [-3, 4]}, "sizes"),
    "inner pieces larger": (
        "a/zarr.json",
        codec(lambda c: c[0]["configuration"].update(chunk_shape=[2**30, 4])),
        "for an array of",
    ),
    "another codec": ("a/zarr.json", codec(lambda c: c.append({"name": "blosc"})), "codec 'blosc'"),
    "a number for a codec": ("a/zarr.json", codec(lambda c: c.append(3)), "codec 3"),
    "codecs in codecs in codecs": (
        "a/zarr.json",
        codec(lambda c: c[0]["configuration"].update(codecs=[json.loads(json.dumps(c[0]))])),
        "codecs that are not known",
    ),
    "objects": ("a/zarr.json", lambda x: x | {"data_type": "object"}, "'object'"),
    "no shape": ("a/zarr.json", lambda x: {k: v for k, v in x.items() if k != "shape"}, "'shape'"),
    "no JSON": ("a/zarr.json", b"{", "no JSON"),
    "deep": ("a/zarr.json", b"[" * 10**5, "deeply|values"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_stores_are_refused(name, copy):
    key, content, message = HOSTILE[name]
    changed(copy, key, content)
    with pytest.raises(MalformedError, match=message):
        stored_shapes(copy / "state")
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(copy, ARRAYS)


def test_damaged_values_are_refused_and_parts_are_read(copy):
    array = open_array(copy / "state", "a")
    first, second = read_parts(array, [(slice(1, 3), slice(0, 2)), (slice(None), slice(None))])
    np.testing.assert_array_equal(first, ARRAYS["a"][1:3, :2])
    np.testing.assert_array_equal(second, ARRAYS["a"])
    changed(copy, "a/c/0/0", b"no piece of an array")
    with pytest.raises(InputError, match=r"damaged.*cannot be read"):
        checkpoint.load(copy, {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in ARRAYS.items()})
    changed(copy, "a/zarr.json", lambda x: x | {"fill_value": "x"})
    with pytest.raises(MalformedError, match="cannot be opened"):
        open_array(copy / "state", "a")


@pytest.mark.parametrize("name", ["_METADATA", "_sharding", "array_metadatas/process_0"])
def test_json_beside_the_arrays_is_bounded(name, copy):
    (copy / "state" / name).write_bytes(b"[" * 10**6)
    with pytest.raises(MalformedError, match=r"deeply|values|JSON"):
        stored_shapes(copy / "state")


def test_other_ways_to_store_and_damage_are_refused(copy):
    text = (copy / "state" / "_METADATA").read_text()
    (copy / "state" / "_METADATA").write_text(text.replace('"use_zarr3": true', '"use_zarr3": false'))
    with pytest.raises(MalformedError, match="another way"):
        stored_shapes(copy / "state")
    (copy / "state" / "_METADATA").write_text(text)
    manifest = copy / "state" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    with pytest.raises(MalformedError, match="store cannot be read"):
        stored_shapes(copy / "state")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"custom_metadata": 3}', b"[" * 10**6])
def test_damaged_metadata_are_refused(content, copy):
    (copy / "_CHECKPOINT_METADATA").write_bytes(content)
    with pytest.raises(InputError, match="_CHECKPOINT_METADATA"):
        checkpoint.metadata(copy, format_name="test", version=1)
    assert checkpoint.format_of(copy) is None

"""Checkpoints: what is written comes back, what is damaged or foreign is refused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits import checkpoint
from tcircuits.types import InputError

KIND = {"format_name": "test.format", "version": 3}


class Pair(NamedTuple):
    left: jax.Array
    right: dict


def tree():
    return Pair(jnp.arange(6.0).reshape(2, 3), {"a": jnp.ones(4, jnp.int32), "b": None})


def like(t, **changes):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, changes.get("dtype", x.dtype)), t)


def test_a_tree_and_its_metadata_come_back(tmp_path):
    about = {"name": "x", "numbers": [1, 2.5], "nothing": None}
    checkpoint.save(tmp_path / "c", tree(), **KIND, about=about)
    assert checkpoint.metadata(tmp_path / "c", **KIND) == about
    back = checkpoint.load(tmp_path / "c", like(tree()))
    assert isinstance(back, Pair)
    np.testing.assert_array_equal(back.left, tree().left)
    np.testing.assert_array_equal(back.right["a"], tree().right["a"])
    assert back.right["b"] is None
    assert checkpoint.load(tmp_path / "c", like(tree(), dtype=jnp.bfloat16)).left.dtype == jnp.bfloat16


def test_saving_in_the_background(tmp_path):
    wait = checkpoint.save_async(tmp_path / "c", tree(), **KIND)
    wait()
    assert checkpoint.is_checkpoint(tmp_path / "c")
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "c", like(tree())).left, tree().left)


@pytest.mark.parametrize("save", [checkpoint.save, checkpoint.save_async])
def test_an_existing_folder_is_not_touched(save, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "precious").write_text("x")
    with pytest.raises(InputError, match="exists"):
        save(tmp_path / "c", tree(), **KIND)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_another_format_or_version(tmp_path):
    checkpoint.save(tmp_path / "c", tree(), **KIND)
    with pytest.raises(InputError, match=r"'test\.format' version 3; this release reads 'test\.format' version 4"):
        checkpoint.metadata(tmp_path / "c", format_name="test.format", version=4)
    with pytest.raises(InputError, match="reads 'other'"):
        checkpoint.metadata(tmp_path / "c", format_name="other", version=3)


def test_arrays_that_do_not_fit_are_all_named(tmp_path):
    checkpoint.save(tmp_path / "c", tree(), **KIND)
    wanted = {"left": jnp.zeros((3, 2)), "right": {"c": jnp.zeros(1)}}
    with pytest.raises(InputError) as error:
        checkpoint.load(tmp_path / "c", like(wanted))
    for part in ("right.c is missing", "right.a is not expected", "left has shape (2, 3), not (3, 2)"):
        assert part in str(error.value)


def test_incomplete_absent_and_damaged(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        checkpoint.metadata(tmp_path / "none", **KIND)
    checkpoint.save(tmp_path / "c", tree(), **KIND)
    big = max((f for f in (tmp_path / "c" / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    whole = big.read_bytes()
    big.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"damaged|do not fit"):
        checkpoint.load(tmp_path / "c", like(tree()))
    big.write_bytes(whole)
    (tmp_path / "c" / "commit_success.txt").unlink()
    for read in (
        lambda: checkpoint.metadata(tmp_path / "c", **KIND),
        lambda: checkpoint.load(tmp_path / "c", like(tree())),
    ):
        with pytest.raises(InputError, match="complete checkpoint"):
            read()


def test_a_checkpoint_of_the_oldest_supported_release(golden):
    """`golden/checkpoint` was written once by `golden/make_checkpoint.py`; newer releases must go on reading it."""
    about = checkpoint.metadata(golden / "checkpoint", **KIND)
    assert about == {"written_by": "orbax-checkpoint 0.12.8"}
    np.testing.assert_array_equal(checkpoint.load(golden / "checkpoint", like(tree())).left, tree().left)

"""A run's folder: damaged checkpoints make no room, a full disk costs a line, a folder that cannot be written."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcircuits.transcoders.training import folder
from tcircuits.types import InputError

ABOUT = {"recipe": {"steps": 9}, "release": "1"}
STATE = {"a": jnp.arange(4000.0), "b": jnp.ones((3, 5), jnp.int32)}
ABSTRACT = jax.eval_shape(lambda: STATE)


def write(run, step):
    folder.write_state(run, jax.tree.map(lambda a: a * step, STATE), step, ABOUT)()


def halve(path):
    data = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def names(run):
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def test_the_newest_state_that_can_be_read(tmp_path):
    for step in (2, 4, 6):
        write(tmp_path, step)
    assert names(tmp_path) == ["0000000004", "0000000006"]
    state, step = folder.read_state(tmp_path, ABSTRACT, ABOUT)
    assert step == 6
    np.testing.assert_array_equal(state["a"], 6 * np.arange(4000.0))
    halve(tmp_path / "checkpoints" / "0000000006")
    with pytest.warns(folder.DamagedCheckpoint, match="0000000006 is passed over"):
        state, step = folder.read_state(tmp_path, ABSTRACT, ABOUT)
    assert step == 4
    np.testing.assert_array_equal(state["b"], np.full((3, 5), 4))


def test_checkpoints_that_were_passed_over_do_not_push_out_new_ones(tmp_path):
    for step in (6, 8):
        write(tmp_path, step)
        halve(tmp_path / "checkpoints" / f"{step:010d}")
    with pytest.warns(folder.DamagedCheckpoint):
        assert folder.read_state(tmp_path, ABSTRACT, ABOUT) is None
    folder.prepare(tmp_path, 0)
    write(tmp_path, 2)
    assert [p.name for p in folder.checkpoints(tmp_path)] == ["0000000002"]
    assert names(tmp_path) == ["0000000002", "0000000006.damaged", "0000000008.damaged"]
    write(tmp_path, 6)
    folder.clear_remains(tmp_path)
    assert names(tmp_path) == ["0000000002", "0000000006"]


def test_a_checkpoint_for_which_there_is_no_room_leaves_nothing(tmp_path, monkeypatch):
    write(tmp_path, 2)

    def fails(path, *args, **more):
        (path.parent / f"{path.name}.orbax-checkpoint-tmp-1").mkdir()

        def wait():
            raise RuntimeError("RESOURCE_EXHAUSTED: No space left on device")

        return wait

    monkeypatch.setattr(folder.checkpoint, "save_async", fails)
    with pytest.warns(folder.DamagedCheckpoint, match=r"0000000004 was not written .*No space left"):
        write(tmp_path, 4)
    assert names(tmp_path) == ["0000000002"]


def test_a_full_disk_costs_a_line_and_leaves_no_half(tmp_path):
    folder.add_metrics(tmp_path, {"step": 1, "loss": [0.5]})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / folder.METRICS).stat().st_size + 5, before[1]))
    try:
        with pytest.warns(UserWarning, match="figures of step 2 were not written"):
            folder.add_metrics(tmp_path, {"step": 2, "loss": [0.25]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder.add_metrics(tmp_path, {"step": 3, "loss": [0.125]})
    assert [row["step"] for row in folder.read_metrics(tmp_path)] == [1, 3]


def test_later_figures_are_dropped(tmp_path):
    for step in (2, 4, 6):
        folder.add_metrics(tmp_path, {"step": step})
    folder.prepare(tmp_path, 4)
    assert [row["step"] for row in folder.read_metrics(tmp_path)] == [2, 4]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written .*choose another"):
        folder.prepare(tmp_path / "file" / "run", 0)


def test_the_remains_of_a_killed_process_go(tmp_path):
    write(tmp_path, 2)
    for name in ("checkpoints/0000000004", ".transcoders.0f", "transcoders.orbax-checkpoint-tmp-1", "transcoders"):
        (tmp_path / name).mkdir()
    (tmp_path / "transcoders" / "_CHECKPOINT_METADATA").write_text("{}")
    (tmp_path / "notes").mkdir()
    folder.clear_remains(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "notes"]
    assert names(tmp_path) == ["0000000002"]

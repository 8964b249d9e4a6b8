"""Batches through grain hold the rows that `Rows` gives."""

import sys
from itertools import islice

import numpy as np
import pytest

from tcircuits.data.grain_source import batches
from tcircuits.data.mixture import Mixture
from tcircuits.data.rows import Rows
from tcircuits.data.writing import write_tokens
from tcircuits.types import InputError

pytest.importorskip("grain", reason="pip install grain")


@pytest.fixture
def rows(tmp_path):
    documents = [np.arange(1, 30) + 30 * i for i in range(20)]
    return Rows(write_tokens(tmp_path / "a.tokens", documents, vocab_size=700, bos_id=0), 9, seed=2)


def test_batches_are_rows(rows):
    for source in (rows, Mixture((rows, Rows(rows.tokens, 9, seed=5)), (2, 1))):
        got = np.concatenate(list(islice(batches(source, 16, first=5), 10)))
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, source.rows(5, 160))
    assert len(list(batches(rows, 16, count=3))) == 3


def test_processes_share_a_batch(rows):
    parts = [list(batches(rows, 8, count=4, process_index=i, process_count=2)) for i in range(2)]
    got = np.concatenate([part[k] for k in range(4) for part in parts])
    np.testing.assert_array_equal(got, rows.rows(0, 32))


def test_a_run_goes_on_where_it_was(rows):
    stream = iter(batches(rows, 8))
    for _ in range(3):
        next(stream)
    state = stream.get_state()
    want = next(stream)
    other = iter(batches(rows, 8))
    other.set_state(state)
    np.testing.assert_array_equal(next(other), want)
    np.testing.assert_array_equal(next(iter(batches(rows, 8, first=24))), want)


PROGRAM = """
import numpy as np
from tcircuits.data.grain_source import batches
from tcircuits.data.rows import Rows
from tcircuits.data.tokens import open_tokens

if __name__ == "__main__":
    rows = Rows(open_tokens({path!r}), 9, seed=2)
    got = np.concatenate(list(batches(rows, 8, count=6, workers=2)))
    np.testing.assert_array_equal(got, rows.rows(0, 48))
    print("equal")
"""


@pytest.mark.slow
def test_worker_processes(rows, tmp_path, run_python):
    program = tmp_path / "program.py"  # a file, which the workers import
    program.write_text(PROGRAM.format(path=str(rows.tokens.path)))
    assert run_python([str(program)]).stdout.endswith("equal\n")


def test_sizes_that_cannot_be(rows):
    for options, message in [
        ({"batch": 0}, "batch=0"),
        ({"batch": 8, "count": 0}, "count=0"),
        ({"batch": 8, "first": -1}, "first=-1"),
        ({"batch": 8, "workers": -1}, "workers=-1"),
        ({"batch": 9, "process_count": 2}, "a batch of 9 rows cannot be split evenly over 2 processes"),
        ({"batch": 8, "process_index": 2, "process_count": 2}, r"process 2 is outside 0\.\.1"),
    ]:
        with pytest.raises(InputError, match=message):
            batches(rows, **options)


def test_without_the_package(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(InputError, match=r"this needs the package 'grain': pip install 'tcircuits\[data\]'"):
        batches(rows, 8)

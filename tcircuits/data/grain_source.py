"""The same rows through grain: read ahead by threads, or by processes of their own, for training at scale.

    from tcircuits.data.grain_source import batches

    for rows in batches(train, 256, workers=4):
        ...  # int32 [256, context]

`Rows` alone is enough on one machine; grain hides the reading where it takes as long as a step. Positions are those of
`Rows`: batch k holds rows first + k * batch and so on, so a run resumes with `first`, without any state of grain's.
Needs the package grain (pip install 'tcircuits[data]').
"""

from functools import partial
from typing import Any

import numpy as np

from tcircuits.data.rows import LARGEST, RowSource, local_rows
from tcircuits.models.source import need
from tcircuits.types import InputError


def batches(
    rows: RowSource,
    batch: int,
    *,
    first: int = 0,
    count: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 4,
    ahead: int = 8,
) -> Any:
    """A `grain.IterDataset` of batches, int32 [batch / process_count, context].

    Args:
        rows: where rows are from.
        batch: rows of all processes together.
        first: number of the first row.
        count: how many batches; None goes on for ever, through epoch after epoch.
        process_index: which process this is: each gets its share of every batch, as `local_rows` gives it.
        process_count: how many there are.
        workers: processes that read ahead; 0 reads in threads of this one. They start Python anew, so a program that
            uses them guards its entry with `if __name__ == "__main__"`.
        threads: threads that read, in this process or in each worker.
        ahead: batches that are held ready.

    Raises:
        InputError: grain is not installed, sizes below 1, a batch that cannot be split evenly.
    """
    grain = need("grain", "'tcircuits[data]'")
    sizes = {"batch": batch, "count": 1 if count is None else count, "threads": threads, "ahead": ahead}
    wrong = [f"{name}={value}" for name, value in sizes.items() if value < 1]
    if wrong or first < 0 or workers < 0:
        raise InputError(f"{', '.join([*wrong, f'first={first}', f'workers={workers}'])}: sizes begin at 1")
    local_rows(rows, first, 0, process_index, process_count)  # refuses what could not be split
    if batch % process_count:
        raise InputError(f"a batch of {batch} rows cannot be split evenly over {process_count} processes")
    stop = (LARGEST - first) // batch if count is None else count
    read = partial(_batch, rows, first, batch, process_index, process_count)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    found = grain.MapDataset.range(stop).map(read).to_iter_dataset(options)
    if workers == 0:
        return found
    flags = need("absl.flags", "absl-py").FLAGS  # grain's workers read its flags, also where nobody parsed any
    if not flags.is_parsed():
        flags.mark_as_parsed()
    return found.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead))


def _batch(rows: RowSource, first: int, batch: int, process_index: int, process_count: int, number: int) -> np.ndarray:
    return local_rows(rows, first + int(number) * batch, batch, process_index, process_count)

"""Rows of all targets and selected features, chunk by chunk, into a `RowStore`.

On one CPU device a few threads take one chunk each: matrices of this size leave a core idle between two products of one
sweep, and copying rows to their place is work of its own. Elsewhere chunks are launched in order, ahead of those that
are fetched and copied (by threads, too, where no other process takes part in fetching). Either way memory is a few
chunks beside the edges.

Where every active feature is selected, its slots already stand in the order of the graph, and `cone` gives them as they
come from the sweep. Where some are, or slots are mostly padding, or what the device holds has to be fetched from it,
`rows` picks their columns there.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.graph import TargetNode
from tcircuits.attribution.grouping import arrange, work_of
from tcircuits.attribution.memory import carried, streams
from tcircuits.attribution.precise import first_layer
from tcircuits.attribution.row_store import RowStore
from tcircuits.attribution.rows import cone, rows
from tcircuits.attribution.select import Selection, arranged
from tcircuits.attribution.targets import Targets
from tcircuits.compiling import compiled
from tcircuits.models.config import ModelConfig
from tcircuits.numerics import bucket
from tcircuits.parallel import Spread, host, mesh_of, spread_of
from tcircuits.transcoders.dictionary import Transcoders

# The compiled programs; `planning` compiles the same ones for machines that are not there.
rows_program = compiled(rows, static_argnames=("cfg", "per_layer", "n_pos", "precision", "spread"))
cone_program = compiled(cone, static_argnames=("cfg", "n_pos", "precision", "spread"))
arranged_program = compiled(arranged, static_argnames=("cfg",))
one_chunk = compiled(lambda targets, q: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, q, 1), targets))

MOST_PADDING = 3  # slots for each that is active, up to which copying all of them beats picking columns
MOST_THREADS, AHEAD = 8, 3


@dataclass(frozen=True)
class Job:
    """Chunk `q` of targets: the lanes that are real, their rows in the graph and values, and the positions to carry."""

    targets: Targets
    q: int
    lanes: np.ndarray
    rows: np.ndarray
    value: np.ndarray
    n_pos: int


def spread_for(model: Any) -> Spread | None:
    """Over which devices targets of a model are spread."""
    return spread_of(mesh_of(model.params.embed), model.cfg.n_heads)


def store_for(cfg: ModelConfig, frozen: Frozen, flat: np.ndarray, nodes: list[TargetNode], leaves: bool) -> RowStore:
    """An empty store for the rows of the features at `flat` places and of the targets `nodes`."""
    L, T, C = frozen.index.shape
    layer = np.concatenate([flat // (T * C), [t.layer for t in nodes]]).astype(np.int64)
    pos = np.concatenate([flat // C % T, [t.pos for t in nodes]]).astype(np.int64)
    live = (host(frozen.error) != 0).any(-1)
    direct, reach = (layer == L) | cfg.parallel, pos if cfg.causal else np.full_like(pos, T - 1)
    return RowStore(layer, pos, reach, len(flat), live, direct, np.dtype(frozen.value.dtype), leaves)


def fill_first_layer(model: Any, d: Transcoders, frozen: Frozen, flat: np.ndarray, store: RowStore) -> None:
    """Rows of the features of layer 0, of those at `flat` places, where `precise` makes them."""
    if store.dtype != np.float32:
        return
    (_, T, C), at = frozen.index.shape, flat[: int(store.counts[0].sum())]
    pos, slot = at // C % T, at % C
    number, factor = (host(x)[0, pos, slot] for x in (frozen.index, frozen.factor))
    store.put_first_layer(*first_layer(model, d, frozen, pos, number, factor))


def worth_copying(slots: int, n: int) -> bool:
    """Whether all slots are copied rather than columns picked, where all n active features are selected."""
    return slots <= MOST_PADDING * max(n, 1)


def packed(frozen: Frozen, store: RowStore) -> bool:
    """Whether every active slot is selected, the slots of a position stand in front, and padding is no burden."""
    _, _, C = frozen.index.shape
    if jax.default_backend() != "cpu" or store.leaves or not worth_copying(frozen.index.size, store.n):
        return False
    return bool((host(frozen.valid) == (np.arange(C) < store.counts[..., None])).all())


def jobs_of(
    model: Any,
    d: Transcoders,
    frozen: Frozen,
    chosen: Selection,
    outputs: list[Targets],
    store: RowStore,
    lanes: int | None,
    by_layer: bool,
) -> list[Job]:
    """Chunks of the targets and of the features that the store wants from a sweep; or each of one layer."""
    T, N, spread = store.live.shape[1], chosen.flat.shape[0], spread_for(model)
    first = 1 if store.dtype == np.float32 else 0  # rows of layer 0 come from `precise`
    real = np.concatenate([host(t.valid).ravel() for t in outputs])
    wanted = np.concatenate([np.flatnonzero(store.layer[: store.n] >= first), store.n + np.arange(real.sum())])
    place = np.concatenate([np.arange(store.n), N + np.flatnonzero(real)])  # of each row among features and outputs
    groups = arrange(
        store.layer[wanted],
        store.reach[wanted],
        T,
        work_of(model.cfg, d.cfg, T, frozen.index.shape[-1], jax.default_backend()),
        jax.default_backend(),
        lanes=lanes,
        multiple=1 if spread is None else spread.n,
        by_layer=by_layer,
    )
    more = bucket(len(groups.layer), 8) - len(groups.layer)
    members = np.where(groups.members >= 0, place[wanted[groups.members]], -1)
    given = np.pad(members, ((0, more), (0, 0)), constant_values=-1), np.pad(groups.layer, (0, more))
    targets = arranged_program(
        model.cfg, model.params, d, frozen, chosen.flat, outputs, *(jnp.asarray(x, jnp.int32) for x in given)
    )
    out, value = [], host(targets.value)
    for q, n_pos in enumerate(groups.n_pos.tolist()):
        at = np.flatnonzero(groups.members[q] >= 0)
        out.append(Job(targets, q, at, wanted[groups.members[q, at]], value[q, at], n_pos))
    return out


def sweep_rows(
    model: Any,
    d: Transcoders,
    frozen: Frozen,
    chosen: Selection,
    outputs: list[Targets],
    store: RowStore,
    lanes: int | None,
    precision: str = "highest",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill the store with the rows of all targets and selected features."""
    whole, spread = packed(frozen, store), spread_for(model)
    jobs = jobs_of(model, d, frozen, chosen, outputs, store, lanes, whole)
    per_layer = bucket(int(np.diff(host(chosen.start)).max(initial=1)), 64)

    def launch(job: Job) -> Any:
        given = (model.cfg, model.params, d, frozen, one_chunk(job.targets, job.q))
        how: dict[str, Any] = {"n_pos": job.n_pos, "precision": precision, "spread": spread}
        if whole:
            return cone_program(*given, **how)
        return rows_program(*given, chosen, per_layer=per_layer, **how)

    def collect(job: Job, found: Any) -> None:
        found = jax.tree.map(host, found)
        if whole:
            store.put_cone(found, job.rows, job.lanes, job.value)
        else:
            store.put_rows(jax.tree.map(lambda x: x[0], found), job.rows, job.lanes)

    fill = partial(fill_first_layer, model, d, frozen, host(chosen.flat)[: store.n], store)
    if alone_on_a_cpu(frozen):
        widest = max(job.targets.pos.shape[1] for job in jobs)
        beside = threads(widest, len(frozen.tokens), carried(model.cfg, d.cfg, frozen.index.shape[-1]))
        _in_threads(jobs, lambda job: collect(job, launch(job)), fill, beside, progress)
    else:
        _in_order(jobs, launch, collect, progress)
        fill()


@contextmanager
def _pool(n: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that take up nothing new once the caller has failed or was interrupted."""
    pool = ThreadPoolExecutor(n)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(jobs: list[Job], launch: Any, collect: Any, progress: Any) -> None:
    """Launch chunk after chunk (every process the same ones), and copy behind."""
    waiting: list[Any] = []
    with _pool(AHEAD) as pool:
        for q, job in enumerate(jobs):
            found = launch(job)
            alone = jax.process_count() == 1
            waiting.append(pool.submit(collect, job, found).result if alone else partial(collect, job, found))
            if len(waiting) > AHEAD:  # keep the device busy while the host copies
                waiting.pop(0)()
            if progress:
                progress(q + 1, len(jobs))
        for finish in waiting:
            finish()


def alone_on_a_cpu(frozen: Frozen) -> bool:
    """Whether chunks can run side by side: no other device or process waits for its part in each of them."""
    return jax.default_backend() == "cpu" and jax.process_count() == 1 and len(frozen.value.devices()) == 1


def threads(lanes: int, T: int, numbers: int) -> int:
    """Chunks side by side on a CPU: one more than the process has cores, as one copies while the others multiply.

    One alone where the cotangents of that many chunks would take too much memory.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(MOST_THREADS, cores + 1)
    return most if lanes * most <= streams(T, numbers) else 1


def _in_threads(
    jobs: list[Job], work: Callable[[Job], None], beside: Callable[[], None], n: int, progress: Any
) -> None:
    """Chunks side by side in n threads, and `beside` them what does not depend on them.

    Each width has a program, which its first chunk compiles; the others of the width come after it.
    """
    settings: Any = jax.config
    x64, device = settings.jax_enable_x64, settings.jax_default_device

    def alike(f: Callable[..., None], *args: Any) -> None:
        with jax.enable_x64(x64), jax.default_device(device):  # what the caller set holds for its own thread alone
            f(*args)

    widths: dict[int, list[Job]] = {}
    for job in jobs:
        widths.setdefault(job.n_pos, []).append(job)
    count = 0
    with _pool(n) as pool:
        after = {pool.submit(alike, work, first): rest for first, *rest in widths.values()}
        other = pool.submit(alike, beside)
        while after:
            for done in wait(after, return_when=FIRST_COMPLETED).done:
                done.result()
                after |= {pool.submit(alike, work, job): [] for job in after.pop(done)}
                count += 1
                if progress:
                    progress(count, len(jobs))
        other.result()

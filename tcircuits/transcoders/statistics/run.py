"""One pass over a corpus for all features of all layers: figures and examples of each, in memory known beforehand.

>>> import tcircuits as tc
>>> model = tc.load_model("tiny")
>>> transcoders = tc.load_transcoders("tiny-transcoders", model=model)
>>> row = model.encode("From 1772 the strike went on until 17", bos="add")
>>> feature_statistics(model, transcoders, [row, row]).density.shape
(4, 1024)
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tcircuits.models.model import Model
from tcircuits.numerics import bucket
from tcircuits.parallel import host, is_lead, shardings
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.corpus import Corpus, corpus, mesh_of
from tcircuits.transcoders.evaluation.table import check_fit
from tcircuits.transcoders.statistics import resume
from tcircuits.transcoders.statistics.keeping import EMPTY, Keeping, feature_keys, token_of
from tcircuits.transcoders.statistics.result import Statistics
from tcircuits.transcoders.statistics.state import State, empty, spec
from tcircuits.transcoders.statistics.step import Places, places, step
from tcircuits.transcoders.training.identity import fingerprint
from tcircuits.types import InputError

SLOTS = 128  # active features that there is room for at first, by token; doubled where a part of a step has more
LARGEST = 2**31 - 1  # tokens: they are numbered, and counted, in 32 bits


def feature_statistics(
    model: Model,
    transcoders: Transcoders,
    rows: Any,
    *,
    n_tokens: int | None = None,
    top: int = 20,
    drawn: int = 20,
    seed: int = 0,
    batch: int = 8,
    parts: int = 4,
    precision: str = "highest",
    folder: Path | None = None,
    every: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Figures and examples of every feature of a set of dictionaries, from one pass over rows of text.

    The first position of a row (BOS) counts nowhere. On a mesh (parameters that lie on one) rows are spread over
    "data" and features over "model". Every process of a run calls it, with the same rows.

    Args:
        model: from `load_model`.
        transcoders: from `load_transcoders`, whole.
        rows: token ids [n, T], each row beginning with BOS, or an object with `rows(first, n)` (and `n`).
        n_tokens: tokens to read, rounded down to whole rows; None reads all rows.
        top: strongest activations that are kept of a feature.
        drawn: activations that are drawn of a feature; one more is drawn from each bin of its histogram.
        seed: of what is drawn.
        batch: rows that are encoded at once.
        parts: so many times `batch` rows are a step, after which the state takes them in.
        precision: of matrix products: highest, high, default.
        folder: for checkpoints; a pass that was cut off goes on from the one that is there.
        every: seconds between checkpoints.
        progress: called with (rows done, rows in all).

    Raises:
        InputError: a dictionary for another model, or one that stays on disk; rows that do not fit, or too few; a pass
            in `folder` with other settings; weights that are damaged; no activation at all.
    """
    check_fit(model, transcoders)
    if batch < 1 or parts < 1:
        raise InputError(f"batch={batch}, parts={parts}: give at least 1")
    keeping, text = Keeping(top, drawn, seed), corpus(model.cfg, rows, n_tokens)
    if text.n * text.context > LARGEST:
        raise InputError(f"{text.n * text.context:,} tokens: a pass numbers {LARGEST:,} at most; give n_tokens")
    digest = text.digest()  # reads every row, so that wrong ids are found before anything is compiled
    run = Pass.begin(model, transcoders, text, keeping, batch, parts, precision)
    about = run.about() | {"corpus": digest}
    state = _passed(run, folder, every, about, progress)
    return _result(run, state, digest, transcoders.source)


def check_layers(d: Transcoders, layers: Sequence[int]) -> tuple[int, ...]:
    """Layers of a set, ascending.

    Raises:
        InputError: a layer that has no dictionary.
    """
    absent = sorted(set(layers) - set(d.cfg.layers))
    if absent:
        raise InputError(f"layers {absent} have no dictionary; there are {list(d.cfg.layers)}")
    return tuple(sorted(set(layers)))


def only_layers(d: Transcoders, layers: tuple[int, ...]) -> Transcoders:
    """The dictionaries of some layers.

    Raises:
        InputError: a set that is one whole: cross-layer, or neurons.
    """
    if layers == d.cfg.layers:
        return d
    if d.cfg.kind in ("clt", "neurons"):
        raise InputError(f"a set of kind {d.cfg.kind!r} has all layers: leave the choice of layers out")
    slots = np.asarray([d.cfg.layers.index(i) for i in layers])
    arrays: Any = {f.name: getattr(d, f.name) for f in fields(d) if f.name not in ("cfg", "source")}
    chosen: Any = {name: None if a is None else a[slots] for name, a in arrays.items()}
    return replace(d, cfg=replace(d.cfg, layers=layers), **chosen)


def state_bytes(transcoders: Transcoders, top: int = 20, drawn: int = 20, itemsize: int = 4) -> int:
    """Size of the state of a pass; a step holds it twice."""
    c = transcoders.cfg
    return len(c.layers) * c.d_feature * Keeping(top, drawn).bytes_a_feature(itemsize)


@dataclass
class Pass:
    """What all steps of a pass share, and the room for active features by token (`most`, which may grow)."""

    model: Model
    d: Transcoders
    text: Corpus
    keeping: Keeping
    batch: int
    parts: int
    precision: str
    on: Places | None
    keys: jax.Array
    most: int

    @classmethod
    def begin(
        cls, model: Model, d: Transcoders, text: Corpus, keeping: Keeping, batch: int, parts: int, precision: str
    ) -> "Pass":
        """Sizes for this corpus: no batch is larger than it needs."""
        mesh = mesh_of(model.params)
        spread = 1 if mesh is None else mesh.shape["data"]
        batch = -(-min(batch, text.n) // spread) * spread
        parts = min(parts, -(-text.n // batch))
        on = places(mesh, batch, d.cfg.d_feature)
        keys: Any = feature_keys(d.cfg.layers, d.cfg.d_feature, keeping.seed)
        keys = jnp.asarray(keys) if on is None else _on_mesh(on, keys, None, on.features)
        first = SLOTS if d.cfg.k is None else d.cfg.k
        most = d.cfg.d_feature if d.cfg.kind == "neurons" else min(first, d.cfg.d_feature)
        return cls(model, replace(d, source=""), text, keeping, batch, parts, precision, on, keys, most)

    def about(self) -> dict[str, Any]:
        """What decides the state, bit for bit."""
        found = {"model": self.model.name, "fingerprint": fingerprint(self.model), "dictionary": asdict(self.d.cfg)}
        found |= {"weights": _digest(self.d), "keeping": asdict(self.keeping), "precision": self.precision}
        return found | {"batch": self.batch, "parts": self.parts, "n_rows": self.text.n, "context": self.text.context}

    def abstract(self) -> State:
        """Shapes, dtypes and places of the state."""
        dtype = jnp.promote_types(self.model.params.embed.dtype, jnp.float32)
        if self.d.w_enc is not None:
            dtype = jnp.promote_types(dtype, self.d.w_enc.dtype)
        shape = len(self.d.cfg.layers), self.d.cfg.d_feature
        shapes = jax.eval_shape(partial(empty, self.keeping, *shape, dtype))
        if self.on is None:
            return shapes
        where = shardings(spec(self.keeping, *shape), self.on.mesh)
        return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, where)

    def start(self) -> State:
        """The state before any row."""
        shapes = self.abstract()
        n, f = shapes.total.shape
        where = None if self.on is None else jax.tree.map(lambda s: s.sharding, shapes)
        return jax.jit(partial(empty, self.keeping, n, f, shapes.total.dtype), out_shardings=where)()

    def step(self, state: State, first: int) -> State:
        """The state after the rows from `first` on; the step is repeated with more room where there was too little."""
        size = self.batch * self.parts
        rows = np.asarray(self.text.read(first, min(size, self.text.n - first)), np.int32)
        rows = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])
        rows = rows.reshape(self.parts, self.batch, -1)
        tokens = jnp.asarray(rows) if self.on is None else _on_mesh(self.on, rows, None, self.on.rows)
        ends = jnp.uint32(first), jnp.uint32(self.text.n)
        while True:
            options = {"most": self.most, "on": self.on, "precision": self.precision}
            args = (self.model.cfg, self.model.params, self.d, state, self.keys, tokens)
            found, full = step(*args, *ends, **options)
            if not bool(full):
                return found
            self.most = min(bucket(2 * self.most), self.d.cfg.d_feature)


def _on_mesh(on: Places, x: np.ndarray, *axes: str | None) -> jax.Array:
    where = NamedSharding(on.mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def _digest(d: Transcoders) -> str:
    """A hash of a few values of every array: tells sets apart, and is the same on every mesh."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(d):
        part = leaf[:, :2, :64] if leaf.ndim > 2 else leaf[:, :64]
        found.update(np.ascontiguousarray(host(part)).tobytes())
    return found.hexdigest()[:16]


def _passed(run: Pass, folder: Path | None, every: float, about: dict[str, Any], progress: Any) -> State:
    """The state after all rows."""
    found = None if folder is None else resume.read(folder, run.abstract(), about)
    state, done = (run.start(), 0) if found is None else found
    saved = time.monotonic()
    while done < run.text.n:
        state = run.step(state, done)
        done = min(done + run.batch * run.parts, run.text.n)
        if folder is not None and (time.monotonic() - saved >= every or done == run.text.n):
            resume.write(folder, state, done, about)
            saved = time.monotonic()
        if progress is not None:
            progress(done, run.text.n)
    return state


def forget(folder: Path) -> None:
    """Remove the checkpoints of a pass that is done."""
    if is_lead():
        shutil.rmtree(folder, ignore_errors=True)


def _result(run: Pass, state: State, digest: str, dictionary: str) -> Statistics:
    """The state on the host, its priorities turned into tokens."""
    found = {name: host(getattr(state, name)) for name in State.__dataclass_fields__}
    keys = feature_keys(run.d.cfg.layers, run.d.cfg.d_feature, run.keeping.seed)[..., None]
    total = found["total"].astype(np.float64) - found["lost"]
    if not np.isfinite(total).all():
        raise InputError("activations are not finite on this corpus: the weights are damaged, or float16 overflows")
    if not found["count"].any():
        raise InputError(
            f"no feature of any layer is on at any of {run.text.n_positions:,} positions: "
            "do the dictionaries belong to this model, and to what they read?"
        )
    drawn = np.sort(found["drawn"], -1)
    on = found["token"] != EMPTY
    return Statistics(
        model=run.model.name,
        dictionary=dictionary,
        cfg=run.d.cfg,
        keeping=run.keeping,
        n_rows=run.text.n,
        context=run.text.context,
        corpus=digest,
        value=np.where(on, found["value"], 0),
        token=found["token"],
        count=found["count"],
        in_bin=token_of(found["in_bin"], keys),
        drawn=token_of(drawn, keys),
        total=total,
        least=np.where(np.isfinite(found["least"]), found["least"], 0),
    )

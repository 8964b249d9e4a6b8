"""The table of a set of dictionaries: reconstruction, sparsity, and what the model loses when layers are replaced.

    FVU = sum |y - yh|^2 / sum |y - mean y|^2                  L0 = mean number of active features
    loss recovered = (CE_ablated - CE_replaced) / (CE_ablated - CE_original)       KL = mean sum_v P log(P / Q)
    relative reconstruction bias = E|yh|^2 / E[yh . y]         L2 ratio = E[|yh| / |y|]
    shrinkage = 1 - sqrt(E|yh - mean yh|^2 / E|y - mean y|^2)

P is the original model's next-token distribution and Q that of the model with a set of layers replaced. Reconstruction
and sparsity are measured on the original model's activations, mean ablation uses the mean over the same rows, and
position 0 (BOS) is replaced by nothing and counted nowhere.

Sources: Dunefsky et al. 2024 (arXiv 2406.11944), section 4.2; Rajamanoharan et al. 2024 (arXiv 2404.16014) for the
relative reconstruction bias.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tcircuits.models.model import Model
from tcircuits.parallel import host
from tcircuits.transcoders.config import misfits
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.corpus import Corpus, corpus, mesh_of
from tcircuits.transcoders.evaluation.intervals import DRAWS
from tcircuits.transcoders.evaluation.measure import FIRST, LayerSums, RowSums, measure, site_sums
from tcircuits.transcoders.evaluation.replacement import (
    DICTIONARY,
    MEAN,
    ZERO,
    check_sets,
    condition_matrix,
    standard_sets,
)
from tcircuits.transcoders.evaluation.results import Evaluation, Losses
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.types import InputError

WAYS = (DICTIONARY, ZERO, MEAN)
Progress = Callable[[int, int], None]


def evaluate(
    model: Model,
    dictionary: Transcoders,
    rows: Any,
    *,
    n_tokens: int | None = None,
    batch: int = 8,
    conditions: Sequence[Sequence[int]] | None = None,
    keep_first: bool = True,
    precision: str = "highest",
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress | None = None,
    ablated: Evaluation | None = None,
) -> Evaluation:
    """Measure a set of dictionaries on rows of text.

    A batch costs two forward passes, and for each set of layers three from its first layer on (replaced by the
    dictionary, by zero, by the mean). Every process of a run calls it, with the same rows.

    Args:
        model: from `load_model`.
        dictionary: from `load_transcoders`, whole; `neurons` lose nothing.
        rows: token ids [n, T], each row beginning with BOS, or an object with `rows(first, n)` (and `n`).
        n_tokens: tokens to read, rounded down to whole rows; None reads all rows.
        batch: rows at once; figures do not depend on it beyond rounding.
        conditions: sets of layers to replace; None is each layer by itself, and all.
        keep_first: leave position 0 as the model's own (BOS often is an outlier that no dictionary was trained on).
        precision: of matrix products: highest, high, default.
        draws: of the bootstrap over rows.
        seed: of the bootstrap.
        progress: called with (rows done, rows in all).
        ablated: an evaluation of another dictionary for the same site on the same rows: the losses under zero and mean
            ablation are taken from it, which saves two of three runs for each set.

    Raises:
        InputError: a dictionary for another model, a set that stays on disk, layers without a dictionary, rows that
            do not fit the model, or too few of them; `ablated` of other rows, sets, settings, or another site.
    """
    check_fit(model, dictionary)
    if batch < 1 or draws < 1:
        raise InputError(f"batch={batch}, draws={draws}: give at least 1")
    sets = check_sets(dictionary.cfg, standard_sets(dictionary.cfg) if conditions is None else conditions)
    text = corpus(model.cfg, rows, n_tokens)
    digest = text.digest()  # reads every row, so that wrong ids are found before anything is compiled
    about = {"keep_first": keep_first, "precision": precision, "draws": draws, "seed": seed, "corpus": digest}
    ways = WAYS if ablated is None else WAYS[:1]
    if ablated is not None:
        _check_ablated(ablated, model.name, dictionary.cfg.writes, sets, about)
    run = _Run(model, replace(dictionary, source=""), text, batch, precision, mesh_of(model.params), progress)
    sums, largest, losses = run.sums(run.mean(), sets, 0 if not keep_first else FIRST, ways)
    if ablated is not None:
        losses = _joined(losses, ablated.losses)
    names = {"model": model.name, "dictionary": dictionary.source}
    return Evaluation(**names, cfg=dictionary.cfg, about=about, n_rows=text.n, context=text.context, sets=sets,
                      sums=sums, largest=largest, losses=losses)  # fmt: skip


def check_fit(model: Model, d: Any) -> None:
    """Raise where a dictionary cannot be put into a model.

    Raises:
        InputError: other sizes, a site that the model does not have, or a set that stays on disk.
    """
    if isinstance(d, LazyTranscoders):
        raise InputError(f"transcoders {d.source!r} stay on disk (lazy): load them whole to evaluate them")
    cfg, c = model.cfg, d.cfg
    wrong = ["the model has no MLPs that a dictionary could stand for"] if cfg.attn_only and c.kind != "sae" else []
    if cfg.attn_only and c.reads in ("resid_mid", "mlp_in", "mlp_out") and c.kind == "sae":
        wrong.append(f"the model has no {c.reads}: it has no MLPs")
    if c.kind == "sae" and c.reads == "resid_mid" and cfg.parallel:
        wrong.append("the model's blocks are parallel and have no resid_mid: use resid_pre")
    if wrong := wrong + misfits(cfg, c):
        raise InputError(f"dictionaries {d.source!r} do not fit the model {model.name!r}: " + "; ".join(wrong))


def _check_ablated(e: Evaluation, model: str, site: str, sets: Any, about: dict[str, Any]) -> None:
    names = ("corpus", "keep_first", "precision")
    given = {"model": model, "site": site, "sets": sets} | {n: about[n] for n in names}
    theirs = {"model": e.model, "site": e.cfg.writes, "sets": e.sets} | {n: e.about[n] for n in names}
    wrong = [f"{n} is {theirs[n]}, not {given[n]}" for n in given if theirs[n] != given[n]]
    if wrong:
        raise InputError("the ablations of another evaluation do not fit: " + "; ".join(wrong))


def _joined(own: Losses, ablated: Losses) -> Losses:
    """The dictionary's losses, and the ablations' of another evaluation."""

    def both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b[1:]])

    return Losses(own.original, both(own.ce, ablated.ce), both(own.kl, ablated.kl), both(own.agree, ablated.agree))


@dataclass(frozen=True)
class _Run:
    """What both passes over the rows share."""

    model: Model
    d: Transcoders
    text: Corpus
    batch: int
    precision: str
    mesh: Mesh | None
    progress: Progress | None

    def each(self, done: int, fn: Callable[[Any, Any], Any]) -> Iterator[tuple[Any, int]]:
        """What `fn(tokens, weight)` returns for each batch, on the host, and how many rows count.

        The next batch is under way while the last one's sums are fetched; nothing else comes from the device.
        """
        waiting = None
        for tokens, weight, count in self.text.batches(self.batch, self.mesh):
            coming = (fn(tokens, weight), count)
            if waiting is not None:
                yield jax.tree.map(lambda x: host(x, np.float64), waiting[0]), waiting[1]
            waiting, done = coming, done + count
            if self.progress is not None:
                self.progress(done, 2 * self.text.n)
        if waiting is not None:
            yield jax.tree.map(lambda x: host(x, np.float64), waiting[0]), waiting[1]

    def mean(self) -> np.ndarray:
        """The mean [S, D] of what each dictionary should write."""
        m = self.model
        total = np.zeros((len(self.d.cfg.layers), m.cfg.d_model))
        for found, _ in self.each(0, lambda t, w: site_sums(m.cfg, m.params, self.d, t, w, self.precision)):
            total += found
        return total / self.text.n_positions

    def sums(
        self, mean: np.ndarray, sets: Any, start: int, ways: Sequence[int]
    ) -> tuple[LayerSums, np.ndarray, Losses]:
        """Sums by layer, largest activations [S, F], and losses by row."""
        m = self.model
        dtype = jnp.promote_types(m.params.embed.dtype, jnp.float32)
        centre, by = jnp.asarray(mean, dtype), jnp.asarray(condition_matrix(self.d.cfg, sets, ways))
        if self.mesh is not None:
            centre, by = jax.device_put((centre, by), NamedSharding(self.mesh, PartitionSpec()))

        def batch(tokens: Any, weight: Any) -> Any:
            return measure(m.cfg, m.params, self.d, tokens, weight, centre, by, start, precision=self.precision)

        layers, largest, parts = None, np.asarray(-np.inf), []
        for (found, most, by_row), count in self.each(self.text.n, batch):
            largest = np.maximum(largest, most)
            layers = found if layers is None else jax.tree.map(np.add, layers, found)
            parts.append([getattr(by_row, f.name)[..., :count] for f in fields(RowSums)])
        assert layers is not None  # a corpus has a row
        original, *changed = (np.concatenate(x, -1) / (self.text.context - FIRST - 1) for x in zip(*parts, strict=True))
        ce, kl, agree = (x.reshape(len(ways), len(sets), -1) for x in changed)
        return layers, largest, Losses(original, ce, kl, agree)

"""Path patching: what one writer tells one reader directly, all other paths left as they are.

    share(w -> r) = (m(clean) - m without that edge) / (m(clean) - m with every edge ablated)

The reader alone hears the writer's reference value; what follows from it is computed anew. Positive: the edge serves
the metric. Every pair is an edge of `Edges`, so heads' queries, keys and values are apart.

Source: Wang et al. 2022 (arXiv 2211.00593), section 3.1; Goldowsky-Dill et al. 2023 (arXiv 2304.05969). Theirs lets
MLPs between sender and receiver pass a change on; here an MLP is a reader like the others, and the path is the edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcircuits.circuits.edges import ROLES, edges_of
from tcircuits.circuits.metrics import check_range
from tcircuits.circuits.running import Ablation, run_circuits
from tcircuits.models.model import Model
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.types import Float, InputError


@dataclass(frozen=True)
class PathSweep:
    """What every writer tells some readers.

    Attributes:
        readers: names, `head 1.3 q` ... `logits`.
        writers: names, `embed`, `head 0.0` ... in the stream's order.
        shares: of the metric's difference; NaN where the reader does not hear the writer.
        errors: standard errors of the shares over prompts.
        clean, none: the metric of the prompts, and with every edge ablated.
    """

    readers: tuple[str, ...]
    writers: tuple[str, ...]
    shares: Float[np.ndarray, "R W"]
    errors: Float[np.ndarray, "R W"]
    clean: float
    none: float


def path_sweep(
    model: Model,
    behaviour: Behaviour,
    readers: Sequence[str] = ("logits",),
    *,
    ablation: Ablation = "resample",
    split: str = "report",
    batch: int = 16,
    at_once: int = 16,
) -> PathSweep:
    """Ablate every edge into some readers, one at a time, in one call.

    Args:
        model: from `load_model`.
        behaviour: its prompts.
        readers: names (`head 1.3 q`, `mlp 2`, `logits`), kinds (`q`, `k`, `v`, `mlp`), or `all`.
        ablation: what the reader hears instead, as in `run_circuits`.
        split: of the behaviour.
        batch: prompts that run together.
        at_once: edges that run together.

    Raises:
        InputError: a reader that the model does not have, a model without edges, what `run_circuits` refuses.
    """
    edges = edges_of(model.cfg)
    names = [edges.reader_name(r) for r in range(len(edges.allowed))]
    chosen = [r for r, name in enumerate(names) if any(_named(name, wanted) for wanted in readers)]
    unknown = [wanted for wanted in readers if not any(_named(name, wanted) for name in names)]
    if unknown or not chosen:
        some = ", ".join([*names[:3], "...", names[-1]])
        raise InputError(f"readers {unknown or list(readers)} are unknown; there are {some}, q, k, v, mlp and all")
    units = np.flatnonzero(np.isin(edges.pairs[:, 0], chosen))
    masks = np.ones((len(units) + 1, edges.n), np.float32)
    masks[np.arange(len(units)), units] = 0
    masks[-1] = 0
    how: Any = {"ablation": ablation, "split": split, "batch": batch, "at_once": at_once}
    runs = run_circuits(model, behaviour, masks, edges, **how)
    clean, none = runs.model.metric, runs.circuits.metric[-1]
    check_range(clean, none)
    lost = (clean - runs.circuits.metric[:-1]) / (clean.mean() - none.mean())
    writers = tuple(edges.writer_name(w) for w in range(edges.n_writers))
    shares, errors = (np.full((len(chosen), len(writers)), np.nan) for _ in range(2))
    at = np.searchsorted(chosen, edges.pairs[units, 0]), edges.pairs[units, 1]
    shares[at], errors[at] = lost.mean(1), lost.std(1) / np.sqrt(lost.shape[1])
    kept = tuple(names[r] for r in chosen)
    return PathSweep(kept, writers, shares, errors, float(clean.mean()), float(none.mean()))


def _named(name: str, wanted: str) -> bool:
    kinds = {role: f" {role}" for role in ROLES}
    if wanted == "mlp":
        return name.startswith("mlp ")
    return wanted in ("all", name) or (wanted in kinds and name.endswith(kinds[wanted]))


def strongest_paths(sweep: PathSweep, n: int = 12) -> list[tuple[str, str, float, float]]:
    """The n pairs of the largest share: writer, reader, share, standard error."""
    size = np.where(np.isnan(sweep.shares), -1, np.abs(sweep.shares))
    found = []
    for at in np.argsort(-size, axis=None, kind="stable")[:n]:
        r, w = np.unravel_index(at, size.shape)
        if size[r, w] >= 0:
            found.append((sweep.writers[w], sweep.readers[r], float(sweep.shares[r, w]), float(sweep.errors[r, w])))
    return found

"""The members of a sweep on held-out rows, and its families at equal L0.

All members stand in for the same MLPs, so the model without them (zero and mean ablation) is run once, for the first of
them. An evaluation is kept in the member's folder; a sweep that goes on measures only what is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tcircuits.models.model import Model
from tcircuits.parallel import is_lead
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.compare import Comparison, compare
from tcircuits.transcoders.evaluation.corpus import corpus
from tcircuits.transcoders.evaluation.results import Evaluation, Losses
from tcircuits.transcoders.evaluation.saved import load_evaluation, save_evaluation
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.training.folder import votes
from tcircuits.transcoders.training.grid import Member
from tcircuits.types import InputError

FILE = "evaluation.npz"
Evaluations = Mapping[str, Evaluation]


def evaluate_members(
    model: Model,
    made: Mapping[str, Transcoders],
    rows: Any,
    folders: Mapping[str, Path],
    *,
    n_tokens: int | None = None,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Evaluation]:
    """An evaluation of every dictionary, by name; those that `folders` hold of the same rows are read.

    Args:
        model: as in `evaluate`.
        made: dictionaries by member.
        rows: as in `evaluate`.
        folders: where evaluations are kept, by member.
        n_tokens: as in `evaluate`.
        batch: as in `evaluate`.
        progress: called with (rows done, rows in all), over all members.

    Raises:
        InputError: as `evaluate`.
    """
    text = corpus(model.cfg, rows, n_tokens)
    digest, found = text.digest(), {}
    whole = 2 * text.n * len(made)
    for i, (name, d) in enumerate(made.items()):
        kept = _kept(folders[name] / FILE, digest)
        if not all(votes(kept is not None)) or kept is None:
            bar = None if progress is None else _part(progress, 2 * text.n * i, whole)
            like = next((e for e in found.values() if _same_mlps(e.cfg, d.cfg)), None)
            options = {"n_tokens": n_tokens, "batch": batch, "progress": bar, "ablated": like}
            kept = evaluate(model, d, rows, **options)
            if is_lead():
                save_evaluation(kept, folders[name] / FILE)
        found[name] = kept
    return found


def _part(progress: Callable[[int, int], None], before: int, whole: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(before + done, whole)


def _same_mlps(a: TranscoderConfig, b: TranscoderConfig) -> bool:
    return (a.writes, a.layers) == (b.writes, b.layers)


def _kept(path: Path, digest: str) -> Evaluation | None:
    """The evaluation of these rows, if the file holds one."""
    if not path.exists():
        return None
    try:
        found = load_evaluation(path)
    except InputError:
        return None  # damaged: it is measured again
    return found if found.about["corpus"] == digest else None


@dataclass(frozen=True)
class Versus:
    """Two families at equal L0, each layer replaced alone or all at once; `found` is None where `why` says why not."""

    first: str
    second: str
    what: str
    found: Comparison | None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        told = {"first": self.first, "second": self.second, "replaced": self.what, "why": self.why}
        return told | ({} if self.found is None else asdict(self.found))


def against_each_other(
    members: Sequence[Member], evaluations: Evaluations, *, l0: Sequence[float] | None = None
) -> tuple[Versus, ...]:
    """Every two families at equal L0 (`compare`), paired by layer and seed.

    Args:
        members: of the sweep.
        evaluations: by member; members without one are left out.
        l0: where; None is the geometric middle of what both reach.
    """
    families: dict[str, dict[int, list[Evaluation]]] = {}
    for m in members:
        if m.name in evaluations:
            families.setdefault(m.family, {}).setdefault(m.seed, []).append(evaluations[m.name])
    return tuple(
        _versus(a, b, what, families, l0) for a, b in combinations(families, 2) for what in ("each", "all")
        if what == "each" or _several(families[a], families[b])
    )  # fmt: skip


def _several(*families: Any) -> bool:
    """Whether all evaluations have a set of several layers."""
    return all(len(e.sets) > 1 for family in families for es in family.values() for e in es)


def _versus(a: str, b: str, what: str, families: Any, l0: Sequence[float] | None) -> Versus:
    def part(family: Any) -> Any:
        return {seed: [_only(e, what) for e in es] for seed, es in family.items()}

    try:
        return Versus(a, b, what, compare(part(families[a]), part(families[b]), l0=l0))
    except InputError as problem:
        return Versus(a, b, what, None, str(problem))


def _only(e: Evaluation, what: str) -> Evaluation:
    """The sets of one layer, or those of several."""
    kept = [i for i, layers in enumerate(e.sets) if (len(layers) == 1) == (what == "each")]
    told = e.losses
    losses = Losses(told.original, told.ce[:, kept], told.kl[:, kept], told.agree[:, kept])
    return replace(e, sets=tuple(e.sets[i] for i in kept), losses=losses)


def summary(members: Sequence[Member], evaluations: Evaluations, failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every member with its figures, as plain values."""
    told = []
    for m in members:
        d = m.recipe.dictionary
        row: dict[str, Any] = {"name": m.name, "family": m.family, "point": list(m.point), "seed": m.seed}
        row |= {"kind": d.kind, "layers": list(d.layers), "failed": failed.get(m.name), "recipe": asdict(m.recipe)}
        row["evaluation"] = evaluations[m.name].to_json() if m.name in evaluations else None
        told.append(row)
    return told

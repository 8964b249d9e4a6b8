"""A circuit: a set of units, the behaviour and the method that it came from. One JSON file and one npz beside it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np

from tcircuits.circuits.edges import Edges
from tcircuits.circuits.units import KINDS, Units
from tcircuits.files.archive import fitting, read_all
from tcircuits.files.record import read_record, write_record
from tcircuits.files.storage import MalformedError
from tcircuits.files.typed import built, checked
from tcircuits.types import Bool, Float, InputError

VERSION = 1
LABELS = 1000  # units that the JSON file names
HEAD = {"model": str, "units": dict, "about": dict}


@dataclass(frozen=True)
class Circuit:
    """Units of a model that are said to do something.

    Attributes:
        units: what is counted.
        mask: which of them are in it, [U].
        scores: that it was chosen by, [U], if any.
        model: name of the model.
        about: method, configuration, behaviour, splits, seed, dictionary.
    """

    units: Units | Edges
    mask: Bool[np.ndarray, " U"]
    scores: Float[np.ndarray, " U"] | None = None
    model: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many units."""
        return int(self.mask.sum())

    def labels(self) -> list[str]:
        """Its units, the best first where they have scores."""
        inside = np.flatnonzero(self.mask)
        if self.scores is not None:
            inside = inside[np.argsort(-np.abs(self.scores[inside]), kind="stable")]
        return [self.units.label(int(u)) for u in inside]


def check_circuit(c: Circuit) -> None:
    """Raise for a circuit of no units, or of arrays that do not fit.

    Raises:
        InputError: see above.
    """
    wrong = []
    if c.mask.shape != (c.units.n,) or c.mask.dtype != bool:
        wrong.append(f"its mask is {c.mask.dtype} {c.mask.shape}, not bool {(c.units.n,)}")
    elif not c.mask.any():
        wrong.append("it has no units: keeping nothing is a control, not a circuit")
    if c.scores is not None and (c.scores.shape != (c.units.n,) or not np.isfinite(c.scores).all()):
        wrong.append(f"its scores {c.scores.shape} are not {c.units.n} finite numbers")
    if wrong:
        raise InputError("the circuit cannot be used: " + "; ".join(wrong))


def save_circuit(c: Circuit, path: str | PathLike[str]) -> None:
    """Write PATH.json (with the units' labels, to be read) and PATH.npz; each appears whole or not at all."""
    check_circuit(c)
    arrays = {"mask": c.mask} | ({} if c.scores is None else {"scores": c.scores})
    head = {"model": c.model, "units": asdict(c.units), "about": dict(c.about), "size": c.size}
    write_record(path, "circuit", VERSION, head | {"labels": c.labels()[:LABELS]}, arrays)


def load_circuit(path: str | PathLike[str]) -> Circuit:
    """Read what `save_circuit` wrote.

    Raises:
        InputError: a file is missing, damaged or of another kind.
    """
    head, file = read_record(path, "circuit", VERSION)
    try:
        said = checked(
            {name: head[name] for name in ("model", "units", "about") if name in head}, HEAD, frozenset(HEAD)
        )
        units = units_from(head.get("units"))
        scored = {"scores": ("fiu", ("U",))} if "scores" in file.headers else {}
        fitting(file, {"mask": ("b", ("U",))} | scored, {"U": units.n})
        arrays = read_all(file)
    except (InputError, MalformedError) as problem:
        raise InputError(f"the circuit at {path} is damaged: {problem}") from None
    c = Circuit(units, arrays["mask"], arrays.get("scores"), said.get("model", ""), said.get("about", {}))
    check_circuit(c)
    return c


def units_from(given: Any) -> Units | Edges:
    """The units that a file says, of sizes that can be.

    Raises:
        MalformedError: see above.
    """
    if isinstance(given, dict) and given.get("kinds") == ["edge"]:
        units = built(Edges, given)
        sizes = [units.n_layers, units.n_heads, units.n_kv_heads]
        if not all(0 < n < 10_000 for n in sizes) or units.n_heads % units.n_kv_heads:
            raise MalformedError(f"its edges are of sizes {sizes}")
        return units
    units = built(Units, given)
    if not units.kinds or [kind for kind in KINDS if kind in units.kinds] != list(units.kinds):
        raise MalformedError(f"its units are of kinds {units.kinds!s:.80}; there are {', '.join(KINDS)}, in this order")
    sizes = [units.n_layers, units.n_heads, units.d_feature, 1 if units.positions is None else units.positions]
    ascending = all(a < b for a, b in pairwise((-1, *units.layers, units.n_layers)))
    if min(sizes) < 0 or sizes[3] < 1 or not ascending:
        raise MalformedError(f"its units are of sizes {sizes}, with dictionaries of layers {units.layers!s:.80}")
    return units

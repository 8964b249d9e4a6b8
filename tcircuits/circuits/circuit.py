"""A circuit: a set of units, the behaviour and the method that it came from. One JSON file and one npz beside it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any

import numpy as np

from tcircuits.circuits.edges import Edges
from tcircuits.circuits.units import KINDS, Units
from tcircuits.files.record import read_record, write_record
from tcircuits.types import Bool, Float, InputError

VERSION = 1
LABELS = 1000  # units that the JSON file names


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
        units = _units(head["units"])
    except (ValueError, KeyError, TypeError) as problem:
        raise InputError(f"the circuit at {path} is damaged: its units are {head.get('units')} ({problem})") from None
    if "mask" not in file.headers:
        raise InputError(f"the circuit at {path} is damaged: it has no mask")
    values = np.asarray(file.read("scores", None)) if "scores" in file.headers else None
    mask = np.asarray(file.read("mask", None))
    c = Circuit(units, mask, values, str(head.get("model", "")), head.get("about", {}))
    check_circuit(c)
    return c


def _units(given: Any) -> Units | Edges:
    kinds = tuple(given["kinds"])
    if kinds == ("edge",):
        layers, heads, kv_heads = (int(given[name]) for name in ("n_layers", "n_heads", "n_kv_heads"))
        if not all(0 < n < 10_000 for n in (layers, heads, kv_heads)):
            raise ValueError(f"sizes {layers, heads, kv_heads}")
        return Edges(layers, heads, kv_heads, bool(given["parallel"]), bool(given["attn_only"]))
    layers = tuple(int(i) for i in given["layers"])
    if not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds {kinds}")
    sizes = [int(given[name]) for name in ("n_layers", "n_heads", "d_feature")]
    positions = None if given["positions"] is None else int(given["positions"])
    if min(sizes) < 0 or (positions or 0) < 0:
        raise ValueError("negative sizes")
    return Units(kinds, sizes[0], sizes[1], layers, sizes[2], positions)

"""A circuit: a set of units, the behaviour and the method that it came from. One JSON file and one npz beside it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.circuits.edges import Edges
from tcircuits.circuits.units import KINDS, Units
from tcircuits.files.limits import read_json
from tcircuits.files.opening import open_tensors
from tcircuits.types import Bool, Float, InputError

VERSION = 1


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
    stem = _stem(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    arrays: Any = {"mask": c.mask} | ({} if c.scores is None else {"scores": c.scores})
    draft = stem.with_name(f".{stem.name}.npz")
    with draft.open("wb") as out:
        np.savez_compressed(out, **arrays)
    draft.replace(stem.with_name(f"{stem.name}.npz"))
    head = {
        "tcircuits": "circuit",
        "version": VERSION,
        "model": c.model,
        "units": asdict(c.units),
        "about": dict(c.about),
    }
    draft = stem.with_name(f".{stem.name}.json")
    draft.write_text(
        json.dumps(head | {"size": c.size, "labels": c.labels()[:1000]}, indent=1) + "\n", encoding="utf-8"
    )
    draft.replace(stem.with_name(f"{stem.name}.json"))


def load_circuit(path: str | PathLike[str]) -> Circuit:
    """Read what `save_circuit` wrote.

    Raises:
        InputError: a file is missing, damaged or of another kind.
    """
    stem = _stem(path)
    names = [stem.with_name(f"{stem.name}.{end}") for end in ("json", "npz")]
    absent = [str(p) for p in names if not p.is_file()]
    if absent:
        raise InputError(f"no circuit at {path}: {', '.join(absent)} missing")
    head = read_json(names[0])
    if head.get("tcircuits") != "circuit" or head.get("version") != VERSION:
        raise InputError(f"{names[0]} is no circuit of version {VERSION}")
    file = open_tensors(names[1])
    try:
        units = _units(head["units"])
    except (ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{names[0]} is damaged: its units are {head.get('units')} ({problem})") from None
    if "mask" not in file.headers:
        raise InputError(f"{names[1]} is damaged: it has no mask")
    mask = np.asarray(file.read("mask", None))
    values = np.asarray(file.read("scores", None)) if "scores" in file.headers else None
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


def _stem(path: str | PathLike[str]) -> Path:
    given = Path(path).expanduser()
    return given.with_suffix("") if given.suffix in (".json", ".npz") else given

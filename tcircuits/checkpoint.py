"""Orbax checkpoints: arrays sharded on disk, written atomically, with a format name and version.

This is the only file that imports Orbax.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tcircuits.files.array_store import open_array, read_parts, stored_shapes
from tcircuits.files.limits import read_json
from tcircuits.files.storage import MalformedError
from tcircuits.files.strided import DTYPES
from tcircuits.files.tensor_file import Header, Part, TensorFile
from tcircuits.types import InputError

METADATA = "_CHECKPOINT_METADATA"
COMPLETE = "commit_success.txt"  # Orbax writes it last; its own `is_orbax_checkpoint` accepts any folder
SHOWN = 40  # arrays that a message names


def _orbax() -> Any:
    """The v1 interface, wherever the installed release keeps it."""
    try:
        return importlib.import_module("orbax.checkpoint.v1")
    except ImportError:
        return importlib.import_module("orbax.checkpoint.experimental.v1")


def is_checkpoint(path: Path | str) -> bool:
    """Whether `path` holds a checkpoint that was written to its end."""
    return (Path(path) / COMPLETE).is_file()


def began_as_checkpoint(path: Path | str) -> bool:
    """Whether `path` is a checkpoint, or what is left of one whose writing was cut off."""
    return any((Path(path) / name).is_file() for name in (METADATA, COMPLETE))


def _prepare(path: Path | str, format_name: str, version: int, about: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    target = Path(path).absolute()
    if target.exists():
        raise InputError(
            f"{path} exists; a checkpoint is written to a new folder only: remove it or choose another name"
        )
    return target, {"format": format_name, "version": version, **about}


def save(
    path: Path | str, tree: Any, *, format_name: str, version: int, about: Mapping[str, Any] | None = None
) -> None:
    """Write `tree` and the JSON-like `about` to the new folder `path`. Every process calls it.

    Raises:
        InputError: `path` exists.
    """
    target, metadata = _prepare(path, format_name, version, about or {})
    _orbax().save(target, _flat(tree), custom_metadata=metadata)


def save_async(
    path: Path | str, tree: Any, *, format_name: str, version: int, about: Mapping[str, Any] | None = None
) -> Callable[[], None]:
    """Like `save`, but returns as soon as the arrays are copied; call the result to wait for the files."""
    target, metadata = _prepare(path, format_name, version, about or {})
    response = _orbax().save_async(target, _flat(tree), custom_metadata=metadata)
    return lambda: response.result()


def metadata(path: Path | str, *, format_name: str, version: int) -> dict[str, Any]:
    """What `save` was given as `about`; reads no arrays.

    Raises:
        InputError: no checkpoint, one that was cut off, or another format or version.
    """
    if not Path(path).is_dir():
        raise InputError(f"{path} is no folder, so no checkpoint")
    if not is_checkpoint(path):
        raise InputError(
            f"{path} is no complete checkpoint ({COMPLETE} is missing): writing it was cut off, or it is none"
        )
    found = _custom(Path(path))
    if found.get("format") != format_name or found.get("version") != version:
        raise InputError(
            f"{path} holds format {found.get('format')!r:.80} version {found.get('version')!r:.20}; "
            f"this release reads {format_name!r} version {version}"
        )
    return {k: v for k, v in found.items() if k not in ("format", "version")}


def format_of(path: Path | str) -> str | None:
    """The format name of a complete checkpoint; None for anything else."""
    if not is_checkpoint(path):
        return None
    try:
        found = _custom(Path(path)).get("format")
    except InputError:
        return None
    return found if isinstance(found, str) else None


def _custom(path: Path) -> dict[str, Any]:
    """What `save` was given, with format and version.

    Raises:
        InputError: it cannot be read.
    """
    found = read_json(path / METADATA).get("custom_metadata")
    if not isinstance(found, dict):
        raise InputError(f"{path / METADATA} is damaged, or of another program: it has no custom_metadata")
    return found


def _flat(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by dotted path: the form on disk, which knows no classes and no absent arrays."""
    return {jax.tree_util.keystr(k, simple=True, separator="."): leaf for k, leaf in jax.tree.leaves_with_path(tree)}


def shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of each stored array by its dotted path in the tree; reads no arrays.

    Raises:
        MalformedError: the files are damaged, or cannot hold these arrays.
    """
    return stored_shapes(Path(path) / "state")


def _mismatches(path: Path | str, abstract: Any) -> list[str]:
    """How the stored tree differs from `abstract`; Orbax itself lets a missing or an extra array pass."""
    stored = shapes(path)
    wanted = {name: tuple(leaf.shape) for name, leaf in _flat(abstract).items()}
    wrong = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    wrong += [f"{name} is not expected" for name in sorted(stored.keys() - wanted.keys())]
    both = sorted(wanted.keys() & stored.keys())
    return wrong + [f"{n} has shape {stored[n]}, not {wanted[n]}" for n in both if stored[n] != wanted[n]]


def _read(state: Path, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """One array with the dtype and on the devices of `leaf`; each part is read once, however many devices have it."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = here if leaf.sharding is None else leaf.sharding
    places = sharding.addressable_devices_indices_map(leaf.shape).values()
    parts = {str(part): part for part in places if part is not None}
    read = read_parts(open_array(state, name), list(parts.values()))
    cast = {key: x.astype(leaf.dtype, copy=False) for key, x in zip(parts, read, strict=True)}
    return jax.make_array_from_callback(leaf.shape, sharding, lambda part: cast[str(part)])


def open_arrays(path: Path | str) -> TensorFile:
    """The arrays of a checkpoint by their dotted paths, in the dtypes that they are stored in; none is read yet.

    Raises:
        InputError: no complete checkpoint, or a damaged one.
    """
    if not is_checkpoint(path):
        raise InputError(f"{path} is no complete checkpoint ({COMPLETE} is missing)")
    state, names = Path(path) / "state", {dtype.name: name for name, dtype in DTYPES.items()}
    try:
        arrays = {name: open_array(state, name) for name in shapes(path)}
        headers = {name: Header(tuple(a.shape), names[a.dtype.name]) for name, a in arrays.items()}
    except (MalformedError, KeyError) as error:
        raise InputError(f"the checkpoint {path} is damaged: {error!s:.600}") from None

    def read(name: str, part: Part | None) -> np.ndarray:
        try:
            return read_parts(arrays[name], [part or ()])[0]
        except MalformedError as error:
            raise InputError(f"the checkpoint {path} is damaged: {error!s:.600}") from None

    return TensorFile(Path(path), headers, read, lambda name, rows: read(name, None)[rows], {})


def load(path: Path | str, abstract: Any) -> Any:
    """The tree, with types, dtypes and shardings of `abstract` (`jax.ShapeDtypeStruct` leaves). Every process calls it.

    Raises:
        InputError: arrays that are missing, too many or of another shape (all of them named), or unreadable files.
    """
    if not is_checkpoint(path):
        raise InputError(f"{path} is no complete checkpoint ({COMPLETE} is missing)")
    try:
        wrong = _mismatches(path, abstract)
        if not wrong:
            arrays = [_read(Path(path) / "state", name, leaf) for name, leaf in _flat(abstract).items()]
            return jax.tree.unflatten(jax.tree.structure(abstract), arrays)
    except MalformedError as error:
        raise InputError(f"the checkpoint {path} is damaged: {error!s:.600}") from None
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    raise InputError(f"the arrays of {path} do not fit: {'; '.join(wrong[:SHOWN])}{more}")

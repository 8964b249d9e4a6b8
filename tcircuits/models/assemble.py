"""From an open checkpoint to parameters: what fills what, whether everything fits, and the filling.

`plan` looks at headers only and reports every problem at once; `assemble` then reads tensor by tensor. On a mesh, a
process allocates only its own part of each array.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tcircuits.files.tensor_file import Header
from tcircuits.models.config import ModelConfig
from tcircuits.models.families import Family, family_of
from tcircuits.models.layout import Change
from tcircuits.models.params import ArraySpec, Params, spec
from tcircuits.models.source import Source
from tcircuits.parallel import is_lead, place, shardings
from tcircuits.types import InputError

FILE_DTYPES = ("F16", "BF16", "F32", "F64")
SHOWN = 20  # problems of one kind that a message lists
Part = tuple[tuple[slice, ...], np.ndarray]  # where a part of an array lies in it, and its buffer


@dataclass(frozen=True)
class Piece:
    """What fills one of our arrays, or one layer of it: a tensor of the file, and the change it goes through."""

    tensor: str
    layer: int | None
    change: Change


def _arrays(cfg: ModelConfig) -> dict[str, Any]:
    """The spec of each of our arrays by its dotted path."""
    return {jax.tree_util.keystr(k, simple=True, separator="."): s for k, s in jax.tree.leaves_with_path(spec(cfg))}


@dataclass(frozen=True)
class Plan:
    """What fills each of our arrays (by dotted path), and pairs of tensors that must be equal."""

    pieces: Mapping[str, list[Piece]]
    equal: tuple[tuple[str, str], ...]


def plan(cfg: ModelConfig, source: Source) -> Plan:
    """Match the tensors of a checkpoint with a configuration; reads headers only.

    Raises:
        InputError: missing tensors, unknown ones, wrong shapes, dtypes that are not read: all of them.
    """
    family, wanted = family_of(source.config), _arrays(cfg)
    renamed, problems = _rename(family, source.headers)
    pieces: dict[str, list[Piece]] = {path: [] for path in wanted}
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in family.tensors(cfg, source.config):
        parts = {path: change for path, change in tensor.parts.items() if path in wanted}
        layers = range(cfg.n_layers) if "{}" in tensor.name else [None]
        for layer in layers if parts else []:
            name = tensor.name.format(layer)
            shapes[name] = tensor.shape
            for path, change in parts.items():
                pieces[path].append(Piece(renamed.get(name, name), layer, change))
    unfilled = [path for path, found in pieces.items() if not found and family.norms_in_file]
    problems += _listed("arrays that no tensor of this family fills", unfilled)
    problems += _compare(family, cfg, shapes, {name: source.headers[real] for name, real in renamed.items()})
    if problems:
        raise InputError("; ".join(problems))
    # A tied model may bring its unembedding along, if it is the embedding.
    twins = [(renamed[family.head], pieces["embed"][0].tensor)] if cfg.tied and family.head in renamed else []
    return Plan(pieces, tuple(twins))


def _rename(family: Family, headers: Mapping[str, Header]) -> tuple[dict[str, str], list[str]]:
    """Names in the file by names without prefix."""
    renamed: dict[str, str] = {}
    twice = []
    for real in headers:
        name = next((real.removeprefix(p) for p in family.prefixes if real.startswith(p)), real)
        if name in renamed:
            twice.append(f"{name} ({renamed[name]} and {real})")
        renamed[name] = real
    return renamed, _listed("tensors twice", twice)


def _listed(what: str, items: list[str]) -> list[str]:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"{len(items)} {what}: {', '.join(item[:200] for item in items[:SHOWN])}{more}"] if items else []


def _compare(
    family: Family, cfg: ModelConfig, shapes: Mapping[str, tuple[int, ...]], there: Mapping[str, Header]
) -> list[str]:
    """Every difference between the tensors that a configuration needs and those in the file."""
    known = {family.head} if cfg.tied else set()
    extra = [
        n for n in there if n not in shapes and n not in known and not any(re.fullmatch(b, n) for b in family.buffers)
    ]
    both = [n for n in shapes if n in there]
    misshapen = [f"{n} is {there[n].shape}, not {shapes[n]}" for n in both if there[n].shape != shapes[n]]
    unread = [f"{n} is {there[n].dtype}" for n in both if there[n].dtype not in FILE_DTYPES]
    return [
        *_listed("missing tensors", [n for n in shapes if n not in there]),
        *_listed("tensors that this model does not have", extra),
        *_listed("tensors of another shape than the configuration says", misshapen),
        *_listed(f"tensors of a dtype other than {', '.join(FILE_DTYPES)}", unread),
    ]


def assemble(cfg: ModelConfig, source: Source, filling: Plan, dtype: Any, mesh: Mesh | None) -> Params:
    """Read every tensor into its place.

    Raises:
        InputError: values that are not finite; a tied model whose unembedding is not its embedding.
    """
    from rich.console import Console
    from rich.progress import Progress

    for first, second in filling.equal:
        if not np.array_equal(source.read(first), source.read(second)):
            raise InputError(
                f"{source.where}: tie_word_embeddings is true, but {first} differs from {second}; "
                "if the tensors are right, set it to false"
            )
    specs, tree = jax.tree.flatten(spec(cfg))
    places = [None] * len(specs) if mesh is None else jax.tree.leaves(shardings(spec(cfg), mesh))
    console = Console(stderr=True)
    arrays = []
    with Progress(console=console, transient=True, disable=not (console.is_terminal and is_lead())) as progress:
        task = progress.add_task(f"loading {source.name}", total=len(specs))
        for s, where, pieces in zip(specs, places, filling.pieces.values(), strict=True):
            arrays.append(_array(source, s, dtype, where, pieces))
            progress.advance(task)
    return jax.tree.unflatten(tree, arrays)


def _array(source: Source, s: ArraySpec, dtype: Any, where: Any, pieces: list[Piece]) -> jax.Array:
    def fill(parts: list[Part]) -> None:
        for piece in pieces:
            _fill(source, piece, parts)
        for _, buffer in [] if pieces else parts:  # `plan` leaves only norms that have no weights without pieces
            buffer[...] = s.init == "ones"

    return place(s.shape, dtype, where, fill)


def _fill(source: Source, piece: Piece, parts: list[Part]) -> None:
    """Write one tensor into the parts of an array that it belongs to.

    Raises:
        InputError: a value that is not finite, in the file or in the dtype asked for.
    """
    layer = piece.layer
    wanted = [p for p in parts if layer is None or p[0][0].start <= layer < p[0][0].stop]
    if not wanted:
        return
    value = piece.change(source.read(piece.tensor), layer or 0)
    with np.errstate(over="ignore"):
        value = value.astype(wanted[0][1].dtype, copy=False)
    bad = value.size - int(np.isfinite(value).sum())
    if bad:
        raise InputError(
            f"{source.where}: tensor {piece.tensor} has {bad} values that are NaN or infinite in {value.dtype}"
        )
    for index, buffer in wanted:
        if layer is None:
            buffer[...] = value[index]
        else:
            buffer[layer - index[0].start] = value[index[1:]]

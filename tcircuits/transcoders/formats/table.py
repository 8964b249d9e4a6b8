"""The table of formats: a new one is one entry, and one row of the tests.

A folder's format is told by the names of its files, a single file's by its tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tcircuits.transcoders.formats import (
    circuit_tracer,
    gemma_scope,
    llama_scope,
    paper,
    saelens,
    sparsify,
)
from tcircuits.transcoders.formats.found import FoundSet, Layout, Unit, Units
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.formats.units import open_units
from tcircuits.transcoders.options import Options


@dataclass(frozen=True)
class Format:
    """One row.

    Attributes:
        name: how people call it.
        files: the names of its files, for messages.
        marks: whether a file of this name makes a folder one of this format.
        find: the layers of a folder; problems are added to the list.
    """

    name: str
    files: str
    marks: Callable[[str], bool]
    find: Callable[[Place, Options, list[str]], Units | None]


FORMATS: tuple[Format, ...] = (
    Format(
        circuit_tracer.NAME,
        "config.yaml, layer_0.safetensors ..., or W_enc_0.safetensors and W_dec_0.safetensors ...",
        circuit_tracer.marks,
        circuit_tracer.find,
    ),
    Format(saelens.NAME, "cfg.json and sae_weights.safetensors", saelens.marks, saelens.find),
    Format(sparsify.NAME, "layers.0.mlp/cfg.json and sae.safetensors", sparsify.marks, sparsify.find),
    Format(llama_scope.NAME, "hyperparams.json and checkpoints/final.safetensors", llama_scope.marks, llama_scope.find),
    Format(
        gemma_scope.NAME, "layer_0/.../params.npz, or layer_0_width_.../params.safetensors",
        gemma_scope.marks, gemma_scope.find,
    ),
    Format(paper.NAME, "*blocks.0.ln2.hook_normalized*.pt", paper.marks, paper.find),
)  # fmt: skip
# What a single file may be, where nothing beside it says.
LAYOUTS: tuple[Layout, ...] = (
    circuit_tracer.PER_LAYER,
    gemma_scope.LAYOUT,
    gemma_scope.SECOND_LAYOUT,
    paper.LAYOUT,
    paper.ONE_BIAS,
    paper.BARE,
)


def holds_dictionaries(place: Place) -> bool:
    """Whether the names of a place's files are those of some format."""
    return any(f.marks(name) for f in FORMATS for name in place.names)


def listed_units(place: Place, options: Options) -> Units:
    """One file of any format for each layer."""
    units = tuple(Unit(layer, ((name, ()),)) for layer, name in enumerate(place.names))
    return Units("list of files", options.kind or "transcoder", units)


def find(place: Place, options: Options, problems: list[str]) -> FoundSet | None:
    """What lies at a place: its format, then its files, open. None, and problems, where that cannot be told."""
    fitting = [f for f in FORMATS if any(map(f.marks, place.names))]
    top = [f for f in fitting if any(map(f.marks, place.below("")))]
    if place.listed:
        units: Units | None = listed_units(place, options)
    elif place.single and not fitting:
        units = Units("single file", "transcoder", (Unit(None, ((place.names[0], ()),)),))
    elif circuit_tracer.lists_files(place):
        units = circuit_tracer.find(place, options, problems)
    elif len(top or fitting) == 1:
        units = (top or fitting)[0].find(place, options, problems)
    elif fitting:
        shown = ", ".join(f"{f.name} ({next(n for n in place.names if f.marks(n))})" for f in top or fitting)
        problems.append(f"it has files of several formats: {shown}; give the folder of one of them")
        return None
    else:
        known = "; ".join(f"{f.name}: {f.files}" for f in FORMATS)
        problems.append(
            f"it has no dictionaries in a format that is read ({known}; or a folder written by save_transcoders)"
        )
        return None
    return None if units is None else open_units(place, units, LAYOUTS, options, problems)

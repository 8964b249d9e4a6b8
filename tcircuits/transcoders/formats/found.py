"""What a format finds: the files of each layer, what their tensors are to us, and what is said beside them.

A format turns names of files into `Units` (one `Unit` a layer) and opens no tensor file; `formats.open_units` opens
them, and `opening` checks the whole set against itself, the options and the model. Nothing here raises for what files
hold: every problem is added to a list, and `opening` raises once for all.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tcircuits.files.tensor_file import Header, TensorFile
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.pieces import Piece


@dataclass(frozen=True)
class Layout:
    """The tensors of one file of a format.

    Attributes:
        name: how people call the format.
        tensors: for each of their names, our name and the axes in the file. Ours are the arrays of `Transcoders`, `k`,
            `pre_bias` (subtracted from the input) and `log_threshold`; a `+` where one tensor is two (or what is left
            of them, where others are some). Axes: F features, D dimensions, L output layers, S the features of `first`
            layers; for the affine skip I (input) and O (output); `FD|DF` where both have been published.
        required: which of our names a file must have.
        first: the output layer of the first step of the axis L; None is the layer's own.
        said: what is true of every file of the format.
        about: what the file says of itself beside its tensors: its layer, and the rest.
    """

    name: str
    tensors: Mapping[str, tuple[str, str]]
    required: tuple[str, ...] = ("w_enc", "b_enc", "w_dec", "b_dec")
    first: int | None = None
    said: "Said | None" = None
    about: "Callable[[Any, list[str]], tuple[int | None, Said]] | None" = None


@dataclass(frozen=True)
class Own:
    """The section `tcircuits`: what `save_transcoders` adds so that a file reads back as it was."""

    n_layers: int
    layers: tuple[int, ...]
    signed_topk: bool
    fill: Any
    activation: Any


@dataclass(frozen=True)
class Said:
    """What is said of a set beside its tensors, in our words; None where nothing is."""

    kind: Any = None
    reads: Any = None
    writes: Any = None
    activation: Any = None
    k: int | None = None
    signed_topk: bool | None = None
    model: str | None = None
    files: tuple[str, ...] | None = None
    own: Own | None = None
    d_feature: int | None = None

    def over(self, other: "Said") -> "Said":
        """This, and where it is silent the other."""
        return replace(other, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Unit:
    """One layer of a set.

    Attributes:
        layer: its number; None where only its files say it, or nobody does.
        files: names of its files, and for each the layouts that it may have; () is any layout of a single file.
        said: what is said of this layer.
        scales: factors of our arrays (activation normalisation, folded).
        threshold: the one threshold of all its features, where it is no tensor.
        by_norm: thresholds are for activations times the length of the feature's decoder row.
        floor: a ReLU comes before the threshold, so that negative thresholds act as 0.
    """

    layer: int | None
    files: tuple[tuple[str, tuple[Layout, ...]], ...]
    said: Said = Said()
    scales: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    by_norm: bool = False
    floor: bool = False


def _numbered(layer: int) -> str:
    return f"layer {layer}"


@dataclass(frozen=True)
class Units:
    """The layers of a set.

    Attributes:
        format: how people call the format.
        kind: `transcoder` or `clt`.
        units: one a layer.
        said: what is said of the whole set, before what each layer says.
        file_of: how the file of a layer is called, for messages.
        weave: makes the pieces of our arrays where tensors of several layers go into one; None where each layer's
            tensors are its rows.
    """

    format: str
    kind: str
    units: tuple[Unit, ...]
    said: Said = Said()
    file_of: Callable[[int], str] = _numbered
    weave: "Weave | None" = None


@dataclass(frozen=True)
class Found:
    """A tensor in a file, the axes it has there, and what our array is beside it: `scale` times the tensor."""

    path: Path
    tensor: str
    header: Header
    axes: str
    first: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class FoundSet:
    """A set whose files are open: for each layer our names of its tensors, and what was said."""

    format: str
    kind: str
    layers: Mapping[int, Mapping[str, Found]]
    units: Mapping[int, Unit]
    said: Said
    files: Mapping[Path, TensorFile]
    names: Mapping[int, tuple[tuple[str, Layout], ...]]
    weave: "Weave | None" = None

    def name_of(self, layer: int, ours: str) -> str:
        """What one of our arrays would be called there, and in which file: `W_enc of layer_3.safetensors`."""
        for file, layout in self.names[layer]:
            for theirs, (name, _) in layout.tensors.items():
                if name == ours:
                    return f"{theirs} of {file}"
        return f"{ours} of {self.names[layer][0][0]}"


# (configuration, set, problems) -> pieces by the name of our array.
Weave = Callable[[TranscoderConfig, FoundSet, list[str]], Mapping[str, tuple[Piece, ...]]]


def agreed(said: list[tuple[str, Said]], decided: Collection[str], problems: list[str]) -> Said:
    """What all layers say; a problem where two of them differ, unless it is `decided` otherwise."""
    result: dict[str, Any] = {}
    for name in ("kind", "reads", "writes", "activation", "k", "signed_topk", "model", "d_feature"):
        values = {where: getattr(s, name) for where, s in said if getattr(s, name) is not None}
        if len(set(values.values())) > 1 and name not in decided:
            shown = ", ".join(f"{where} says {value!r}" for where, value in list(values.items())[:4])
            problems.append(f"its layers differ in {name} ({shown}): load them one by one with layers=")
        result[name] = next(iter(values.values()), None)
    return Said(**result)

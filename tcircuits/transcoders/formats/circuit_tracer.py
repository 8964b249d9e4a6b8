"""The folder format of circuit-tracer: its file names and its tensor names.

| | files | tensors | y += |
|---|---|---|---|
| per layer | `layer_{i}.safetensors` | W_enc [F,D], b_enc [F], W_dec [F,D] (old: [D,F]), b_dec [D], | x W_skip^T |
| | | perhaps activation_function.threshold [F], W_skip [D,D], k | |
| cross-layer | `W_enc_{i}.safetensors` | W_enc_{i} [F,D], b_enc_{i} [F], b_dec_{i} [D], | x W_skip |
| | | perhaps threshold_{i} [F], W_skip_{i} [D,D] | |
| | `W_dec_{i}.safetensors` | W_dec_{i} [F,L-i,D]; the middle axis is layers i, i+1 ... | |

The skip is transposed in the one and not in the other. A `config.yaml` may list a file of any format for each layer
instead, by address or by path (of a cross-layer transcoder, a file of Gemma Scope 2). Source:
github.com/decoderesearch/circuit-tracer, releases up to 0.5.0.
"""

import re
from pathlib import PurePosixPath

from tcircuits.transcoders.formats import ct_config as config
from tcircuits.transcoders.formats import gemma_scope
from tcircuits.transcoders.formats.found import Layout, Said, Unit, Units
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.options import Options

NAME = "circuit-tracer"
LAYER, ENCODER, DECODER = (rf"{name}_(0|[1-9]\d{{0,3}})\.safetensors" for name in ("layer", "W_enc", "W_dec"))
# Files of single layers that a list may name, of whatever format.
LISTED = (".safetensors", ".npz", ".pt", ".pkl", ".pkl.gz", ".pth", ".bin")

PER_LAYER = Layout(
    NAME,
    {
        "W_enc": ("w_enc", "FD"),
        "b_enc": ("b_enc", "F"),
        "W_dec": ("w_dec", "FD|DF"),
        "b_dec": ("b_dec", "D"),
        "activation_function.threshold": ("threshold", "F"),
        "W_skip": ("w_skip", "OI"),
        "k": ("k", ""),
    },
)


def layer_file(layer: int) -> str:
    """The file of one layer of a per-layer set."""
    return f"layer_{layer}.safetensors"


def encoder_file(layer: int) -> str:
    """The file of one layer's encoder of a cross-layer transcoder."""
    return f"W_enc_{layer}.safetensors"


def decoder_file(layer: int) -> str:
    """The file of one layer's decoders of a cross-layer transcoder."""
    return f"W_dec_{layer}.safetensors"


def encoder_layout(layer: int) -> Layout:
    """Tensors of an encoder file of a cross-layer transcoder."""
    theirs = {
        "W_enc": ("w_enc", "FD"),
        "b_enc": ("b_enc", "F"),
        "b_dec": ("b_dec", "D"),
        "threshold": ("threshold", "F"),
        "W_skip": ("w_skip", "IO"),
    }
    named = {f"{name}_{layer}": ours for name, ours in theirs.items()} | {"W_skip": theirs["W_skip"]}
    return Layout(NAME, named, ("w_enc", "b_enc", "b_dec"))


def decoder_layout(layer: int) -> Layout:
    """Tensors of a decoder file of a cross-layer transcoder."""
    return Layout(NAME, {f"W_dec_{layer}": ("w_dec", "FLD")}, ("w_dec",))


def marks(name: str) -> bool:
    """Whether a file of this name makes a folder one of circuit-tracer's."""
    return name == config.CONFIG or any(re.fullmatch(p, name) for p in (LAYER, ENCODER, DECODER))


def lists_files(place: Place) -> bool:
    """Whether its `config.yaml` names a file for each layer; they may be of other formats."""
    return config.CONFIG in place.names and config.read_config(place.get(config.CONFIG))[0].files is not None


def find(place: Place, options: Options, problems: list[str]) -> Units | None:
    """The layers of a folder with `config.yaml`, `layer_{i}` or `W_enc_{i}` and `W_dec_{i}` files."""
    said = config.UNSTATED
    if config.CONFIG in place.names:
        said, wrong = config.read_config(place.get(config.CONFIG), options.allow_unknown)
        problems += wrong
    kind = _kind(place, said, options, problems)
    if kind is None:
        return None
    if said.files is not None and kind == (said.kind or "transcoder"):
        layouts = (gemma_scope.CROSS_LAYOUT,) if kind == "clt" else ()
        return Units(NAME, kind, _listed(place, said.files, layouts, problems), said)
    problems += _strangers(place)
    if kind == "clt":
        return Units(NAME, kind, _cross_layer(place, problems), said, encoder_file)
    units = tuple(Unit(i, ((layer_file(i), (PER_LAYER,)),)) for i in sorted(_numbers(place, LAYER)))
    return Units(NAME, kind, units, said, layer_file)


def _kind(place: Place, said: Said, options: Options, problems: list[str]) -> str | None:
    """Per-layer or cross-layer, by what the caller, `config.yaml` and the files say."""
    per_layer = any(re.fullmatch(LAYER, name) for name in place.names)
    cross = any(re.fullmatch(ENCODER, name) or re.fullmatch(DECODER, name) for name in place.names)
    wanted = options.kind or said.kind
    if said.files is not None and wanted in (None, said.kind or "transcoder"):
        return wanted or "transcoder"
    if (wanted == "transcoder" and per_layer) or (wanted == "clt" and cross):
        return wanted
    if wanted is None and per_layer != cross:
        return "clt" if cross else "transcoder"
    if wanted is None and cross:
        problems.append("it has per-layer and cross-layer files: give kind='transcoder' or kind='clt'")
        return None
    problems.append(
        f"it has no {wanted + ' ' if wanted else ''}dictionaries in a format that is read: {layer_file(0)} ... "
        f"(transcoder), {encoder_file(0)} and {decoder_file(0)} ... (clt)"
    )
    return None


def _numbers(place: Place, pattern: str) -> set[int]:
    """The numbers in the names of files that match `pattern`."""
    matches = (re.fullmatch(pattern, name) for name in place.names)
    return {int(match[1]) for match in matches if match}


def _strangers(place: Place) -> list[str]:
    names = [name for name in place.below("") if name.endswith(".safetensors")]
    strange = [name for name in names if not any(re.fullmatch(p, name) for p in (LAYER, ENCODER, DECODER))]
    return [f"files that do not belong here: {', '.join(strange)}"] if strange else []


def _listed(place: Place, files: tuple[str, ...], layouts: tuple[Layout, ...], problems: list[str]) -> tuple[Unit, ...]:
    """A unit for each file that `config.yaml` names: by an address on the hub, or by its path in the folder."""
    units = []
    for layer, name in enumerate(files):
        path = PurePosixPath(name)
        plain = name.partition("?")[0]
        if not plain.endswith(LISTED):
            problems.append(f"{config.CONFIG} names {name!r}; of single files only {', '.join(LISTED)} are read")
        elif name.startswith("hf://"):
            units.append(Unit(layer, ((name, layouts),)))
        elif path.is_absolute() or ".." in path.parts or "\\" in name:
            problems.append(f"{config.CONFIG} names {name!r}, which is outside the folder")
        elif path.as_posix() not in place.names:
            problems.append(f"{config.CONFIG} names {name!r}, which is not there")
        else:
            units.append(Unit(layer, ((path.as_posix(), layouts),)))
    return tuple(units)


def _cross_layer(place: Place, problems: list[str]) -> tuple[Unit, ...]:
    encoders, decoders = _numbers(place, ENCODER), _numbers(place, DECODER)
    layers = range(max(encoders | decoders, default=-1) + 1)
    missing = [encoder_file(i) for i in layers if i not in encoders]
    missing += [decoder_file(i) for i in layers if i not in decoders]
    if missing:
        problems.append(f"missing files: {', '.join(missing)}; a cross-layer transcoder covers all layers")

    def files(i: int) -> tuple[tuple[str, tuple[Layout, ...]], ...]:
        whole = i in encoders and i in decoders
        return ((encoder_file(i), (encoder_layout(i),)), (decoder_file(i), (decoder_layout(i),))) if whole else ()

    return tuple(Unit(i, files(i)) for i in layers)

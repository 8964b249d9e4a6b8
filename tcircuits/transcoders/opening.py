"""Opening a set of dictionaries: what its tensors say, whether everything fits, where each row of each array lies.

`open_set` reads headers and no matrix, collects every problem (configuration, missing or damaged files, tensors,
shapes, another model) and raises once. It knows no format: `formats` says what the tensors of each are.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.tensor_file import Header, TensorFile
from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.derived import Threshold, WithoutPreBias
from tcircuits.transcoders.dictionary import pair
from tcircuits.transcoders.formats.found import Found, FoundSet, Own
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.formats.table import find
from tcircuits.transcoders.options import Options
from tcircuits.transcoders.pieces import Piece, read_piece
from tcircuits.types import InputError

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
REQUIRED = ("w_enc", "b_enc", "w_dec", "b_dec")
THRESHOLDED = ("jumprelu", "batchtopk")
ARRAYS = (*REQUIRED, "threshold", "w_skip")


@dataclass(frozen=True)
class Opened:
    """An open set: configuration, pieces by the name of our array, dtype and bytes of the files, open files, format."""

    cfg: TranscoderConfig
    pieces: Mapping[str, tuple[Piece, ...]]
    dtype: str
    n_bytes: int
    files: Mapping[Path, TensorFile]
    format: str
    model: str | None = None

    def read(self, piece: Piece, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` (of a row of our array) of a piece, in the dtype of the file."""
        return read_piece(self.files, piece, index)


@dataclass(frozen=True)
class Sizes:
    """Numbers of layers, features and dimensions, read off the headers."""

    n_layers: int
    d_feature: int
    d_model: int


def _listed(problems: list[str]) -> str:
    """All problems in one line; one that quotes a damaged file at length is cut."""
    return "; ".join(problem if len(problem) <= 1500 else problem[:1500] + " ..." for problem in problems)


def open_set(place: Place, model: ModelConfig | None, options: Options) -> Opened:
    """Open a set of dictionaries of any published format.

    Args:
        place: where its files are.
        model: the model it must fit; None does not check.
        options: what the caller says.

    Raises:
        InputError: everything that is wrong, at once.
    """
    problems: list[str] = []
    found = find(place, options, problems)
    if found is None or not found.layers:
        raise InputError(_listed(problems) or "there is nothing to load")
    problems += _missing(found) + _unread(found)
    sizes = _sizes(found, model)
    if sizes is None:
        raise InputError(_listed(problems) or "no layer has the biases b_enc [F] and b_dec [D] that tell its sizes")
    problems += _misshapen(found, sizes) + _misfits(found, sizes, model)
    fields = _switches(found, options, model, problems)
    problems += _orientation(found, sizes, options)
    if problems:
        raise InputError(_listed(problems))
    try:
        cfg = TranscoderConfig(
            n_layers=sizes.n_layers, d_model=sizes.d_model, d_feature=sizes.d_feature, layers=tuple(found.layers),
            **fields,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from error
    headers = [f.header for tensors in found.layers.values() for f in tensors.values()]
    dtype = DTYPES[found.layers[cfg.layers[0]]["w_enc"].header.dtype]
    pieces = _pieces(cfg, found, options) if found.weave is None else found.weave(cfg, found, problems)
    if problems:
        raise InputError(_listed(problems))
    return Opened(cfg, pieces, dtype, sum(map(_bytes, headers)), found.files, found.format, found.said.model)


def _bytes(header: Header) -> int:
    bits = int(re.sub(r"\D", "", header.dtype) or 8)
    return math.prod(header.shape) * bits // 8


def _there(found: FoundSet) -> dict[int, Mapping[str, Found]]:
    """Layers that have tensors; of the others a problem is noted already."""
    return {i: tensors for i, tensors in found.layers.items() if tensors}


def _optional(found: FoundSet) -> list[str]:
    """The tensors that not every dictionary has, of those that this one has."""
    names = ("threshold", "log_threshold", "w_skip", "k", "offset")
    return [n for n in names if any(n in tensors for tensors in found.layers.values())]


def _missing(found: FoundSet) -> list[str]:
    """Tensors that a layer lacks: the required ones, and those that another layer has."""
    wanted = [*REQUIRED, *_optional(found)]
    missing = [found.name_of(i, name) for i, tensors in _there(found).items() for name in wanted if name not in tensors]
    return [f"missing tensors: {', '.join(missing)}"] if missing else []


def _unread(found: FoundSet) -> list[str]:
    """Tensors of a dtype that is not read."""
    tensors = [f for tensors in found.layers.values() for name, f in tensors.items() if name != "k"]
    wrong = [f"{f.tensor} of {f.path.name} is {f.header.dtype}" for f in tensors if f.header.dtype not in DTYPES]
    return [f"tensors of a dtype other than {', '.join(DTYPES)}: {', '.join(wrong)}"] if wrong else []


def _sizes(found: FoundSet, model: ModelConfig | None) -> Sizes | None:
    """Sizes from the lengths of the biases, which no file transposes; None where there are none."""
    for tensors in found.layers.values():
        shapes = [tensors[name].header.shape for name in ("b_enc", "b_dec") if name in tensors]
        if len(shapes) == 2 and all(len(shape) == 1 for shape in shapes):
            n_layers, own = max(found.layers) + 1, found.said.own
            if found.kind == "transcoder":
                n_layers = max(n_layers, model.n_layers if model is not None else own.n_layers if own else 0)
            return Sizes(n_layers, shapes[0][0], shapes[1][0])
    return None


def _shapes(f: Found, layer: int, sizes: Sizes) -> list[tuple[int, ...]]:
    """The shapes that a tensor may have."""
    if not f.axes:
        return [(), (1,)]
    n_outputs = sizes.n_layers - f.first if f.axes == "FLD" else 0
    lengths = {
        "S": sizes.d_feature * f.first,
        "F": sizes.d_feature,
        "D": sizes.d_model,
        "I": sizes.d_model,
        "O": sizes.d_model,
        "L": n_outputs,
    }
    return [tuple(lengths[a] for a in axes) for axes in f.axes.split("|")]


def _misshapen(found: FoundSet, sizes: Sizes) -> list[str]:
    """Tensors of other shapes than the biases of the first layer say."""
    wrong = []
    for layer, tensors in found.layers.items():
        for f in tensors.values():
            right = _shapes(f, layer, sizes)
            if f.header.shape not in right:
                turned = " (transposed?)" if f.header.shape[::-1] in right and len(f.header.shape) == 2 else ""
                shown = " or ".join(map(str, right))
                wrong.append(f"{f.tensor} of {f.path.name} is {f.header.shape}, not {shown}{turned}")
    many = f"{sizes.d_feature} features of width {sizes.d_model}"
    return [f"tensors of another shape than {many} need: {', '.join(wrong)}"] if wrong else []


def _misfits(found: FoundSet, sizes: Sizes, model: ModelConfig | None) -> list[str]:
    """How it differs from the model, and from what it says of itself."""
    wrong = []
    depth, clt = max(found.layers) + 1, found.kind == "clt"
    own = found.said.own.n_layers if found.said.own else None
    if found.said.d_feature not in (None, sizes.d_feature):
        wrong.append(f"its configuration says {found.said.d_feature} features, its tensors have {sizes.d_feature}")
    if own is not None and (depth > own or (clt and depth != own)):
        wrong.append(f"its configuration says n_layers: {own}, but there are files up to layer {depth - 1}")
    if model is None:
        return wrong
    if model.attn_only:
        wrong.append("the model has no MLPs that a dictionary could stand for")
    if sizes.d_model != model.d_model:
        wrong.append(f"its width is {sizes.d_model}, the model's d_model is {model.d_model}")
    if own is not None and own != model.n_layers:
        wrong.append(f"it was made for {own} layers, the model has {model.n_layers}")
    elif depth > model.n_layers or (clt and depth != model.n_layers):
        wrong.append(f"it has layers {_span(found)}, the model 0..{model.n_layers - 1}")
    if wrong and found.said.model is not None:
        wrong.append(f"it says that it is for {found.said.model}")
    return wrong


def _span(found: FoundSet) -> str:
    first, last = min(found.layers), max(found.layers)
    return f"{first}..{last}" if first < last else str(first)


def _switches(found: FoundSet, options: Options, model: ModelConfig | None, problems: list[str]) -> dict[str, Any]:
    """Everything of the configuration but sizes: activation function, sites, skip, fill."""
    said = found.said
    sites = {"reads": options.reads or said.reads, "writes": options.writes or said.writes}
    choices = {
        "reads": "feature_input_hook of config.yaml: hook_resid_mid, ln2.hook_normalized, mlp.hook_in; "
        "reads=: resid_mid, normalized, mlp_in",
        "writes": "feature_output_hook of config.yaml: hook_mlp_out, mlp.hook_out; writes=: mlp_out, mlp_raw",
    }
    problems += [f"nothing says what it {name}: give it ({choices[name]})" for name in sites if sites[name] is None]
    if options.writes is None and sites["writes"] == "mlp_raw" and model is not None and not model.post_norm:
        sites["writes"] = "mlp_out"  # without a norm after the MLP they are one
    activation, k = _activation(found, options, problems)
    said_signed = said.own.signed_topk if said.own else said.signed_topk
    signed = activation == "topk" and (said_signed is None or said_signed)
    fill = options.fill or (said.own.fill if said.own else "error")
    skip = "w_skip" in _optional(found)
    margin = activation == "topk" and _has_offsets(found)
    fields = {"kind": found.kind, **sites, "activation": activation, "k": k, "signed_topk": signed, "margin": margin}
    return fields | {"skip": skip, "fill": fill}


def _activation(found: FoundSet, options: Options, problems: list[str]) -> tuple[str, int | None]:
    """Activation function and k: as the caller says, else the configuration, else as the tensors suggest."""
    constant, offsets = any(unit.threshold is not None for unit in found.units.values()), _has_offsets(found)
    threshold = constant or offsets or any(n.endswith("threshold") for n in _optional(found))
    said, stored = found.said, _stored_k(found, problems)
    k = options.k or said.k or stored
    own = said.own.activation if isinstance(said.own, Own) else None
    suggested = "jumprelu" if threshold else "topk" if k is not None else "relu"
    activation = options.activation or own or said.activation or suggested
    if options.k is None and said.k is not None and stored is not None and said.k != stored:
        problems.append(f"the configuration says k: {said.k}, the tensors k say {stored}: give k=")
    if threshold and activation not in (*THRESHOLDED, *(("topk",) if offsets else ())):
        problems.append(
            f"it has thresholds, but activation {activation!r} uses none: give activation='jumprelu' or 'batchtopk'"
        )
    if not threshold and activation in THRESHOLDED:
        problems.append(f"activation {activation!r} needs a tensor of thresholds in every layer; there are none")
    if activation == "topk" and k is None:
        problems.append("activation 'topk' without k: give k=")
    if activation != "topk" and k is not None and options.activation is None:
        problems.append(f"k is {k}, but activation {activation!r} has none: give activation='topk', or the right one")
    return activation, k if activation == "topk" else options.k


def _has_offsets(found: FoundSet) -> bool:
    """Whether features that are on have an offset. It is their threshold where it is part of their value."""
    tensors = [t["offset"] for t in found.layers.values() if "offset" in t and t["offset"].header.dtype in DTYPES]
    return any(np.asarray(found.files[f.path].read(f.tensor, None)).any() for f in tensors)


def _stored_k(found: FoundSet, problems: list[str]) -> int | None:
    """The tensors `k`, which some writers add to every layer."""
    stored = [t["k"] for t in found.layers.values() if "k" in t and math.prod(t["k"].header.shape) == 1]
    values = sorted({np.asarray(found.files[f.path].read(f.tensor, None)).item() for f in stored})
    if len(values) > 1 or any(v != v or v in (np.inf, -np.inf) or v != int(v) or v < 1 for v in values):
        problems.append(f"the tensors k say {', '.join(map(str, values))}; k must be one whole number from 1: give k=")
        return None
    return int(values[0]) if values else None


def _orientation(found: FoundSet, sizes: Sizes, options: Options) -> list[str]:
    """A problem where no shape tells whether a feature is a row or a column of a matrix."""
    square = found.kind == "transcoder" and sizes.d_model == sizes.d_feature
    if not square or options.decoder_rows is not None or found.said.own is not None:
        return []
    old = any("|" in f.axes for tensors in found.layers.values() for f in tensors.values())
    other = "'outputs' (its files before July 2025)" if old else "the other, if the file was written otherwise"
    turned = any(tensors["w_dec"].axes == "DF" for tensors in found.layers.values() if "w_dec" in tensors)
    today = "outputs" if turned else "features"
    return [
        f"there are as many features as dimensions ({sizes.d_model}), so the shape of W_dec does not tell what its "
        f"rows are: give decoder_rows={today!r} ({found.format} today) or {other}"
    ]


def _pieces(cfg: TranscoderConfig, found: FoundSet, options: Options) -> dict[str, tuple[Piece, ...]]:
    """What fills each row of each of our arrays."""
    pieces: dict[str, list[Piece]] = {}
    for slot, layer in enumerate(found.layers):
        for name, rows in _layer_pieces(cfg, found, options, slot, layer).items():
            pieces.setdefault(name, []).extend(rows)
    return {name: tuple(rows) for name, rows in pieces.items()}


def _layer_pieces(
    cfg: TranscoderConfig, found: FoundSet, options: Options, slot: int, layer: int
) -> dict[str, list[Piece]]:
    tensors, unit = found.layers[layer], found.units[layer]
    here = {
        name: Piece(f.path, f.tensor, slot, transposed=_turned(cfg, name, f, options), scale=f.scale)
        for name, f in tensors.items()
    }
    read = {name: partial(read_piece, found.files, piece) for name, piece in here.items()}
    rows = {name: [piece] for name, piece in here.items() if name in ARRAYS}
    w_dec = tensors["w_dec"]
    if w_dec.axes == "FLD":
        first, outputs = here["w_dec"], range(layer, cfg.n_layers)
        rows["w_dec"] = [replace(first, row=pair(cfg, layer, m), step=m - w_dec.first) for m in outputs]
    if "pre_bias" in read:
        without = WithoutPreBias(read["b_enc"], read["pre_bias"], read["w_enc"], cfg.d_model)
        rows["b_enc"] = [replace(here["b_enc"], rule=without)]
    stored = next((n for n in ("threshold", "log_threshold") if n in read), None)
    if stored == "log_threshold" or unit.threshold is not None or (stored and (unit.by_norm or unit.floor)):
        decoder = read["w_dec"] if unit.by_norm else None
        values, log = None if stored is None else read[stored], stored == "log_threshold"
        rule = Threshold(unit.threshold, values, log, decoder, cfg.d_model, unit.floor)
        rows["threshold"] = [replace(here[stored or "b_enc"], rule=rule)]
    return rows


def _turned(cfg: TranscoderConfig, name: str, f: Found, options: Options) -> bool:
    """Whether the file's axes are the reverse of ours ([F, D], and [I, O] for the skip)."""
    square = cfg.kind == "transcoder" and cfg.d_model == cfg.d_feature
    if name == "w_dec" and square and options.decoder_rows is not None:
        return options.decoder_rows == "outputs"
    if f.axes == "FD|DF":
        return not square and f.header.shape == (cfg.d_model, cfg.d_feature)
    return f.axes in ("DF", "OI")

"""Writing `Transcoders`: to circuit-tracer's format, to SAELens', or to our own. Whole, or not at all."""

import json
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tcircuits.parallel import is_lead
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.transcoders.formats import circuit_tracer as ct
from tcircuits.transcoders.formats import ct_config, saelens
from tcircuits.transcoders.formats.found import Layout
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.transcoders.stored import save_stored
from tcircuits.types import InputError

Format = Literal["circuit-tracer", "saelens", "orbax"]
FORMATS = ("circuit-tracer", "saelens", "orbax")
Tensors = dict[str, np.ndarray]


def save_transcoders(
    transcoders: Transcoders,
    path: str | os.PathLike[str],
    format: Format = "circuit-tracer",
    *,
    model_name: str | None = None,
) -> None:
    """Write dictionaries to a folder that `load_transcoders` reads back, bit for bit.

    circuit-tracer reads its format too, with these limits of its release 0.5.0: it takes `topk` for `relu`, ignores the
    affine skip of cross-layer transcoders, and needs layers from 0 without a gap. Its later TopK keeps negative values
    (`signed_topk`). SAELens reads one folder a layer, `layer_{i}`; it has ReLU and JumpReLU transcoders, with and
    without skip, and no TopK or cross-layer ones.

    Args:
        transcoders: what to write; `neurons` are part of the model and cannot be written.
        path: a folder that does not exist yet, or is empty. It appears when everything is written.
        format: `orbax` writes sharded arrays from every process (every process calls it).
        model_name: for the configuration: the model that they are for.

    Raises:
        InputError: the folder is not empty, something that the format cannot hold, or files that cannot be written.
    """
    target = Path(path).expanduser()
    problems = _problems(transcoders, target, format)
    if problems:
        raise InputError(f"transcoders cannot be written to {path}: " + "; ".join(problems))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if format == "orbax":
            if is_lead() and target.is_dir():
                target.rmdir()
            save_stored(transcoders, target, model_name)
        elif is_lead():
            _write_folder(transcoders, target, format, model_name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"transcoders cannot be written to {path}: {error}") from error


def _problems(d: Transcoders | LazyTranscoders, target: Path, format: str) -> list[str]:
    wrong = []
    if format not in FORMATS:
        wrong.append(f"format={format!r}; there are {', '.join(FORMATS)}")
    if target.exists() and not target.is_dir():
        wrong.append("it is a file; give a folder")
    elif target.is_dir() and any(target.iterdir()):
        wrong.append("it exists and is not empty; remove it or choose another name")
    if isinstance(d, LazyTranscoders):
        return [*wrong, "they stay on disk: load them whole (load_transcoders), or use tcircuits convert"]
    if d.cfg.kind == "neurons":
        return [*wrong, "neurons are part of the model, so there is nothing to write"]
    if format != "orbax" and not all(x.is_fully_addressable for x in jax.tree.leaves(d)):
        return [*wrong, "its arrays are spread over several processes: use format='orbax'"]
    if format != "orbax" and d.cfg.kind == "sae":
        return [*wrong, f"the {format} format here is for transcoders, not SAEs: use format='orbax'"]
    if format != "orbax" and d.cfg.margin:
        return [*wrong, f"{format} has no TopK that ranks by the distance to a threshold: use format='orbax'"]
    if format == "saelens":
        lowest = None if d.threshold is None else float(np.asarray(d.threshold).min())
        wrong += saelens.cannot_hold(d.cfg, lowest)
    elif format == "circuit-tracer" and d.cfg.activation == "batchtopk" and bool((np.asarray(d.threshold) < 0).any()):
        wrong.append(
            "circuit-tracer knows no batchtopk; a JumpReLU is the same where thresholds are not negative: "
            "set the negative ones to 0, which changes nothing, or use format='orbax'"
        )
    return wrong


def _write_folder(d: Transcoders, target: Path, format: str, model_name: str | None) -> None:
    """All files in a folder beside `target`, which then takes its name."""
    import yaml

    draft = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        for slot, layer in enumerate(d.cfg.layers):
            for name, tensors in _files(d, slot, layer, format).items():
                (draft / name).parent.mkdir(exist_ok=True)
                # Not contiguous arrays would be written in the order of memory.
                save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, draft / name)
                (draft / name).chmod(draft.stat().st_mode & 0o666)  # the library lets the owner alone read it
            if format == "saelens":
                about = saelens.config_fields(d.cfg, layer, str(jax.tree.leaves(d)[0].dtype), model_name)
                (draft / f"layer_{layer}" / saelens.CONFIG).write_text(json.dumps(about, indent=1), encoding="utf-8")
        if format == "circuit-tracer":
            fields = ct_config.config_fields(d.cfg, model_name)
            text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
            (draft / ct_config.CONFIG).write_text(text, encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _files(d: Transcoders, slot: int, layer: int, format: str) -> dict[str, Tensors]:
    """The tensor files of a layer by name."""
    if d.cfg.kind == "clt":
        return _cross_layer(d, layer)
    assert d.w_dec is not None
    ours = _rows(d, slot) | {"w_dec": np.asarray(d.w_dec[slot])}
    if format == "saelens":
        return {f"layer_{layer}/{saelens.WEIGHTS}": _as(saelens.LAYOUT, ours)}
    return {ct.layer_file(layer): _as(ct.PER_LAYER, ours)}


def _as(layout: Layout, ours: Tensors) -> Tensors:
    """Our arrays (rows are features; the skip is [I, O]) under the names and axes of a layout."""
    turned = ("DF", "OI")
    pairs = [(theirs, name, axes) for theirs, (name, axes) in layout.tensors.items() if name in ours]
    return {theirs: ours[name].T if axes in turned else ours[name] for theirs, name, axes in pairs}


def _rows(d: Transcoders, slot: int) -> Tensors:
    """One layer of the arrays that have one row a layer."""
    arrays = {"w_enc": d.w_enc, "b_enc": d.b_enc, "b_dec": d.b_dec, "threshold": d.threshold, "w_skip": d.w_skip}
    return {name: np.asarray(array[slot]) for name, array in arrays.items() if array is not None}


def _cross_layer(d: Transcoders, layer: int) -> dict[str, Tensors]:
    """The two files of a layer by name, and their tensors."""
    assert d.w_dec is not None
    ours = _rows(d, layer)
    encoder, decoder = ct.encoder_layout(layer), ct.decoder_layout(layer)
    own = {theirs: ours for theirs, ours in encoder.tensors.items() if theirs.endswith(f"_{layer}")}
    outputs = [np.asarray(d.w_dec[pair(d.cfg, layer, m)]) for m in range(layer, d.cfg.n_layers)]
    return {
        ct.encoder_file(layer): _as(replace(encoder, tensors=own), ours),
        ct.decoder_file(layer): {name: np.stack(outputs, axis=1) for name in decoder.tensors},
    }

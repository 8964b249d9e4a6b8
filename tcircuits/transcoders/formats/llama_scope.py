"""Llama Scope's transcoders: `{name}/hyperparams.json` and `{name}/checkpoints/final.safetensors`, one folder a layer.

The tensors live in a space where inputs and outputs have length sqrt(D), the threshold outside of it and for decoder
rows of length 1. With s_in = sqrt(D) / norm_in and s_out = sqrt(D) / norm_out, on the model's own activations,

    b_enc = encoder.bias / s_in,    W_dec = decoder.weight^T s_in / s_out,    b_dec = decoder.bias / s_out,
    f = h 1[h |W_dec row| > threshold],    h = x encoder.weight^T + b_enc

with encoder.weight [F,D], decoder.weight [D,F]. Sources: He et al. 2024 (arXiv 2410.20526);
github.com/OpenMOSS/Language-Model-SAEs as of that release.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from tcircuits.files.limits import read_json
from tcircuits.transcoders.formats.found import Layout, Said, Unit, Units
from tcircuits.transcoders.formats.hooks import READS, WRITES, site_of
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.options import Options
from tcircuits.types import InputError

NAME = "Llama Scope"
CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"
LAYOUT = Layout(
    NAME,
    {
        "encoder.weight": ("w_enc", "FD"),
        "encoder.bias": ("b_enc", "F"),
        "decoder.weight": ("w_dec", "DF"),
        "decoder.bias": ("b_dec", "D"),
    },
)


def marks(name: str) -> bool:
    """Whether a file of this name is one of Llama Scope's."""
    return name.rpartition("/")[2] == CONFIG


def find(place: Place, options: Options, problems: list[str]) -> Units | None:
    """The layers of a folder of such folders, or the one layer of such a folder."""
    units = []
    for name in filter(marks, place.names):
        folder = name.removesuffix(CONFIG)
        if folder + WEIGHTS not in place.names:
            problems.append(f"{folder}{WEIGHTS} is missing")
            continue
        try:
            unit = _unit(read_json(place.get(name)), name, folder + WEIGHTS, problems)
        except InputError as error:
            problems.append(str(error))
            continue
        units.append(unit)
    return Units(NAME, "transcoder", tuple(units))


def _unit(raw: Mapping[str, Any], name: str, weights: str, problems: list[str]) -> Unit:
    wrong: list[str] = []
    source, sink = raw.get("hook_point_in"), raw.get("hook_point_out")
    (layer, reads), (target, writes) = site_of(source, READS), site_of(sink, WRITES)
    if reads is None or writes is None or layer != target:
        wrong.append(f"reads {source!r} and writes {sink!r}: no MLP of one layer")
    for field, allowed in (("act_fn", "jumprelu"), ("norm_activation", "dataset-wise"), ("use_decoder_bias", True),
                           ("use_glu_encoder", False), ("apply_decoder_bias_to_pre_encoder", False)):  # fmt: skip
        if raw.get(field, allowed) != allowed:
            wrong.append(f"{field} is {raw[field]!r}; only {allowed!r} is read")
    norms = raw.get("dataset_average_activation_norm")
    norms = norms if isinstance(norms, dict) else {}
    given = {"d_model": raw.get("d_model"), "norm in": norms.get("in"), "norm out": norms.get("out")}
    given["jump_relu_threshold"] = raw.get("jump_relu_threshold")
    numbers = {field: _positive(field, value, wrong) for field, value in given.items()}
    if wrong:
        problems.append(f"{name}: " + ", ".join(wrong))
        return Unit(layer, ())
    s_in, s_out = (math.sqrt(numbers["d_model"]) / numbers[side] for side in ("norm in", "norm out"))
    scales = {"b_enc": 1 / s_in, "w_dec": s_in / s_out, "b_dec": 1 / s_out}
    said = Said("transcoder", reads, writes, "jumprelu", model=_model(name))
    by_norm = raw.get("sparsity_include_decoder_norm", True) is True
    return Unit(layer, ((weights, (LAYOUT,)),), said, scales, numbers["jump_relu_threshold"], by_norm)


def _positive(field: str, value: Any, wrong: list[str]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        wrong.append(f"{field} is {value!r}; it must be a number above zero")
        return 1.0
    return float(value)


def _model(name: str) -> str | None:
    """The model, from the folder's name as it was published."""
    return "meta-llama/Llama-3.1-8B" if re.search(r"Llama3_1-8B-Base-L\d+TC", name) else None

"""Transcoders of lm-saes, the later code of Llama Scope's authors: `config.json` and `sae_weights.safetensors`.

    f = act(h |W_D row|) / |W_D row|,    h = x~ W_E + b_E,    y = (f W_D + b_D) / s_out,    x~ = s_in x

with W_E [D,F], W_D [F,D], s = sqrt(D) / `dataset_average_activation_norm.{hook}` (1 after their own folding,
`norm_activation: inference`); the lengths are those of the rows in the file, or 1 without
`sparsity_include_decoder_norm`. `act` is a ReLU, the k largest after one, or a threshold, whose logarithm is stored. Of
TopK with lengths, features here are f times the length.
Source: github.com/OpenMOSS/Language-Model-SAEs, release 2.0.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tcircuits.files.limits import read_json
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.derived import Lengths, Scaled, Threshold
from tcircuits.transcoders.formats.found import FoundSet, Layout, Said, Unit, Units
from tcircuits.transcoders.formats.hooks import READS, WRITES, site_of
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.pieces import Piece, read_piece
from tcircuits.types import InputError

NAME = "lm-saes"
CONFIG = "config.json"
ACTIVATIONS = ("relu", "jumprelu", "topk")
NORMS = ("dataset-wise", "inference")


def find(place: Place, weights: list[str], problems: list[str]) -> Units:
    """The layers whose tensors lie in these files."""
    units, by_length, normed = [], {}, {}
    for name in weights:
        config = f"{name.rpartition('/')[0]}/{CONFIG}".lstrip("/")
        try:
            raw = read_json(place.get(config))
        except InputError as error:
            problems.append(str(error))
            continue
        unit = _unit(raw, config, name, problems)
        by_length[unit.layer] = raw.get("sparsity_include_decoder_norm", True) is True
        normed[unit.layer] = raw.get("norm_activation") == "dataset-wise"
        units.append(unit)
    return Units(NAME, "transcoder", tuple(units), weave=partial(_weave, by_length, normed))


def _unit(raw: Mapping[str, Any], config: str, weights: str, problems: list[str]) -> Unit:
    source, sink = raw.get("hook_point_in"), raw.get("hook_point_out")
    (layer, reads), (target, writes) = site_of(source, READS), site_of(sink, WRITES)
    wrong = []
    if raw.get("sae_type") != "sae":
        wrong.append(f"sae_type is {raw.get('sae_type')!r}; only 'sae' is read, of one layer")
    if reads is None or writes is None or layer != target:
        wrong.append(f"reads {source!r} and writes {sink!r}: no MLP of one layer")
    for field, allowed in (("act_fn", ACTIVATIONS), ("norm_activation", NORMS), ("use_decoder_bias", (True,)),
                           ("use_glu_encoder", (False, None))):  # fmt: skip
        if not any(raw.get(field) is a or raw.get(field) == a for a in allowed):
            wrong.append(f"{field} is {raw.get(field)!r}; read is {' or '.join(map(repr, allowed))}")
    k = raw.get("top_k")
    if raw.get("act_fn") == "topk" and (type(k) is not int or k < 1):
        wrong.append(f"top_k is {k!r}; it must be a whole number from 1")
    if wrong:
        problems.append(f"{config}: " + ", ".join(wrong))
        return Unit(layer, ())
    tensors = {
        "W_E": ("w_enc", "DF"),
        "b_E": ("b_enc", "F"),
        "W_D": ("w_dec", "FD"),
        "b_D": ("b_dec", "D"),
        "activation_function.log_jumprelu_threshold": ("log_threshold", "F"),
        f"dataset_average_activation_norm.{source}": ("in_norm", ""),
        f"dataset_average_activation_norm.{sink}": ("out_norm", ""),
    }
    act = raw["act_fn"]
    said = Said("transcoder", reads, writes, act, k if act == "topk" else None, signed_topk=False)
    return Unit(layer, ((weights, (Layout(NAME, tensors),)),), said)


def _weave(
    by_length: Mapping[int | None, bool], normed: Mapping[int | None, bool], cfg: TranscoderConfig, found: FoundSet,
    problems: list[str],
) -> Mapping[str, tuple[Piece, ...]]:  # fmt: skip
    """The pieces of our arrays: norms folded, thresholds divided by lengths, TopK made to rank by value alone."""
    pieces: dict[str, list[Piece]] = {}
    for slot, layer in enumerate(cfg.layers):
        tensors, root = found.layers[layer], math.sqrt(cfg.d_model)
        s_in = s_out = 1.0
        if normed[layer]:
            s_in, s_out = (root / _norm(found, layer, name, problems) for name in ("in_norm", "out_norm"))

        def read(name: str, layer: int = layer) -> Any:
            f = found.layers[layer][name]
            return partial(read_piece, found.files, Piece(f.path, f.tensor, 0, transposed=f.axes == "DF"))

        def put(name: str, tensor: str = "", slot: int = slot, layer: int = layer, **more: Any) -> None:
            f = found.layers[layer][tensor or name]
            pieces.setdefault(name, []).append(Piece(f.path, f.tensor, slot, transposed=f.axes == "DF", **more))

        ranked = cfg.activation == "topk" and by_length[layer]
        lengths = Lengths(read("w_dec"), cfg.d_model)
        put("w_enc", scale=s_in, factors=lengths if ranked else None)
        put("b_enc", rule=Scaled(read("b_enc"), lengths) if ranked else None)
        put("w_dec", scale=1 / s_out, factors=lengths.inverse if ranked else None)
        put("b_dec", scale=1 / s_out)
        if "log_threshold" in tensors:
            decoder = read("w_dec") if by_length[layer] else None
            put("threshold", "log_threshold", rule=Threshold(None, read("log_threshold"), True, decoder, cfg.d_model))
    return {name: tuple(rows) for name, rows in pieces.items()}


def _norm(found: FoundSet, layer: int, name: str, problems: list[str]) -> float:
    f = found.layers[layer].get(name)
    value = math.nan if f is None else float(np.asarray(found.files[f.path].read(f.tensor, None)).item())
    if not 0 < value < math.inf:
        problems.append(f"{found.name_of(layer, name)} is {value}; it must be a number above zero")
        return 1.0
    return value

"""SAELens' folders of one layer each: `cfg.json` and `sae_weights.safetensors`, read and written.

    f = relu(h) 1[h > threshold],    h = x W_enc + b_enc,    y = f W_dec + b_dec (+ x W_skip^T)

with W_enc [D,F], W_dec [F,D]; `threshold` [F] belongs to `jumprelu_transcoder`, W_skip to `skip_transcoder`. Files of
releases before 6 name some fields otherwise, and subtract `b_dec` from the input unless they say that they do not; so
do those that are stored as autoencoders (`standard`).
Source: github.com/decoderesearch/SAELens, releases up to 6.54.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tcircuits.files.limits import read_json
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.formats import lm_saes
from tcircuits.transcoders.formats.found import Layout, Said, Unit, Units
from tcircuits.transcoders.formats.hooks import MODULE_READS, MODULE_WRITES, READS, WRITES, module_site, site_of
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.options import Options
from tcircuits.types import InputError

NAME = "SAELens"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
WRITTEN_VERSION = "6.0.0"  # the first release whose names of fields are written
TENSORS = {
    "W_enc": ("w_enc", "DF"),
    "b_enc": ("b_enc", "F"),
    "W_dec": ("w_dec", "FD"),
    "b_dec": ("b_dec", "D"),
    "threshold": ("threshold", "F"),
    "W_skip": ("w_skip", "OI"),
    "scaling_factor": ("unused", "F"),  # multiplies only where the configuration says `finetuning_scaling_factor`
}
LAYOUT = Layout(NAME, TENSORS)
SHIFTED = Layout(NAME, TENSORS | {"b_dec": ("b_dec+pre_bias", "D")})
# With a bias of its own for the output, `b_dec` is only subtracted from the input (the transcoder paper's code).
TWO_BIASES = Layout(NAME, TENSORS | {"b_dec": ("pre_bias", "D"), "b_dec_out": ("b_dec", "D")})
ARCHITECTURES = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "standard": "relu",  # so the folded transcoders of the ARENA course are stored
}


def marks(name: str) -> bool:
    """Whether a file of this name is one of SAELens'."""
    return name.rpartition("/")[2] == WEIGHTS


def find(place: Place, options: Options, problems: list[str]) -> Units | None:
    """The layers of a folder of such folders, or the one layer of such a folder; lm-saes has the same names."""
    units, named = [], list(filter(marks, place.names))
    folders = [name.removesuffix(WEIGHTS) for name in named]
    if all(f + lm_saes.CONFIG in place.names and f + CONFIG not in place.names for f in folders):
        return lm_saes.find(place, named, problems)
    for name in named:
        config = name.removesuffix(WEIGHTS) + CONFIG
        try:
            if config not in place.names:
                raise InputError(f"{config} is missing: it says what the dictionary reads (give the folder of both)")
            units.append(_unit(read_json(place.get(config)), config, name, problems))
        except InputError as error:
            problems.append(str(error))
    return Units(NAME, "transcoder", tuple(units))


def _unit(raw: Mapping[str, Any], config: str, weights: str, problems: list[str]) -> Unit:
    about = raw.get("metadata")
    fields = {**(about if isinstance(about, Mapping) else {}), **raw}
    modern = is_modern(fields.get("sae_lens_version"))
    layer, said, wrong = said_of(fields)
    normalised = fields.get("normalize_activations", "none")
    if normalised not in ("none", None, False):
        wrong.append(f"normalize_activations is {normalised!r}; only 'none' is read")
    for field in ("finetuning_scaling_factor", "reshape_activations"):
        if fields.get(field) not in (None, False, "none"):
            wrong.append(f"{field} is {fields[field]!r}; only none is read")
    if wrong:
        problems.append(f"{config}: " + ", ".join(wrong))
    shifted = fields.get("apply_b_dec_to_input", not modern or fields.get("architecture") == "standard")
    layouts = (TWO_BIASES, SHIFTED if shifted else LAYOUT)
    return Unit(layer, ((weights, layouts),), said, floor=True)


def is_modern(version: object) -> bool:
    """Whether a release is 6 or later; files of earlier ones mostly do not say theirs.

    >>> is_modern("6.0.0-rc.1"), is_modern("5.11.0"), is_modern(None)
    (True, False, False)
    """
    match = re.match(r"\d{1,4}", version) if isinstance(version, str) else None
    return match is not None and int(match[0]) >= 6


def said_of(fields: Mapping[str, Any]) -> tuple[int | None, Said, list[str]]:
    """Layer, what is said, and what is wrong with the fields of a `cfg.json` and its metadata."""
    wrong = []
    name = fields.get("hook_name", fields.get("hook_point"))
    layer, reads = site_of(name, READS)
    # For Gemma Scope 2 it writes `hook_mlp_in`, elsewhere the stream before the norm, and beside it what was meant.
    reads = module_site(fields.get("hf_hook_name"), MODULE_READS)[1] or reads
    if reads is None:
        wrong.append(f"hook_name is {name!r}; read are blocks.LAYER.{{{', '.join(READS)}}}")
    out = fields.get("hook_name_out")
    target, writes = (layer, "mlp_out") if out is None else site_of(out, WRITES)  # before release 6: by convention
    writes = module_site(fields.get("hf_hook_name_out"), MODULE_WRITES)[1] or writes
    if writes is None or target != layer:
        wrong.append(f"hook_name_out is {out!r}; read are blocks.{layer}.{{{', '.join(WRITES)}}}")
    architecture = fields.get("architecture", "standard")
    d_in, d_out = fields.get("d_in"), fields.get("d_out")
    if None not in (d_in, d_out) and d_in != d_out:
        wrong.append(f"d_in is {d_in!r} and d_out {d_out!r}; an MLP reads and writes as many dimensions")
    if str(architecture) not in ARCHITECTURES:
        wrong.append(f"architecture is {architecture!r}; read are {', '.join(ARCHITECTURES)}")
    activation = fields.get("activation_fn_str", fields.get("activation_fn", "relu"))
    if activation != "relu":
        wrong.append(f"activation_fn is {activation!r}; only 'relu' is read")
    model = fields.get("model_name")
    said = Said("transcoder", reads, writes, ARCHITECTURES.get(str(architecture)))
    d_sae = fields.get("d_sae")
    known = {"model": model if isinstance(model, str) else None, "d_feature": d_sae if type(d_sae) is int else None}
    return layer, replace(said, **known), wrong


def cannot_hold(cfg: TranscoderConfig, lowest_threshold: float | None) -> list[str]:
    """Why a dictionary cannot be written in this format."""
    wrong = []
    if cfg.kind != "transcoder":
        wrong.append("SAELens' format holds one layer a folder and so no cross-layer transcoder")
    if cfg.activation == "topk":
        wrong.append("SAELens has no TopK transcoder: use format='circuit-tracer' or 'orbax'")
    if cfg.activation == "jumprelu" and lowest_threshold is not None and lowest_threshold < 0:
        wrong.append("SAELens' JumpReLU gives 0 below 0, so thresholds must not be negative: use format='orbax'")
    return wrong


def config_fields(cfg: TranscoderConfig, layer: int, dtype: str, model_name: str | None) -> dict[str, Any]:
    """The `cfg.json` of one layer."""
    jump = "jumprelu_" if cfg.activation in ("jumprelu", "batchtopk") else ""
    read = next(hook for hook, site in READS.items() if site == cfg.reads)
    written = next(hook for hook, site in WRITES.items() if site == cfg.writes)
    metadata = {
        "sae_lens_version": WRITTEN_VERSION,
        "model_name": model_name,
        "hook_name": f"blocks.{layer}.{read}",
        "hook_name_out": f"blocks.{layer}.{written}",
    }
    return {
        "architecture": f"{jump}{'skip_' if cfg.skip else ''}transcoder",
        "d_in": cfg.d_model,
        "d_out": cfg.d_model,
        "d_sae": cfg.d_feature,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }

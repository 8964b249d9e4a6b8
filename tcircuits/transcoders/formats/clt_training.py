"""Sets of EleutherAI's clt-training, a fork of sparsify: one folder a layer, per-layer or cross-layer.

With x~ = x sqrt(D) / in_norm (where `normalize_io`), a = topk(relu(x~ encoder.weight^T + encoder.bias)), and for the
target layer m = l + t of source layer l

    y_m = out_norm_m / sqrt(D) (sum over l <= m of s_lt a_l W_lm / q + b_m + x~_m W_skip_m^T)

s_lt (`post_enc_scales.{t}`) is one number a feature; q is 1 for l = m, and the number of earlier sources for others
where `divide_cross_layer`. Which W_lm is meant, `coalesce_topk` and `per_source_tied` say:

| | W_lm | b_m |
|---|---|---|
| per layer (`n_targets` 0) | W_dec of layer l = m | b_dec |
| `none` | W_decs.{t} of layer l | b_decs.{0} of m, and b_decs.{t} / q of earlier l |
| `none`, per source | W_dec of layer l | as above |
| `concat` | W_dec of layer m | b_dec of m |
| `per-layer` | W_dec of layer m [n F, D]: the block of the source among those that write there | b_dec of m |

All of it folds into decoders [F,D] of a pair of layers, exactly. `post_enc`, added to features that are on, becomes
part of the encoder's bias, and their threshold; it is what TopK ranks by that goes without (`margin`). Two things are
refused where they are not zero: `post_encs.{t}`, since each target has its own, and `W_skips.{t}` of earlier layers.
Source: github.com/EleutherAI/clt-training, sparsify/sparse_coder.py and runner.py.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from tcircuits.transcoders.formats.clt_folding import Coder, weave
from tcircuits.transcoders.formats.found import Layout, Unit, Units

NAME = "clt-training"
# Fields that sparsify itself does not have.
FIELDS = (
    *("n_targets", "n_sources", "normalize_io", "divide_cross_layer", "train_post_encoder", "post_encoder_scale"),
    *("per_source_tied", "secondary_target_tied", "coalesce_topk", "topk_coalesced"),
)
MANY = 1000  # more layers than any model has
MODULE = r"(?:\w+\.)*(?:layers|h)\.(\d{1,4})\.(\w+)"
# What goes into these modules; the norm before the MLP has other names in other families.
INPUTS = {
    "mlp": "mlp_in",
    "ln_2": "resid_mid",
    "post_attention_layernorm": "resid_mid",
    "pre_feedforward_layernorm": "resid_mid",
}


def is_meant(raw: Mapping[str, Any]) -> bool:
    """Whether a `cfg.json` was written by clt-training and not by sparsify."""
    return any(field in raw for field in FIELDS)


def coder_of(raw: Mapping[str, Any], name: str, problems: list[str]) -> Coder:
    """The part of a `cfg.json` that sparsify does not have."""
    wrong = [f"{field}: {raw[field]!r}" for field in ("topk_coalesced", "secondary_target_tied") if raw.get(field)]
    targets, coalesced = raw.get("n_targets", 0), raw.get("coalesce_topk", "none")
    if coalesced not in ("none", "concat", "per-layer"):
        wrong.append(f"coalesce_topk: {coalesced!r}")
    if type(targets) is not int or not 0 <= targets <= MANY:
        wrong.append(f"n_targets: {targets!r}")
        targets = 0
    if targets and raw.get("transcode") is not True:
        wrong.append("n_targets without transcode")
    if wrong:
        problems.append(f"{name} has {', '.join(wrong)}, which cannot be read")
    sources = raw.get("n_sources", 0)
    tied = "source" if raw.get("per_source_tied") and coalesced == "none" else str(coalesced)
    switches = (bool(raw.get(field)) for field in ("normalize_io", "post_encoder_scale", "divide_cross_layer"))
    return Coder(targets, tied, *switches, blocks=max(1, sources) if type(sources) is int else 1)


def layout_of(coder: Coder, shifted: bool) -> Layout:
    """The tensors of one layer."""
    stacked = coder.targets > 0 and coder.tied == "per-layer"
    tensors = {
        "encoder.weight": ("w_enc", "FD"),
        "encoder.bias": ("b_enc", "F"),
        "W_dec": ("w_dec", "SD" if stacked else "FD"),
        "b_dec": ("b_dec+pre_bias" if shifted else "b_dec", "D"),
        "W_skip": ("w_skip", "OI"),
        "post_enc": ("offset", "F"),
        "post_enc_scale": ("scale.0", "F"),
        "in_norm": ("in_norm", ""),
        "out_norm": ("out_norm", ""),
    }
    for t in range(coder.targets):
        lists = {"W_decs": ("w_dec", "FD"), "b_decs": ("b_dec", "D"), "W_skips": ("w_skip", "OI")}
        # The first of a list is mostly there under its own name too.
        named = {
            f"{theirs}.{t}": (f"{ours}.{t}" if t else f"{ours}.0+{ours}", axes)
            for theirs, (ours, axes) in lists.items()
        }
        tensors |= named | {f"post_encs.{t}": (f"offset.{t}", "F"), f"post_enc_scales.{t}": (f"scale.{t}", "F")}
    return Layout(NAME, tensors, ("w_enc", "b_enc"), first=coder.blocks if stacked else None)


def site_read(top: Mapping[str, Any], hookpoint: str, problems: list[str]) -> str | None:
    """What a layer reads: the input of the module that the run's `config.json` pairs with its own; else its own's."""
    own, inputs = top.get("hookpoints"), top.get("hookpoints_in")
    source = hookpoint
    if isinstance(own, list) and isinstance(inputs, list) and inputs:
        source = dict(zip(map(str, own), map(str, inputs), strict=False)).get(hookpoint, "")
    match, module = re.fullmatch(MODULE, source), re.fullmatch(MODULE, hookpoint)
    if match is None or module is None or match[1] != module[1] or match[2] not in INPUTS:
        problems.append(
            f"{hookpoint} reads the input of {source!r}; read are those of {', '.join(INPUTS)} of its layer"
        )
        return None
    return INPUTS[match[2]]


def units_of(layers: list[tuple[Unit, Mapping[str, Any], str]], top: Mapping[str, Any], problems: list[str]) -> Units:
    """The set: for each layer its unit as sparsify would have it, its `cfg.json`, and where that lies."""
    coders: dict[int | None, Coder] = {}
    units = []
    for unit, raw, name in layers:
        coder = coder_of(raw, name, problems)
        hookpoint = next(
            part for part in reversed(["", *name.split("/")[:-1]]) if not part or re.fullmatch(MODULE, part)
        )
        reads = site_read(top, hookpoint, problems) if hookpoint else unit.said.reads
        said = replace(unit.said, reads=reads, model=top["model"] if isinstance(top.get("model"), str) else None)
        layout = layout_of(coder, raw.get("transcode", False) is not True)
        units.append(replace(unit, files=((unit.files[0][0], (layout,)),), said=said))
        coders[unit.layer] = coder
    if len({coder.tied for coder in coders.values()}) > 1:
        problems.append("its layers differ in coalesce_topk or per_source_tied")
    kind = "clt" if any(coder.targets for coder in coders.values()) else "transcoder"
    units = [replace(unit, said=replace(unit.said, kind=kind)) for unit in units]
    return Units(NAME, kind, tuple(units), weave=partial(weave, coders))

"""Gemma Scope's transcoders, of both generations.

| | files | tensors | y += |
|---|---|---|---|
| 1 | `layer_{i}/width_{w}/average_l0_{n}/params.npz` | W_enc [D,F], W_dec [F,D], b_enc, b_dec, threshold | |
| 2 | `layer_{i}_width_{w}_l0_{n}/params.safetensors` | w_enc [D,F], w_dec [F,D], b_enc, b_dec, threshold, | |
| | | perhaps affine_skip_connection [D,D] | x A |
| 2, cross-layer | `params_layer_{i}.safetensors` | the same with w_dec [F,L,D], of which i, i+1 ... are used | x A |

JumpReLU. The first reads the normalised stream before the norm's gain, the second after it; both write what the
post-norm makes. Repositories of the second hold autoencoders of other places under the same names, in folders that say
so; `config.json` beside the tensors says model and places. Sources: Lieberum et al. 2024 (arXiv 2408.05147); the model
cards of google/gemma-scope-2b-pt-transcoders and google/gemma-scope-2-1b-pt.
"""

import re
from dataclasses import dataclass, replace

from tcircuits.files.limits import read_json
from tcircuits.transcoders.formats.found import Layout, Said, Unit, Units
from tcircuits.transcoders.formats.hooks import MODULE_READS, MODULE_WRITES, module_site
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.options import Options
from tcircuits.types import InputError

NAME, SECOND = "Gemma Scope", "Gemma Scope 2"
REQUIRED = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
FIRST_SAID = Said("transcoder", "normalized", "mlp_out", "jumprelu")
SECOND_SAID = Said("transcoder", "mlp_in", "mlp_out", "jumprelu")

LAYOUT = Layout(
    NAME,
    {
        "W_enc": ("w_enc", "DF"),
        "b_enc": ("b_enc", "F"),
        "W_dec": ("w_dec", "FD"),
        "b_dec": ("b_dec", "D"),
        "threshold": ("threshold", "F"),
    },
    REQUIRED,
    said=FIRST_SAID,
)
_SECOND = {
    "w_enc": ("w_enc", "DF"),
    "b_enc": ("b_enc", "F"),
    "w_dec": ("w_dec", "FD"),
    "b_dec": ("b_dec", "D"),
    "threshold": ("threshold", "F"),
    "affine_skip_connection": ("w_skip", "IO"),
}
SECOND_LAYOUT = Layout(SECOND, _SECOND, REQUIRED, said=SECOND_SAID)
CROSS_LAYOUT = Layout(
    SECOND, _SECOND | {"w_dec": ("w_dec", "FLD")}, REQUIRED, first=0, said=Said("clt", "mlp_in", "mlp_out", "jumprelu")
)

NPZ = re.compile(
    r"(?:(?:.*/)?layer_(?P<layer>\d{1,4})/)?(?:width_(?P<width>\w+)/)?(?:average_l0_(?P<l0>[\d.]+)/)?params\.npz"
)
FOLDER = re.compile(r"(?:(?:.*/)?layer_(?P<layer>\d{1,4})_width_(?P<width>[^_/]+)_l0_(?P<l0>\w+)/)?params\.safetensors")
CROSS = re.compile(r"(?:(?:.*/)?width_(?P<width>[^_/]+)_l0_(?P<l0>\w+)/)?params_layer_(?P<layer>\d{1,4})\.safetensors")


@dataclass(frozen=True)
class Variant:
    """One file of one layer: sparsity and width as its name says, None where it does not."""

    layer: int | None
    width: str | None
    l0: str | None
    name: str


# Folders of autoencoders and crosscoders.
ELSEWHERE = re.compile(r"(?:.*/)?(?:resid_post|attn_out|mlp_out|crosscoder)(?:_all)?/.*")
CONFIG = "config.json"


def marks(name: str) -> bool:
    """Whether a file of this name is one of Gemma Scope's."""
    return any(pattern.fullmatch(name) for pattern in (NPZ, FOLDER, CROSS)) and not ELSEWHERE.fullmatch(name)


def _variants(place: Place, pattern: re.Pattern[str]) -> list[Variant]:
    matches = [match for name in place.names if marks(name) and (match := pattern.fullmatch(name))]
    return [Variant(None if m["layer"] is None else int(m["layer"]), m["width"], m["l0"], m[0]) for m in matches]


def find(place: Place, options: Options, problems: list[str]) -> Units | None:
    """The layers of a folder, one variant each: chosen by `width` and `l0` where there are several."""
    there = [
        (layout, variants)
        for pattern, layout in ((NPZ, LAYOUT), (FOLDER, SECOND_LAYOUT), (CROSS, CROSS_LAYOUT))
        if (variants := _variants(place, pattern)) and options.kind in (None, _kind(layout))
    ]
    if len(there) != 1:
        what = " and ".join(f"{layout.name} {_kind(layout)}" for layout, _ in there)
        problems.append(
            f"it has files of {what}: give kind=, or the folder of one of them" if there else
            f"it has no {options.kind} of Gemma Scope"
        )  # fmt: skip
        return None
    layout, variants = there[0]
    units = tuple(_described(place, unit, problems) for unit in _chosen(variants, layout, options, problems))
    return Units(layout.name, _kind(layout), units)


def _kind(layout: Layout) -> str:
    return "clt" if layout is CROSS_LAYOUT else "transcoder"


def _described(place: Place, unit: Unit, problems: list[str]) -> Unit:
    """A unit with what the `config.json` beside its file says; some folders have none."""
    folder = unit.files[0][0].rpartition("/")[0]
    name = f"{folder}/{CONFIG}" if folder else CONFIG
    if name not in place.names:
        return unit
    try:
        raw = read_json(place.get(name))
    except InputError as error:
        problems.append(str(error))
        return unit
    source, sink = raw.get("hf_hook_point_in"), raw.get("hf_hook_point_out")
    (first, reads), (last, writes) = module_site(source, MODULE_READS), module_site(sink, MODULE_WRITES)
    if raw.get("type", "transcoder") not in ("transcoder", "clt"):
        problems.append(f"{name} has type: {raw['type']!r}; only 'transcoder' and 'clt' can stand for MLPs")
    elif (source, sink) != (None, None) and (reads is None or writes is None or first != last):
        problems.append(f"{name} says that it reads {source!r} and writes {sink!r}: no MLP of one layer")
    model = raw.get("model_name")
    layer = first if unit.layer is None else unit.layer
    return replace(
        unit, layer=layer, said=Said(reads=reads, writes=writes, model=model if isinstance(model, str) else None)
    )


def _chosen(variants: list[Variant], layout: Layout, options: Options, problems: list[str]) -> tuple[Unit, ...]:
    by_layer: dict[int | None, list[Variant]] = {}
    for v in variants:
        by_layer.setdefault(v.layer, []).append(v)
    asked = None if layout is CROSS_LAYOUT else options.layers  # of those a part is of no use
    wanted = by_layer if asked is None else {i: v for i, v in by_layer.items() if i in (None, *asked)}
    units, several = [], []
    for layer, found in wanted.items():
        fitting = _nearest([v for v in found if options.width in (None, v.width)], options.l0)
        if len(fitting) == 1:
            units.append(Unit(layer, ((fitting[0].name, (layout,)),)))
        else:
            several.append(_choices(layer, found))
    if several:
        shown = "; ".join(several[:3])
        problems.append(f"give width= and l0= that choose one file a layer (l0= a number takes the nearest): {shown}")
    return tuple(units)


def _nearest(found: list[Variant], l0: float | str | None) -> list[Variant]:
    """Those with the sparsity that is asked for: as it is called, or the nearest number."""
    if l0 is None:
        return found
    named = [v for v in found if v.l0 == str(l0)]
    numbers = [v for v in found if v.l0 is not None and re.fullmatch(r"\d+(\.\d+)?", v.l0)]
    if named or isinstance(l0, str) or not numbers:
        return named
    best = min(abs(float(str(v.l0)) - l0) for v in numbers)
    return [v for v in numbers if abs(float(str(v.l0)) - l0) == best]


def _choices(layer: int | None, found: list[Variant]) -> str:
    pairs = sorted({(v.width or "?", v.l0 or "?") for v in found})
    where = "there are" if layer is None else f"layer {layer} has"
    return f"{where} " + ", ".join(f"width {w} l0 {n}" for w, n in pairs[:12])

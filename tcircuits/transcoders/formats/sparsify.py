"""sparsify's folders of one layer each: `{hookpoint}/cfg.json` and `{hookpoint}/sae.safetensors`.

    f = topk(relu(x' W^T + b)),    y = f W_dec + b_dec (+ x W_skip^T),    x' = x - b_dec unless `transcode`

with encoder.weight and W_dec [F,D]. It reads and writes what a module takes and returns: what the MLP itself reads, and
what it makes before any post-norm. Source: github.com/EleutherAI/sparsify, releases up to 1.3.
"""

from collections.abc import Mapping
from typing import Any

from tcircuits.files.limits import read_json
from tcircuits.transcoders.formats import clt_training
from tcircuits.transcoders.formats.found import Layout, Said, Unit, Units
from tcircuits.transcoders.formats.hooks import layer_of_module
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.options import Options
from tcircuits.types import InputError

NAME = "sparsify"
CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
TENSORS = {
    "encoder.weight": ("w_enc", "FD"),
    "encoder.bias": ("b_enc", "F"),
    "W_dec": ("w_dec", "FD"),
    "b_dec": ("b_dec", "D"),
    "W_skip": ("w_skip", "OI"),
}
LAYOUT = Layout(NAME, TENSORS)
SHIFTED = Layout(NAME, TENSORS | {"b_dec": ("b_dec+pre_bias", "D")})  # without `transcode`


def marks(name: str) -> bool:
    """Whether a file of this name is one of sparsify's."""
    return name.rpartition("/")[2] == WEIGHTS


def find(place: Place, options: Options, problems: list[str]) -> Units | None:
    """The layers of a folder of such folders, or the one layer of such a folder; clt-training's have the same names."""
    units, forked = [], []
    for name in place.names:
        if not marks(name):
            continue
        folder = name.rpartition("/")[0]
        layer = next((n for part in reversed(folder.split("/")) if (n := layer_of_module(part)) is not None), None)
        if layer is None and folder:
            problems.append(f"{folder} is no MLP of a layer (layers.0.mlp, h.0.mlp ...): it cannot be replaced")
            continue
        raw = _config(place, folder, problems)
        if raw is not None:
            layout = LAYOUT if raw.get("transcode", False) is True else SHIFTED
            about = f"{folder}/{CONFIG}".lstrip("/")
            units.append(Unit(layer, ((name, (layout,)),), said_of(raw, about, problems)))
            if clt_training.is_meant(raw):
                forked.append((units[-1], raw, about))
    if forked and len(forked) == len(units):
        return clt_training.units_of(forked, _run(place, problems), problems)
    if forked:
        problems.append(f"some of its layers were trained by clt-training ({forked[0][2]}), others by sparsify")
    return Units(NAME, "transcoder", tuple(units))


def _run(place: Place, problems: list[str]) -> Mapping[str, Any]:
    """The configuration of a whole run of training, which lies above those of the layers; {} where there is none."""
    try:
        return read_json(place.get(RUN)) if RUN in place.names else {}
    except InputError as error:
        problems.append(str(error))
        return {}


def _config(place: Place, folder: str, problems: list[str]) -> Mapping[str, Any] | None:
    name = f"{folder}/{CONFIG}" if folder else CONFIG
    if name not in place.names:
        problems.append(f"{name} is missing: it says k and whether it is a transcoder (give the folder of both)")
        return None
    try:
        return read_json(place.get(name))
    except InputError as error:
        problems.append(str(error))
        return None


def said_of(raw: Mapping[str, Any], name: str, problems: list[str]) -> Said:
    """What a `cfg.json` says; older ones leave out what was the only choice then."""
    activation = raw.get("activation", "topk")
    if activation != "topk":
        problems.append(f"{name} has activation: {activation!r}; of sparsify's only 'topk' is read")
    k = raw.get("k")
    if type(k) is not int or k < 1:
        problems.append(f"{name} has k: {k!r}; it must be a whole number from 1")
        k = None
    if raw.get("signed", False) is not False:
        problems.append(f"{name} has signed: {raw['signed']!r}; the k largest by absolute value are not read")
    sizes = [raw.get(field) for field in ("num_latents", "d_in", "expansion_factor")]
    whole = [n if type(n) is int and n > 0 else 0 for n in sizes]
    d_feature = whole[0] or whole[1] * whole[2] or None
    return Said("transcoder", "mlp_in", "mlp_raw", "topk", k, signed_topk=False, d_feature=d_feature)

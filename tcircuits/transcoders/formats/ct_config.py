"""The `config.yaml` of circuit-tracer, read and written.

What the format has no word for stands in a section `tcircuits`, which other readers pass over.
Source: github.com/decoderesearch/circuit-tracer, releases up to 0.5.0.

>>> said, problems = parse({"model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
...                         "feature_output_hook": "hook_mlp_out"})
>>> said.reads, said.writes, problems
('mlp_in', 'mlp_out', [])
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tcircuits.files.limits import read_yaml
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.formats.found import Own, Said
from tcircuits.types import InputError

CONFIG = "config.yaml"
KINDS = {"transcoder_set": "transcoder", "cross_layer_transcoder": "clt"}
READS = {"hook_resid_mid": "resid_mid", "ln2.hook_normalized": "normalized", "mlp.hook_in": "mlp_in"}
WRITES = {"hook_mlp_out": "mlp_out", "mlp.hook_out": "mlp_raw"}
ACTIVATIONS = {
    "relu": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "jump_relu": "jumprelu",
    "batchtopk": "batchtopk",
}
FILLS = ("error", "neurons")
# Fields that say nothing about the arithmetic: whose dictionary it is, and where it was downloaded from.
NEUTRAL = ("model_name", "scan", "repo_id", "revision", "subfolder")
KNOWN = ("model_kind", "feature_input_hook", "feature_output_hook", "transcoders", "activation", "k", "tcircuits")
OWN_VERSION = 1
UNSTATED = Said(reads="resid_mid", writes="mlp_out")  # what circuit-tracer assumes of a folder without `config.yaml`


def read_config(path: Path, allow_unknown: Collection[str] = ()) -> tuple[Said, list[str]]:
    """What a `config.yaml` says, and everything that is wrong with it."""
    try:
        raw = read_yaml(path)
    except InputError as error:
        return Said(), [str(error)]
    if not isinstance(raw, Mapping):
        return Said(), [f"{CONFIG} holds {type(raw).__name__}, not fields with values"]
    return parse(raw, allow_unknown)


def parse(raw: Mapping[Any, Any], allow_unknown: Collection[str] = ()) -> tuple[Said, list[str]]:
    """The fields of a `config.yaml`, and everything that is wrong with them."""
    problems = []
    unknown = sorted(str(key) for key in raw if key not in (*KNOWN, *NEUTRAL, *allow_unknown))
    if unknown:
        shown = tuple(f"{name:.60}" for name in unknown[:20])
        rest = f", and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        problems.append(
            f"{CONFIG} has unknown fields {', '.join(shown)}{rest} (if they do not matter: allow_unknown={shown})"
        )

    def choice(key: str, table: Mapping[str, str]) -> str | None:
        value = raw.get(key)
        if value is not None and (not isinstance(value, str) or value not in table):
            problems.append(f"{CONFIG} has {key}: {value!r}; known are {', '.join(table)}")
        return table.get(value) if isinstance(value, str) else None

    said = Said(
        kind=choice("model_kind", KINDS),
        reads=choice("feature_input_hook", READS),
        writes=choice("feature_output_hook", WRITES),
        activation=choice("activation", ACTIVATIONS),
        k=raw.get("k"),
        model=raw["model_name"] if isinstance(raw.get("model_name"), str) else None,
        files=_files(raw.get("transcoders"), problems),
        own=_own(raw.get("tcircuits"), problems),
    )
    if said.k is not None and (type(said.k) is not int or said.k < 1):
        problems.append(f"{CONFIG} has k: {said.k!r}; it must be a whole number from 1")
        said = replace(said, k=None)
    return said, problems


def _files(value: Any, problems: list[str]) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        problems.append(f"{CONFIG} has transcoders: {value!r}; it must be a list of files, one a layer")
        return None
    return tuple(value)


def _own(value: Any, problems: list[str]) -> Own | None:
    if value is None:
        return None
    try:
        fields: dict[str, Any] = dict(value)
        version = fields.pop("version", None)
        if version != OWN_VERSION:
            raise ValueError(f"version {version!r}; this release reads version {OWN_VERSION}")
        fields["layers"] = tuple(fields["layers"])
        own = Own(**fields)
        if not all(type(n) is int for n in (*own.layers, own.n_layers)) or type(own.signed_topk) is not bool:
            raise ValueError("n_layers and layers must be whole numbers, signed_topk true or false")
        if own.fill not in FILLS or own.activation not in ACTIVATIONS.values():
            raise ValueError(f"fill: {own.fill!r} or activation: {own.activation!r} is unknown")
        return own
    except (KeyError, TypeError, ValueError) as error:
        problems.append(f"the section tcircuits of {CONFIG} cannot be read: {error}")
        return None


def config_fields(cfg: TranscoderConfig, model_name: str | None = None) -> dict[str, Any]:
    """The `config.yaml` of a dictionary.

    A threshold tensor says `jumprelu` by itself; `batchtopk` at inference is the same function where thresholds are not
    negative, so only our section tells them apart.
    """
    fields: dict[str, Any] = {"model_name": model_name} if model_name is not None else {}
    fields["model_kind"] = next(name for name, kind in KINDS.items() if kind == cfg.kind)
    fields["feature_input_hook"] = next(name for name, site in READS.items() if site == cfg.reads)
    fields["feature_output_hook"] = next(name for name, site in WRITES.items() if site == cfg.writes)
    if cfg.activation in ("relu", "topk"):
        fields["activation"] = cfg.activation
    if cfg.k is not None:
        fields["k"] = cfg.k
    fields["tcircuits"] = {
        "version": OWN_VERSION,
        "n_layers": cfg.n_layers,
        "layers": list(cfg.layers),
        "signed_topk": cfg.signed_topk,
        "fill": cfg.fill,
        "activation": cfg.activation,
    }
    return fields

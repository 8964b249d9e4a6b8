"""What the caller says about a set of dictionaries, where its files are silent or wrong."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from tcircuits.transcoders.config import ActivationName, Fill, Reads, Writes
from tcircuits.types import InputError

DecoderRows = Literal["features", "outputs"]


class Choices(TypedDict, total=False):
    """Keyword arguments of `load_transcoders` and `inspect`; what is left out is left to the files.

    Attributes:
        layers: load these layers only; without it, layers must be numbered from 0 without a gap. For a file that does
            not say its layer, the layer.
        fill: what stands for the MLP of a layer without dictionary: `error` (the default) or `neurons`.
        kind: which, where a folder holds both.
        activation, k, reads, writes: override what the files say; see `TranscoderConfig`.
        decoder_rows: what a row of `W_dec` is, `features` or `outputs`; needed only where there are as many features
            as dimensions.
        width: which width, where a folder holds several (Gemma Scope): `16k`.
        l0: which sparsity, where a folder holds several: a number takes the nearest of each layer, a text (`small`)
            the one that is called so.
        max_decoded: bytes that a compressed file may decode to (the default refuses what looks like a bomb).
        allow_unknown: fields of `config.yaml` to ignore although they are unknown.
    """

    layers: Collection[int] | None
    fill: Fill | None
    kind: Literal["transcoder", "clt"] | None
    activation: ActivationName | None
    k: int | None
    reads: Reads | None
    writes: Writes | None
    decoder_rows: DecoderRows | None
    width: str | None
    l0: float | str | None
    max_decoded: int | None
    allow_unknown: Collection[str]


@dataclass(frozen=True)
class Options:
    """`Choices`, complete and hashable; None leaves it to the files."""

    layers: tuple[int, ...] | None = None
    fill: Fill | None = None
    kind: Literal["transcoder", "clt"] | None = None
    activation: ActivationName | None = None
    k: int | None = None
    reads: Reads | None = None
    writes: Writes | None = None
    decoder_rows: DecoderRows | None = None
    width: str | None = None
    l0: float | str | None = None
    max_decoded: int | None = None
    allow_unknown: tuple[str, ...] = ()


ALLOWED: Mapping[str, tuple[str, ...]] = {
    "fill": ("error", "neurons"),
    "kind": ("transcoder", "clt"),
    "activation": ("relu", "topk", "batchtopk", "jumprelu"),
    "reads": ("resid_mid", "normalized", "mlp_in"),
    "writes": ("mlp_out", "mlp_raw"),
    "decoder_rows": ("features", "outputs"),
}


def chosen(choices: Choices) -> Options:
    """The options of a call.

    Raises:
        InputError: options that do not exist, or are none of their choices.
    """
    given: dict[str, Any] = dict(choices)
    unknown = sorted(given.keys() - Choices.__annotations__.keys())
    if unknown:
        raise InputError(f"options {', '.join(unknown)} are unknown; there are {', '.join(Choices.__annotations__)}")
    layers = given.get("layers")
    given["layers"] = None if layers is None else tuple(sorted(set(layers)))
    given["allow_unknown"] = tuple(given.get("allow_unknown", ()))
    options = Options(**given)
    check_options(options)
    return options


def check_options(options: Options) -> None:
    """Raise where an option is none of its choices."""
    wrong = [
        f"{name}={getattr(options, name)!r}; there are {', '.join(allowed)}"
        for name, allowed in ALLOWED.items()
        if getattr(options, name) not in (None, *allowed)
    ]
    if options.layers is not None and (not options.layers or min(options.layers) < 0):
        wrong.append(f"layers={options.layers}; give at least one, counted from 0")
    if options.k is not None and options.k < 1:
        wrong.append(f"k={options.k}; it is at least 1")
    if isinstance(options.l0, int | float) and not options.l0 > 0:
        wrong.append(f"l0={options.l0}; it is above 0")
    if options.max_decoded is not None and options.max_decoded < 1:
        wrong.append(f"max_decoded={options.max_decoded}; it is a number of bytes, at least 1")
    if wrong:
        raise InputError("; ".join(wrong))


def parse_choices(texts: Iterable[str]) -> Choices:
    """Choices from texts `NAME=VALUE`, as the command line takes them.

    >>> parse_choices(["layers=0,1", "l0=70", "reads=mlp_in"])
    {'layers': (0, 1), 'l0': 70.0, 'reads': 'mlp_in'}

    Raises:
        InputError: another form, an unknown name, or a value of the wrong type.
    """
    known = Choices.__annotations__
    found: Any = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known or not value:
            raise InputError(f"{text!r} is no choice: write NAME=VALUE, with NAME one of {', '.join(known)}")
        try:
            found[name] = _value(name, value)
        except ValueError:
            raise InputError(f"{text!r} is no choice: {name} takes whole numbers") from None
    check_options(chosen(found))
    return found


def _value(name: str, text: str) -> Any:
    match name:
        case "layers":
            return tuple(int(part) for part in text.split(","))
        case "allow_unknown":
            return tuple(text.split(","))
        case "k" | "max_decoded":
            return int(text)
        case "l0" if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
    return text

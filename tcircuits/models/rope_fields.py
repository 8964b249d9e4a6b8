"""Rotary settings of a published `config.json`, in the spelling of any release.

Old releases keep the base and the rotating share as fields of their own, and frequency scaling in `rope_scaling`;
newer ones keep all of it in `rope_parameters`, with one object for each kind of layer where they differ (Gemma 3).
"""

from dataclasses import dataclass

from tcircuits.models.config import RopeScaling
from tcircuits.models.fields import Fields

SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Rope:
    """Rotary settings: base, rotating share of each head, frequency scaling, base of layers with a window."""

    theta: float
    fraction: float
    scaling: RopeScaling | None
    theta_local: float | None = None


def _agreed(fields: list[Fields | None], names: tuple[str, ...], default: float) -> float:
    """The one value that a setting has under all its spellings."""
    found = {f.where + n: f.number(n) for f in fields if f is not None for n in names if f.has(n)}
    if len(set(found.values())) > 1:
        assert fields[0] is not None
        fields[0].problems.append("one setting with two values: " + ", ".join(f"{k}={v}" for k, v in found.items()))
    return next(iter(found.values()), default)


def _scaling(f: Fields | None) -> RopeScaling | None:
    if f is None:
        return None
    kinds = {"default": None, "linear": "linear", "llama3": "llama3"}
    kind = f.choice("rope_type" if f.has("rope_type") else "type", kinds, "default")
    if f.has("rope_type"):
        f.only("type", (f.get("rope_type"),))
    if kind is None:
        for name in SCALING:  # files of the default type may carry them; nothing uses them
            f.get(name)
        return None
    factor = f.number("factor")
    if kind == "linear":
        f.get(SCALING[3])
        return RopeScaling("linear", factor)
    low, high = f.number("low_freq_factor"), f.number("high_freq_factor")
    if low == high:
        f.wrong("high_freq_factor", f"different from low_freq_factor={low}")
    return RopeScaling("llama3", factor, low, high, f.size(SCALING[3]))


def _same_scaling(f: Fields, new: Fields | None, old: Fields | None) -> RopeScaling | None:
    scalings = [_scaling(new), _scaling(old)]
    if new is not None and old is not None and scalings[0] != scalings[1]:
        f.problems.append("rope_parameters and rope_scaling say different things")
    return scalings[0] or scalings[1]


def _share(f: Fields, parts: list[Fields | None], names: tuple[str, ...], default: float, partial: bool) -> float:
    share = _agreed(parts, (*names, "partial_rotary_factor"), default)
    if share > 1 or (share != 1 and not partial):
        f.problems.append(f"a rotating share of {share} of each head; it must be " + ("at most 1" if partial else "1"))
    return share


def read_rope(
    f: Fields,
    theta_names: tuple[str, ...] = ("rope_theta",),
    fraction_names: tuple[str, ...] = ("partial_rotary_factor",),
    *,
    theta: float = 10000.0,
    fraction: float = 1.0,
    partial: bool = False,
) -> Rope:
    """Rotary settings that all layers share.

    Args:
        f: the configuration.
        theta_names: where the base is kept in the old spelling.
        fraction_names: where the rotating share is kept in the old spelling.
        theta: the base where the file says nothing.
        fraction: the share where the file says nothing.
        partial: whether this family can rotate less than the whole head.
    """
    new, old = f.section("rope_parameters"), f.section("rope_scaling")
    base = _agreed([f, new], (*theta_names, "rope_theta"), theta)
    return Rope(base, _share(f, [f, new], fraction_names, fraction, partial), _same_scaling(f, new, old))


def read_rope_by_kind(f: Fields, *, theta: float, theta_local: float) -> Rope:
    """Rotary settings of a family whose layers with a window have a base of their own, and no frequency scaling.

    Args:
        f: the configuration.
        theta: base of the other layers where the file says nothing.
        theta_local: base of layers with a window where the file says nothing.
    """
    both, old = f.section("rope_parameters"), f.section("rope_scaling")
    whole, local = (None if both is None else both.section(kind) for kind in KINDS)
    base = _agreed([f, whole], ("rope_theta",), theta)
    _share(f, [f, whole, local], (), 1.0, False)
    scaling = _same_scaling(f, whole, old)
    if _scaling(local) is not None:
        f.problems.append("rope_parameters.sliding_attention scales frequencies; layers with a window cannot")
    bases = {
        part.where + name: part.number(name)
        for part, name in ((f, "rope_local_base_freq"), (local, "rope_theta"))
        if part is not None and part.has(name)
    }
    if len(set(bases.values())) > 1:
        f.problems.append("one setting with two values: " + ", ".join(f"{k}={v}" for k, v in bases.items()))
    return Rope(base, 1.0, scaling, next(iter(bases.values()), theta_local))

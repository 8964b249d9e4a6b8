"""Edits of activations, as data: what to set, add or scale, at which site, layer and positions.

An edit is a pytree, so one compiled forward pass serves any values, layers and positions, and many candidate edits go
through one `vmap`. Positions count real tokens from the start of the prompt, whatever the padding.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.types import Array, Bool, Float, InputError, Int

Mode = Literal["set", "add", "scale"]
SITES = (
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_raw",
    "mlp_out",
    "resid_post",
    "final_norm",
    "logits",
)
END = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Edit:
    """E edits of one site, applied in order.

    Attributes:
        layer: layer of each edit (0 for `final_norm` and `logits`).
        start, stop: the positions start <= p < stop.
        value: what is set, added or multiplied; trailing axes as the site has at one position (for `pattern`: H, S).
        where: which of those entries change; None is all.
    """

    site: str = field(metadata={"static": True})
    mode: Mode = field(metadata={"static": True})
    layer: Int[Array, " E"]
    start: Int[Array, " E"]
    stop: Int[Array, " E"]
    value: Float[Array, "E *X"]
    where: Bool[Array, "E *X"] | None = None


def edit(
    site: str,
    layer: int,
    value: Any,
    *,
    position: int | tuple[int, int | None] | None = None,
    mode: Mode = "set",
    where: Any = None,
) -> Edit:
    """One edit. `position` is a position, a half-open range (start, stop or None), or None for all positions.

    To steer everything that `generate` writes, give `position=(len(prompt), None)`.

    Raises:
        InputError: an unknown site or mode, or an empty range.
    """
    if site not in SITES:
        raise InputError(f"site {site!r} is unknown; there are {', '.join(SITES)}")
    if mode not in ("set", "add", "scale"):
        raise InputError(f"mode {mode!r} is unknown; there are set, add, scale")
    start, stop = (
        (0, None) if position is None else position if isinstance(position, tuple) else (position, position + 1)
    )
    if start < 0 or (stop is not None and stop <= start):
        raise InputError(f"position={position!r} is no range of positions: give start >= 0 and stop > start")
    number = jnp.asarray([layer], jnp.int32)
    last = END if stop is None else stop
    return Edit(
        site,
        mode,
        number,
        jnp.asarray([start], jnp.int32),
        jnp.asarray([last], jnp.int32),
        jnp.asarray(value)[None],
        None if where is None else jnp.asarray(where)[None],
    )


def check_edits(cfg: ModelConfig, edits: tuple[Edit, ...], length: int, *, keys: int | None = None) -> None:
    """Raise for edits that would hit nothing, or whose values do not fit their site.

    Args:
        cfg: the model's sizes.
        edits: not traced.
        length: of the prompt, with what is generated after it.
        keys: entries of a row of `pattern`; None is `length`.

    Raises:
        InputError: a layer or position outside, a value of another shape or that is NaN; all of them at once.
    """
    wrong = []
    for e in edits:
        n_layers = 1 if e.site in ("final_norm", "logits") else cfg.n_layers
        wrong += [
            f"{e.site}: layer {i} is outside 0..{n_layers - 1}" for i in np.asarray(e.layer) if not 0 <= i < n_layers
        ]
        wrong += outside(np.asarray(e.start), np.asarray(e.stop), length, f"{e.site}: ")
        shape, given = _shape(cfg, e.site, length if keys is None else keys), [e.value.shape[1:]]
        given += [] if e.where is None else [e.where.shape[1:]]
        if any(
            len(s) > len(shape) or any(a not in (1, b) for a, b in zip(s[::-1], shape[::-1], strict=False))
            for s in given
        ):
            wrong.append(f"{e.site}: a value has shape {given[0]}; at one position the site has {shape}")
        if np.isnan(np.asarray(e.value, np.float64)).any():  # an infinite one may be meant: a logit that is never drawn
            wrong.append(f"{e.site}: a value is NaN")
    if wrong:
        raise InputError("these edits cannot be applied: " + "; ".join(wrong))


def outside(start: np.ndarray, stop: np.ndarray, length: int, what: str = "") -> list[str]:
    """What to say about ranges of positions that leave a text of `length` tokens."""
    return [
        f"{what}position {a}{'' if b in (END, a + 1) else f'..{b - 1}'} is outside the {length} tokens"
        for a, b in zip(start.tolist(), stop.tolist(), strict=True)
        if a >= length or length < b != END
    ]


def _shape(cfg: ModelConfig, site: str, keys: int) -> tuple[int, ...]:
    """What a site has at one position."""
    heads, kv = (cfg.n_heads, cfg.d_head), (cfg.n_kv_heads, cfg.d_head)
    shapes = {"q": heads, "k": kv, "v": kv, "z": heads, "pattern": (cfg.n_heads, keys), "logits": (cfg.d_vocab,)}
    return shapes.get(site, (cfg.d_model,))


def apply_edits(
    edits: tuple[Edit, ...], site: str, layer: Any, positions: Int[Array, " T"], x: Float[Array, "T *X"]
) -> Array:
    """`x` at `site` and `layer` after the edits that hit it."""

    def one(mode: Mode) -> Any:
        def step(x: Array, e: tuple[Array, ...]) -> tuple[Array, None]:
            at, start, stop, value, *where = e
            hit = (at == layer) & (start <= positions) & (positions < stop)
            hit = hit.reshape(hit.shape + (1,) * (x.ndim - 1))
            hit = hit & where[0] if where else hit
            value = value.astype(x.dtype)
            return jnp.where(hit, {"set": value, "add": x + value, "scale": x * value}[mode], x), None

        return step

    for e in edits:
        if e.site == site:
            items = (e.layer, e.start, e.stop, e.value) + (() if e.where is None else (e.where,))
            x, _ = jax.lax.scan(one(e.mode), x, items)
    return x

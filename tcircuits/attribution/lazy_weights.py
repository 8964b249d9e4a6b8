"""The weights between one feature and all others, of a set that stays on disk.

Every feature's weight needs every decoder below the feature and every encoder above it. These pass by once, in blocks
(`lazy.products`), each against one covector: that of what the feature reads, carried down to the site where a decoder
writes, or of what it writes, carried up to the site that an encoder reads.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.frozen import read_up
from tcircuits.attribution.weights import Still, descend
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Hold
from tcircuits.models.params import Params
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.transcoders.lazy import LazyTranscoders, products
from tcircuits.transcoders.streaming import Progress
from tcircuits.types import Array, Float


@partial(jax.jit, static_argnames=("cfg",))
def _covectors(
    cfg: ModelConfig,
    params: Params,
    d: Transcoders,
    hold: Hold,
    vec: Float[Array, "N D"],
    top: Array,
    streams: Float[Array, "L+1 N D"],
) -> tuple[Float[Array, "L D"], Float[Array, "L D"]]:
    """What a decoder of each layer is multiplied with (0 from `top` on), and an encoder of each layer."""
    maps = Still(cfg, params, d, hold)

    def down(m: Array) -> Array:
        g = maps.written(m, descend(maps, vec[:1, None], top, m + 1))[0, 0]
        return jnp.where(m < top, g, 0.0)

    def up(m: Array) -> Array:
        block, h = maps.at(m)
        return read_up(cfg, d, block.norm2, h.norm2, streams[m, :1], False)[0]

    layers = jnp.arange(cfg.n_layers)
    with jax.default_matmul_precision("highest"):
        return jax.lax.map(down, layers), jax.lax.map(up, layers)


def told_rows(lazy: LazyTranscoders, layer: int, top: int) -> str:
    """What `all_weights` reads whole, for people: of a feature of `layer` whose covector reads at layer `top`."""
    below = [i for i in lazy.cfg.layers if i < top]
    above = [i for i in lazy.cfg.layers if i > layer]
    sides = [f"all decoders of layers {', '.join(map(str, below))}"] if below else []
    sides += [f"all encoders of layers {', '.join(map(str, above))}"] if above else []
    return " and ".join(sides)


def all_weights(
    model: Any,
    small: Transcoders,
    lazy: LazyTranscoders,
    hold: Hold,
    layer: int,
    reads: tuple[Array, int],
    streams: Array,
    narrow: dict[str, np.ndarray],
    progress: Progress | None = None,
) -> dict[str, Float[np.ndarray, "L F"]]:
    """Weights from all features of earlier layers (`earlier`) and to all of later ones (`later`).

    Args:
        model: from `load_model`.
        small: the feature alone, as a set of its own.
        lazy: the whole set.
        hold: denominators.
        layer: of the feature.
        reads: covector [1, D] and the layer where it reads.
        streams: what the feature writes (`written_streams`).
        narrow: the same weights from `small`, right for layers that neurons fill.
        progress: called with (blocks read, blocks in all), for decoders and encoders apart.
    """
    c, (vec, top) = lazy.cfg, reads
    down, up = (host(x) for x in _covectors(model.cfg, model.params, small, hold, vec, jnp.asarray(top), streams))
    slots = {at: slot for slot, at in enumerate(c.layers)}
    if c.kind == "clt":
        wanted = {pair(c, i, m): (i, m) for m in range(top) for i in range(m + 1)}
    else:
        wanted = {slots[i]: (i, i) for i in c.layers if i < top}
    decoders = products(lazy, "w_dec", {row: down[m] for row, (_, m) in wanted.items()}, progress)
    encoders = products(lazy, "w_enc", {slots[m]: up[m] for m in c.layers if m > layer}, progress)
    width = max(c.d_feature, model.cfg.d_mlp if c.fill == "neurons" else 0)
    out = {}
    for name in ("earlier", "later"):
        out[name] = np.zeros((model.cfg.n_layers, width), narrow[name].dtype)
        for at in range(model.cfg.n_layers):
            if at not in slots and c.fill == "neurons":
                out[name][at, : model.cfg.d_mlp] = narrow[name][at, : model.cfg.d_mlp]
    for row, (i, _) in wanted.items():
        out["earlier"][i, : c.d_feature] += decoders[row]
    for slot, values in encoders.items():
        out["later"][c.layers[slot], : c.d_feature] = values
    return out

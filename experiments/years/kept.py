"""An MLP that keeps the first k of its parts (features of a dictionary, or neurons), in some order, and loses the rest.

What it writes is base + sum of the kept value_i row_i: the base is the decoder's bias and the skip, or the MLP's bias.
The rest of the model runs on, patterns and norms included.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.years.prompts import Prompts
from tcircuits.models.config import ModelConfig
from tcircuits.models.edits import Edit
from tcircuits.models.forward import forward, mlp_hidden, normalised
from tcircuits.models.params import Params
from tcircuits.transcoders.config import MLP_READS
from tcircuits.transcoders.dictionary import encode
from tcircuits.types import Array, Bool, Float, InputError, Int


@dataclass(frozen=True)
class Parts:
    """Values [N, T, F] of an MLP's parts, the rows [F, D] they write, the base [N, T, D], and the site written to."""

    site: str
    layer: int
    value: Array
    rows: Array
    base: Array


def neurons(model: tc.Model, layer: int, prompts: Prompts) -> Parts:
    """The model's own neurons."""
    x = _site(model, "mlp_in", layer, prompts)
    p = jax.tree.map(lambda a: a[layer], model.params.blocks.mlp)
    base = jnp.zeros((*x.shape[:2], model.cfg.d_model)) + (0.0 if p.b_out is None else p.b_out)
    return Parts("mlp_raw", layer, mlp_hidden(model.cfg, p, x), p.w_out, base)


def features(model: tc.Model, d: tc.Transcoders, layer: int, prompts: Prompts) -> Parts:
    """The features of a per-layer dictionary.

    Raises:
        InputError: a cross-layer dictionary, neurons, a layer without dictionary, a site that this study does not read.
    """
    if d.cfg.kind not in ("transcoder", "sae"):
        raise InputError(f"dictionaries of kind {d.cfg.kind} do not stand in for one MLP: give per-layer transcoders")
    if layer not in d.cfg.layers:
        raise InputError(f"layer {layer} has no dictionary in this set; it has {list(d.cfg.layers)}")
    slot, x = d.cfg.layers.index(layer), _site(model, d.cfg.reads, layer, prompts)
    assert d.w_dec is not None
    assert d.b_dec is not None
    base = jnp.broadcast_to(d.b_dec[slot], x.shape)
    if d.w_skip is not None:
        base = base + jnp.einsum("NTD,DE->NTE", x, d.w_skip[slot])
    return Parts(d.cfg.writes, layer, encode(d, slot, x), d.w_dec[slot], base)


def _site(model: tc.Model, site: str, layer: int, prompts: Prompts) -> Array:
    """What a dictionary reads in a layer, [N, T, D]."""
    if site not in (*MLP_READS, "mlp_out"):
        raise InputError(f"this study reads dictionaries at {', '.join(MLP_READS)} or mlp_out, not at {site}")
    name = "resid_mid" if site == "normalized" else site
    x = forward(model.cfg, model.params, jnp.asarray(prompts.tokens), sites=(name,)).acts[name][layer]
    return normalised(model.cfg, x) if site == "normalized" else x


@partial(jax.jit, static_argnames=("cfg", "site", "everywhere"))
def _with(
    cfg: ModelConfig,
    params: Params,
    site: str,
    layer: Any,
    everywhere: bool,
    tokens: Int[Array, "N T"],
    last: Int[Array, " N"],
    years: Int[Array, "100"],
    parts: tuple[Float[Array, "N T F"], Float[Array, "F D"], Float[Array, "N T D"]],
    masks: Bool[Array, "K F"],
) -> Float[Array, "N K 100"]:
    """Logits of the years after each prompt, with the MLP's parts masked in K ways."""
    value, rows, base = parts

    def prompt(item: tuple[Array, ...]) -> Array:
        tokens, last, value, base = item
        places = jnp.arange(len(tokens)) if everywhere else last[None]
        value, base = value[places], base[places]

        def masked(mask: Array) -> Array:
            written = base + jnp.einsum("EF,FD->ED", value * mask, rows)
            at = jnp.full(places.shape, layer, jnp.int32)
            edit = Edit(site, "set", at, places.astype(jnp.int32), places.astype(jnp.int32) + 1, written)
            return forward(cfg, params, tokens[None], edits=(edit,)).logits[0, last][years]

        return jax.vmap(masked)(masks)

    return jax.lax.map(prompt, (tokens, last, value, base))


def logits(model: tc.Model, parts: Parts, prompts: Prompts, masks: np.ndarray, *, everywhere: bool) -> np.ndarray:
    """Logits of the years [N, K, 100] with only the parts of each mask [K, F], at the last position or everywhere."""
    given = (jnp.asarray(x) for x in (prompts.tokens, prompts.last, prompts.years))
    arrays = parts.value, parts.rows, parts.base
    return np.asarray(
        _with(model.cfg, model.params, parts.site, parts.layer, everywhere, *given, arrays, jnp.asarray(masks))
    )


def real(model: tc.Model, prompts: Prompts) -> np.ndarray:
    """Logits of the years [N, 100] of the model as it is."""
    out = forward(model.cfg, model.params, jnp.asarray(prompts.tokens)).logits
    return np.asarray(out)[np.arange(len(prompts.last)), prompts.last][:, prompts.years]


def prefixes(order: np.ndarray, n: int) -> np.ndarray:
    """Masks [n + 1, F] that keep the first 0, 1, .. n of `order`."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place < np.arange(n + 1)[:, None]

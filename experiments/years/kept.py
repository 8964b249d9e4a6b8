"""An MLP that keeps some of its parts (features of a dictionary, or neurons) at one position, and loses the rest.

What it writes there is base + sum_i value_i row_i: the base is the decoder's bias and the skip, or the MLP's bias, and
what is lost has the value zero, or its mean over other prompts. The rest of the model runs on, patterns and norms
included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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


@partial(jax.jit, static_argnames=("cfg", "site"))
def _with(
    cfg: ModelConfig,
    params: Params,
    site: str,
    layer: Int[Array, ""],
    prompts: tuple[Int[Array, "N T"], Int[Array, " N"], Int[Array, " N"]],
    years: Int[Array, "100"],
    parts: tuple[Float[Array, "N F"], Float[Array, "F D"], Float[Array, "N D"]],
    absent: Float[Array, " F"],
    masks: Bool[Array, "K F"],
) -> Float[Array, "N K 100"]:
    """Logits of the years at each prompt's end, with the MLP's parts masked in K ways at one position."""
    values, rows, bases = parts

    def prompt(item: tuple[Array, ...]) -> Array:
        tokens, last, place, value, base = item

        def masked(mask: Array) -> Array:
            written = base + jnp.where(mask, value, absent) @ rows
            edit = Edit(site, "set", layer[None], place[None], place[None] + 1, written[None])
            return forward(cfg, params, tokens[None], edits=(edit,)).logits[0, last][years]

        return jax.vmap(masked)(masks)

    return jax.lax.map(prompt, (*prompts, values, bases))


def logits(
    model: tc.Model, parts: Parts, prompts: Prompts, place: str, masks: np.ndarray, absent: np.ndarray | float = 0.0
) -> np.ndarray:
    """Logits of the years [N, K, 100], keeping the parts of each mask [K, F] at `place`; others have value `absent`."""
    n, positions = np.arange(len(prompts.last)), prompts.place(place)
    places = tuple(jnp.asarray(x, jnp.int32) for x in (prompts.tokens, prompts.last, positions))
    own = parts.value[n, positions], parts.rows, parts.base[n, positions]
    gone = jnp.broadcast_to(jnp.asarray(absent, own[0].dtype), own[0].shape[1:])
    run = partial(_with, model.cfg, model.params, parts.site, jnp.asarray(parts.layer, jnp.int32))
    return np.asarray(run(places, jnp.asarray(prompts.years), own, gone, jnp.asarray(masks)))


def at(parts: Parts, prompts: Prompts, place: str) -> np.ndarray:
    """Values [N, F] of the parts at a place, in float64."""
    return np.asarray(parts.value, np.float64)[np.arange(len(prompts.last)), prompts.place(place)]


def real(model: tc.Model, prompts: Prompts) -> np.ndarray:
    """Logits of the years [N, 100] of the model as it is."""
    out = forward(model.cfg, model.params, jnp.asarray(prompts.tokens)).logits
    return np.asarray(out)[np.arange(len(prompts.last)), prompts.last][:, prompts.years]


def prefixes(order: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Masks [K, F] that keep so many of the first of `order`."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place < np.asarray(counts)[:, None]

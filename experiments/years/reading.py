"""What weights alone say of features that tell years apart (Dunefsky et al. 2024, Figure 5 and appendix G).

- `promotes`: a feature's direct effect on each year's logit, their mean taken off (units of its activation, the final
  norm's denominator left out);
- `answers`: how the token of each start year excites it. A feature of the first layer at the year itself reads the
  embedding. Others read the ten layer-0 features that it weighs most, directly or through one head,

      answers(y) = sum_i w_i <W_E[y], e_i>,        w_i = <d_i O_h, e>

  with e, d encoder and decoder rows, each times the norms' gains.

Both are set beside the feature's mean activation after each start year.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import tcircuits as tc
from experiments.years.prompts import Prompts
from tcircuits.attribution.forward_weights import direct_logits
from tcircuits.attribution.weights import deembed, feature_covectors, pullback, through_heads, unit_hold
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward
from tcircuits.models.params import Params
from tcircuits.types import Array, Float, Int

READ = 10  # layer-0 features that stand for what a feature answers to


@dataclass(frozen=True)
class Reading:
    """Of N features: effects on years [N, 100], answers to start years [N, 100]; the head they are read through."""

    promotes: np.ndarray
    answers: np.ndarray
    head: tuple[int, int] | None


def years_head(model: tc.Model, layer: int, prompts: Prompts) -> tuple[int, int]:
    """The head up to this layer that looks most from the last position to the start year, on average."""
    out = forward(model.cfg, model.params, jnp.asarray(prompts.tokens), sites=("pattern",)).acts["pattern"]
    pattern = np.asarray(out)  # [L, N, H, T, S]
    n = np.arange(len(prompts.last))
    seen = pattern[:, n, :, prompts.last, prompts.start].mean(0)  # indexed axes come first: [N, L, H]
    seen[layer if model.cfg.parallel else layer + 1 :] = -1
    top, head = np.unravel_index(int(np.argmax(seen)), seen.shape)
    return int(top), int(head)


@partial(jax.jit, static_argnames=("cfg", "head"))
def _weights(
    cfg: ModelConfig,
    params: Params,
    d: tc.Transcoders,
    layer: Int[Array, ""],
    index: Int[Array, " N"],
    years: Int[Array, "100"],
    head: tuple[int, int] | None,
) -> tuple[Float[Array, "N Y"], Float[Array, "N Y"]]:
    """Effects on the years' logits, and answers to the years' tokens."""
    hold, at = unit_hold(cfg, params.embed.dtype), jnp.full(index.shape, layer)
    promotes = direct_logits(cfg, params, d, hold, at, index)[:, years]
    u, top = feature_covectors(cfg, params, d, hold, at, index), layer
    if head is not None:
        u, top = through_heads(cfg, params, d, hold, u, layer, (head,)), jnp.asarray(head[0])
    direct = deembed(cfg, params, d, hold, u, top)[:, years]
    weights = pullback(cfg, params, d, hold, u, top, 0)
    most, which = jax.lax.top_k(weights, READ)
    zero = jnp.zeros(which.size, jnp.int32)
    first = feature_covectors(cfg, params, d, hold, zero, which.ravel())
    reads = deembed(cfg, params, d, hold, first, 0)[:, years].reshape(*which.shape, -1)
    through = jnp.einsum("NR,NRY->NY", most, reads)
    return promotes - promotes.mean(1, keepdims=True), jnp.where(top > 0, through, direct)


def read(model: tc.Model, d: tc.Transcoders, layer: int, index: np.ndarray, prompts: Prompts, place: str) -> Reading:
    """Features of a layer by weights, as read at a place."""
    head = years_head(model, layer, prompts) if place == "last" else None
    years = jnp.asarray(prompts.years)
    at = jnp.asarray(layer), jnp.asarray(index, jnp.int32)
    promotes, answers = _weights(model.cfg, model.params, replace(d, source=""), *at, years, head)
    return Reading(np.asarray(promotes), np.asarray(answers), head)


def by_year(values: Float[np.ndarray, "N F"], yy: Int[np.ndarray, " N"]) -> Float[np.ndarray, "F Y"]:
    """Mean value after each start year; NaN where no prompt has it."""
    out = np.full((values.shape[1], 100), np.nan)
    for y in np.unique(yy):
        out[:, y] = values[yy == y].mean(0)
    return out


def told(reading: Reading, values: Float[np.ndarray, "N F"], yy: np.ndarray, index: np.ndarray) -> list[dict[str, Any]]:
    """A row for each feature: where it is on, what it promotes, and how far `answers` predicts it (Spearman)."""
    rows = []
    for i, active in enumerate(by_year(values, yy)):
        seen = ~np.isnan(active)
        rho = scipy.stats.spearmanr(reading.answers[i, seen], active[seen]).statistic if active[seen].any() else None
        rows.append({
            "feature": int(index[i]),
            "head": reading.head,
            "activation": [None if np.isnan(a) else round(float(a), 4) for a in active],
            "promotes": np.round(reading.promotes[i].astype(float), 4),
            "promotes_most": int(np.argmax(reading.promotes[i])),
            "answers": np.round(reading.answers[i].astype(float), 4),
            "answers_to_activation": None if rho is None or np.isnan(rho) else float(rho),
        })  # fmt: skip
    return rows

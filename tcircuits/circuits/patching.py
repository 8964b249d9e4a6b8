"""Activation patching: one site of one layer at one position takes its value from the other run, place by place.

    denoise   the counterfactual with the clean value put in:  (m - m(other)) / (m(clean) - m(other))
    noise     the prompt with the counterfactual's put in:     (m(clean) - m) / (m(clean) - m(other))

m is the metric, averaged over prompts before the ratio is taken; 1 is the whole difference. Positions count from the
end, so that prompts of unequal length meet at the answer. All places go through the model in one compiled program.

Source: Meng et al. 2022 (arXiv 2202.05262), causal tracing; Wang et al. 2022 (arXiv 2211.00593) for heads.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.circuits.metrics import check_range
from tcircuits.circuits.running import metric, parts
from tcircuits.models.config import ModelConfig
from tcircuits.models.edits import Edit
from tcircuits.models.forward import check_request, forward_one
from tcircuits.models.model import Model
from tcircuits.models.params import Params
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour, Metric
from tcircuits.types import Array, Float, InputError

Direction = Literal["denoise", "noise"]
HEADS = ("q", "k", "v", "z")
STREAM = ("resid_pre", "attn_out", "mlp_out")
AT_ONCE = 64


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        direction: of `Direction`.
        places: by site, the share of the metric's difference, [L, T] or for sites of heads [L, H, T] (key/value heads
            for k and v).
        clean, other: the metric of the prompts and of their counterfactuals.
        tokens: how many prompts have a token at each position.
    """

    direction: str
    places: dict[str, Float[np.ndarray, "L *H T"]]
    clean: float
    other: float
    tokens: Float[np.ndarray, " T"]


def patching_sweep(
    model: Model,
    behaviour: Behaviour,
    *,
    sites: tuple[str, ...] = STREAM,
    direction: Direction = "denoise",
    split: str = "report",
    batch: int = 16,
) -> Sweep:
    """Patch every layer and position (and head) of some sites, on the prompts of a split.

    Raises:
        InputError: an unknown direction, a site that the model does not have or that has no layers, a metric that is
            the same for prompts and counterfactuals.
    """
    if direction not in get_args(Direction):
        raise InputError(f"direction {direction!r} is unknown; there are {', '.join(get_args(Direction))}")
    outside = [s for s in sites if s in ("pattern", "final_norm", "logits")]
    if outside or not sites:
        raise InputError(f"sites {list(sites)}: give at least one, without {outside or 'pattern, final_norm, logits'}")
    check_request(model.cfg, sites, ())
    if behaviour.model != model.name:
        raise InputError(f"the behaviour is in the tokens of {behaviour.model!r}, the model is {model.name!r}")
    p, found = behaviour[split], []
    for part in parts(model, p, batch):
        found.append(jax.tree.map(host, _sweep(model.cfg, sites, behaviour.metric, direction, model.params, part)))
    clean, other, places = jax.tree.map(lambda *x: np.concatenate(x)[: p.n], *found)
    check_range(clean, other)
    gap, start = clean.mean() - other.mean(), other.mean() if direction == "denoise" else clean.mean()
    sign = 1.0 if direction == "denoise" else -1.0
    shares = {site: sign * (places[site].mean(0) - start) / gap for site in sites}
    return Sweep(direction, shares, float(clean.mean()), float(other.mean()), p.valid.sum(0).astype(float))


@partial(jax.jit, static_argnames=("cfg", "sites", "name", "direction"))
def _sweep(
    cfg: ModelConfig,
    sites: tuple[str, ...],
    name: Metric,
    direction: Direction,
    params: Params,
    prompts: dict[str, Array],
) -> tuple[Array, Array, dict[str, Array]]:
    """Metrics of the clean and the other run [N], and of every patched one [N, L, *H, T]."""

    def one(p: dict[str, Array]) -> tuple[Array, Array, dict[str, Array]]:
        runs = {k: forward_one(cfg, params, p[k], mask=p["valid"], sites=sites)[0] for k in ("clean", "other")}
        told = {k: metric(name, out.logits[p["at"]], p["right"], p["wrong"]) for k, out in runs.items()}
        base, source = ("other", "clean") if direction == "denoise" else ("clean", "other")
        position = jnp.maximum(jnp.cumsum(p["valid"]) - 1, 0)

        def patched(site: str) -> Array:
            values = runs[source].acts[site]  # [L, T, ...]
            L, T = values.shape[:2]
            heads = values.shape[2] if site in HEADS else 1

            def place(at: Array) -> Array:
                layer, head, t = at // (heads * T), at // T % heads, at % T
                where = (jnp.arange(heads) == head)[None, :, None] if site in HEADS else None
                start = position[t][None]
                edit = Edit(site, "set", layer[None].astype(jnp.int32), start, start + 1, values[layer, t][None], where)
                out, _, _ = forward_one(cfg, params, p[base], mask=p["valid"], edits=(edit,))
                return jnp.where(p["valid"][t], metric(name, out.logits[p["at"]], p["right"], p["wrong"]), told[base])

            found = jax.lax.map(place, jnp.arange(L * heads * T), batch_size=AT_ONCE)
            return found.reshape((L, heads, T) if site in HEADS else (L, T))

        return told["clean"], told["other"], {site: patched(site) for site in sites}

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(prompts)


def strongest(sweep: Sweep, n: int = 10) -> list[tuple[str, Any, float]]:
    """The n places of the largest size: site, indices (layer, head, position from the end, -1 the last), share."""
    found = []
    for site, values in sweep.places.items():
        for at in np.argsort(-np.abs(values), axis=None, kind="stable")[:n]:
            *where, t = (int(i) for i in np.unravel_index(at, values.shape))
            found.append((site, (*where, t - values.shape[-1]), float(values[(*where, t)])))
    return sorted(found, key=lambda row: -abs(row[2]))[:n]

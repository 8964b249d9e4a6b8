"""How much each unit matters, by the field's methods behind one name each.

With m the metric, v a unit's value on the prompt and v' its reference (the counterfactual, the mean, or zero):

    gradient    (v - v') dm/dv on the prompt: attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348)
    relp        the same with the rules of relevance propagation in place of the gradient's (RelP,
                arXiv 2508.21258; `models.config.RelevanceConfig`); of edges, patterns keep their derivative
    ig          the same gradient averaged on the line on which all units go from v' to v together, Gauss-Legendre
                points; scores sum to m(all) - m(none) (integrated gradients, Sundararajan et al. 2017; for circuits
                Hanna et al. 2024, arXiv 2403.17806, who move the inputs)
    eap-ig      of edges: (v - v') times the gradient at the reader, averaged on the line between the embeddings of the
                counterfactual and the prompt (Hanna et al. 2024's inputs), Gauss-Legendre points
    exact       m(all) - m(all but this one): activation patching of one unit at a time
    activation  mean size of v (of an edge: of what its writer writes)
    random      uniform

Gradients go through the mask of `forward.run`: m(mask) = m with unit = mask v + (1 - mask) v', whose derivative at 1 is
(v - v') dm/dv. One backward pass serves all units. With edges (`tcircuits.circuits.edges`) `gradient` is edge
attribution patching, and `exact` is exact edge patching.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.circuits.edge_forward import Written, vectors
from tcircuits.circuits.edge_gradients import edge_scores
from tcircuits.circuits.edges import Edges
from tcircuits.circuits.forward import Errors, Values
from tcircuits.circuits.running import (
    Ablation,
    Setting,
    Worth,
    both,
    check,
    masked,
    mean_values,
    metric,
    parts,
    record,
    run_circuits,
)
from tcircuits.circuits.units import Units
from tcircuits.models.config import with_relevance
from tcircuits.models.model import Model
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, InputError

Method = Literal["gradient", "relp", "ig", "eap-ig", "exact", "activation", "random"]
POINTS = 8
MOST_EXACT = 20_000  # units that are ablated one by one without being told


@dataclass(frozen=True)
class UnitScores:
    """Scores of units, and what they cost.

    Attributes:
        method: of `Method`.
        values: mean over prompts, [U].
        by_prompt: [N, U]; None where the method has no such thing.
        forwards, backwards: passes of the model, each prompt counted.
        seconds: wall time, compiling included.
    """

    method: str
    values: Float[np.ndarray, " U"]
    by_prompt: Float[np.ndarray, "N U"] | None
    forwards: int
    backwards: int
    seconds: float


def unit_scores(
    model: Model,
    behaviour: Behaviour,
    units: Units | Edges,
    *,
    method: Method = "ig",
    dictionary: Transcoders | None = None,
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    split: str = "attribution",
    points: int = POINTS,
    batch: int = 16,
    seed: int = 0,
) -> UnitScores:
    """Score units on a split by one of the methods above.

    Raises:
        InputError: an unknown method, no points, more units than `MOST_EXACT` for `exact`, what `run_circuits` refuses.
    """
    if method not in get_args(Method):
        raise InputError(f"method {method!r} is unknown; there are {', '.join(get_args(Method))}")
    if method == "eap-ig" and (not isinstance(units, Edges) or ablation != "resample"):
        raise InputError("eap-ig is for edges under ablation='resample'; for units, or other ablations, choose ig")
    if points < 1:
        raise InputError(f"points={points}: give at least 1")
    if method == "exact" and units.n > MOST_EXACT:
        raise InputError(f"exact ablation of {units.n} units, one by one: at most {MOST_EXACT}; choose gradient or ig")
    setting, start = check(model, behaviour, units, dictionary, ablation, errors, split), time.perf_counter()
    n = behaviour[split].n

    def scored(by_prompt: np.ndarray | None, values: np.ndarray, forwards: int, backwards: int) -> UnitScores:
        return UnitScores(method, values, by_prompt, forwards, backwards, time.perf_counter() - start)

    if method == "random":
        return scored(None, np.random.default_rng(seed).uniform(size=units.n), 0, 0)
    if method == "exact":
        masks = np.concatenate([np.ones((1, units.n)), 1 - np.eye(units.n)])
        kept: Any = {"dictionary": dictionary, "ablation": ablation, "errors": errors, "split": split, "batch": batch}
        found = run_circuits(model, behaviour, masks, units, **kept).circuits.metric
        return scored((found[:1] - found[1:]).T, (found[0] - found[1:]).mean(-1), n * (units.n + 3), 0)
    mean = mean_values(model, behaviour, setting, dictionary, batch) if ablation == "mean" else None
    once = method in ("gradient", "relp")
    at, weight = (jnp.asarray(x) for x in ((np.ones(1), np.ones(1)) if once else _legendre(points)))
    run, each = program(setting, method), []
    for part in parts(model, behaviour[split], batch):
        each.append(host(run(model.params, dictionary, mean, at, weight, part)))
    by_prompt = np.concatenate(each)[:n]
    passes = 0 if method == "activation" else len(at)
    return scored(by_prompt, by_prompt.mean(0), n * (1 if method == "activation" else 2 + passes), n * passes)


def program(s: Setting, method: Method) -> Callable[..., Float[Array, "N U"]]:
    """The program of a method: (weights, dictionary, mean values, points, their weights, prompts) -> [N, U].

    It is what `unit_scores` runs for each batch of prompts; compiled ahead of time it tells what it would cost.
    """
    if method == "activation":
        return partial(_sizes, s)
    edges = isinstance(s.units, Edges)
    if method == "relp":
        s = replace(s, cfg=with_relevance(s.cfg, edges=edges))
    return partial(_of_edges if edges and method != "ig" else _gradients, s)


def _legendre(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights on 0..1: exact for polynomials up to degree 2 points - 1."""
    at, weight = np.polynomial.legendre.leggauss(points)
    return (at + 1) / 2, weight / 2


@partial(jax.jit, static_argnames="s")
def _gradients(
    s: Setting, params: Any, d: Any, mean: Worth | None, at: Array, weight: Array, prompts: dict[str, Array]
) -> Float[Array, "N U"]:
    """The gradient of the metric by the mask, averaged over masks that are `at` everywhere."""

    def one(p: dict[str, Array]) -> Array:
        _, clean, reference = both(s, params, d, mean, p)

        def value(mask: Array) -> Array:
            return metric(s.metric, masked(s, params, d, mask, clean, reference, p), p["right"], p["wrong"])

        def add(total: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
            where, share = point
            return total + share * jax.grad(value)(jnp.full(s.units.n, where, total.dtype)), None

        zeros = jnp.zeros(s.units.n, jnp.promote_types(params.embed.dtype, jnp.float32))
        return jax.lax.scan(add, zeros, (at.astype(zeros.dtype), weight.astype(zeros.dtype)))[0]

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(prompts)


@partial(jax.jit, static_argnames="s")
def _of_edges(
    s: Setting, params: Any, d: None, mean: Worth | None, at: Array, weight: Array, prompts: dict[str, Array]
) -> Float[Array, "N U"]:
    """What edges carry times the gradient at their readers, averaged over inputs between reference and prompt."""
    edges = s.units
    assert isinstance(edges, Edges)

    def one(p: dict[str, Array]) -> Array:
        _, clean, reference = both(s, params, d, mean, p)
        assert isinstance(clean, Written)
        assert isinstance(reference, Written)
        gap = jax.tree.map(jnp.subtract, clean, reference)
        start = reference.embed + at.astype(gap.embed.dtype)[:, None, None] * gap.embed

        def value(logits: Array) -> Array:
            return metric(s.metric, logits, p["right"], p["wrong"])

        return edge_scores(s.cfg, params, edges, p["valid"], p["at"], gap, start, weight, value)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(prompts)


@partial(jax.jit, static_argnames="s")
def _sizes(
    s: Setting, params: Any, d: Any, mean: None, at: Array, weight: Array, prompts: dict[str, Array]
) -> Float[Array, "N U"]:
    """Mean size of each unit's value over a prompt's tokens (or at each position)."""

    def one(p: dict[str, Array]) -> Array:
        values, valid = record(s, params, d, p["clean"], p["valid"])[1], p["valid"]
        if isinstance(s.units, Edges):
            assert isinstance(values, Written)
            size = jnp.sum(jnp.linalg.norm(vectors(params, values), axis=-1) * valid, -1) / jnp.sum(valid)
            return size[s.units.pairs[:, 1]]
        assert isinstance(values, Values)
        found = []
        for kind in s.units.kinds:
            found.append(_pooled(s.units, kind, values, valid).ravel())
        return jnp.concatenate(found)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(prompts)


def _pooled(units: Units, kind: str, values: Values, valid: Array) -> Float[Array, "L n P"]:
    """Norms of heads and sublayers, sizes of features: [L, n, positions or 1]; 0 where a prompt has none."""
    match kind:
        case "head":
            assert values.z is not None
            size = jnp.linalg.norm(values.z, axis=-1)
        case "attn":
            assert values.attn is not None
            size = jnp.linalg.norm(values.attn, axis=-1)[..., None]
        case "mlp":
            assert values.mlp is not None
            size = jnp.linalg.norm(values.mlp, axis=-1)[..., None]
        case _:
            assert values.feature is not None
            size = jnp.abs(values.feature)
    by_unit = jnp.swapaxes(size, 1, 2)  # [L, n, T]
    if units.positions is None:
        return jnp.sum(by_unit * valid, -1, keepdims=True) / jnp.sum(valid)
    return jnp.pad(by_unit * valid, ((0, 0), (0, 0), (units.positions - len(valid), 0)))

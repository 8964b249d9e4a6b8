"""Many circuits on many prompts in one compiled program.

For each prompt the model runs on the counterfactual (what outside units are worth) and on the prompt itself, then once
for each circuit. Prompts lie on the mesh's data axis; circuits go through in groups of `at_once`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tcircuits.circuits import edge_forward
from tcircuits.circuits.edge_forward import Written
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.forward import Errors, Values, run
from tcircuits.circuits.units import Units
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.models.params import Params
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour, Metric, Prompts
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.corpus import mesh_of
from tcircuits.types import Array, Bool, Float, InputError, Int

Ablation = Literal["resample", "mean", "zero"]
Worth = Values | Written
"""What units are worth in a run, or what the writers of edges are."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Setting:
    """What is static in a run of circuits."""

    cfg: ModelConfig
    units: Units | Edges
    metric: Metric
    ablation: Ablation = "resample"
    errors: Errors = "keep"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    """What came out, by circuit and prompt (or by prompt alone, for the whole model): on the devices or on the host.

    Attributes:
        metric: right against wrong answers (`Behaviour.metric`).
        kl: KL(whole model || this) of the next token, in nats.
        choice: the likeliest token.
        right: whether that is a right answer.
    """

    metric: Float[Any, "*C N"]
    kl: Float[Any, "*C N"]
    choice: Int[Any, "*C N"]
    right: Bool[Any, "*C N"]


@dataclass(frozen=True)
class Runs:
    """Circuits on the prompts of a split, [C, N], and the model itself, [N]."""

    circuits: Answers
    model: Answers


def run_circuits(
    model: Model,
    behaviour: Behaviour,
    masks: Any,
    units: Units | Edges,
    *,
    dictionary: Transcoders | None = None,
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    split: str = "report",
    at_once: int = 16,
    batch: int = 16,
) -> Runs:
    """Run circuits on the prompts of a split.

    Args:
        model: from `load_model`.
        behaviour: its prompts.
        masks: [C, U], 1 (or True) for units of the circuit; values between mix.
        units: what the masks count.
        dictionary: whose features they are.
        ablation: what is put in the place of a unit outside: its value on the counterfactual, its mean over the
            attribution split's prompts at the same distance from the end, or zero.
        errors: of the dictionary: computed anew (`keep`), ablated as the units are (`ablate`), or those of the clean
            run (`clean`).
        split: of the behaviour.
        at_once: circuits that run together.
        batch: prompts that run together.

    Raises:
        InputError: masks of another size, units of another model, an unknown ablation, units of fewer positions than
            a prompt has.
    """
    masks = np.asarray(masks, np.float32)
    setting = check(model, behaviour, units, dictionary, ablation, errors, split)
    if masks.ndim != 2 or masks.shape[1] != units.n or not len(masks):
        raise InputError(f"masks have shape {masks.shape}; give [circuits, {units.n}] for these units")
    if not np.isfinite(masks).all():
        raise InputError("masks hold values that are not finite")
    mean = mean_values(model, behaviour, setting, dictionary, batch) if ablation == "mean" else None
    groups = _padded(masks, min(at_once, len(masks)))
    prompts = parts(model, behaviour[split], batch)
    found = [runs_program(setting, model.params, dictionary, mean, groups, part) for part in prompts]
    n, count = behaviour[split].n, len(masks)
    circuits, whole = (
        jax.tree.map(lambda *x: np.concatenate([host(a) for a in x], -1)[..., :n], *side)
        for side in zip(*found, strict=True)
    )
    return Runs(jax.tree.map(lambda a: a.reshape(-1, n)[:count], circuits), whole)


def check(
    model: Model,
    behaviour: Behaviour,
    units: Units | Edges,
    dictionary: Transcoders | None,
    ablation: Ablation,
    errors: Errors,
    split: str,
) -> Setting:
    """Raise for what cannot be run; nothing is compiled yet.

    Raises:
        InputError: see `run_circuits`.
    """
    cfg, p, wrong = model.cfg, behaviour[split], []
    if ablation not in get_args(Ablation):
        wrong.append(f"ablation {ablation!r} is unknown; there are {', '.join(get_args(Ablation))}")
    if errors not in get_args(Errors):
        wrong.append(f"errors {errors!r} is unknown; there are {', '.join(get_args(Errors))}")
    if (units.n_layers, units.n_heads) != (cfg.n_layers, cfg.n_heads):
        sizes = f"{units.n_layers} layers of {units.n_heads} heads"
        wrong.append(f"units are for {sizes}, the model has {cfg.n_layers} of {cfg.n_heads}")
    if isinstance(units, Edges) and units != edges_of(cfg):
        wrong.append("edges are those of another model")
    if isinstance(units, Units) and "feature" in units.kinds:
        own = None if dictionary is None else (tuple(dictionary.cfg.layers), dictionary.cfg.d_feature)
        if own != (units.layers, units.d_feature):
            wrong.append(
                f"units count {units.d_feature} features in layers {units.layers}; the dictionary given has {own}"
            )
    if behaviour.model != model.name:
        wrong.append(f"the behaviour is in the tokens of {behaviour.model!r}, the model is {model.name!r}")
    if p.clean.shape[1] > cfg.n_ctx or max(p.clean.max(), p.other.max()) >= cfg.d_vocab:
        wrong.append(
            f"prompts of {p.clean.shape[1]} tokens do not fit the model's {cfg.n_ctx}, or leave its vocabulary"
        )
    if units.positions is not None and units.positions < p.clean.shape[1]:
        wrong.append(
            f"units have numbers for {units.positions} positions, the longest prompt has {p.clean.shape[1]}: give "
            f"units_of(..., positions={behaviour.length}), or none to pool positions"
        )
    if wrong:
        raise InputError("these circuits cannot be run: " + "; ".join(wrong))
    return Setting(cfg, units, behaviour.metric, ablation, errors)


def parts(model: Model, p: Prompts, batch: int) -> list[dict[str, Array]]:
    """Prompts in batches of equal size, on the devices; the last one is filled up with its first prompt."""
    mesh = mesh_of(model.params)
    if mesh is not None:
        batch = -(-batch // mesh.shape["data"]) * mesh.shape["data"]
    batch = min(batch, p.n) if mesh is None else batch
    arrays = {"clean": p.clean, "other": p.other, "valid": p.valid, "right": p.right, "wrong": p.wrong}
    arrays["at"] = p.at
    found = []
    for start in range(0, p.n, batch):
        at = np.minimum(np.arange(start, start + batch), p.n - 1)
        rows = {name: a[at] for name, a in arrays.items()}
        where = None if mesh is None else NamedSharding(mesh, PartitionSpec("data"))
        found.append({name: jax.device_put(a, where) for name, a in rows.items()})
    return found


def _padded(masks: np.ndarray, at_once: int) -> Array:
    """Masks in groups [G, at_once, U]; the last is filled up with ones."""
    more = -len(masks) % at_once
    filled = np.concatenate([masks, np.ones((more, masks.shape[1]), masks.dtype)])
    return jnp.asarray(filled.reshape(-1, at_once, masks.shape[1]))


@partial(jax.jit, static_argnames="s")
def runs_program(
    s: Setting, params: Params, d: Transcoders | None, mean: Worth | None, groups: Array, prompts: dict[str, Array]
) -> tuple[Answers, Answers]:
    """Answers by group, circuit and prompt, [G, c, N], and the model's own, [N]."""
    with jax.default_matmul_precision("highest"):
        logits, clean, reference = jax.vmap(lambda p: both(s, params, d, mean, p))(prompts)

        def circuit(mask: Array) -> Answers:
            def one(p: dict[str, Array], own: Array, clean: Worth, reference: Worth) -> Answers:
                return judged(s, masked(s, params, d, mask, clean, reference, p), own, p)

            return jax.vmap(one)(prompts, logits, clean, reference)

        found = jax.lax.map(jax.vmap(circuit), groups)
        return found, jax.vmap(partial(judged, s))(logits, logits, prompts)


def record(
    s: Setting,
    params: Params,
    d: Any,
    tokens: Int[Array, " T"],
    valid: Bool[Array, " T"],
    at: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "*T V"], Worth]:
    """Logits of the model itself, at one position or at all, and what its units are worth."""
    if isinstance(s.units, Edges):
        logits, written = edge_forward.record(s.cfg, params, tokens, valid)
        return logits if at is None else logits[at], written
    return run(s.cfg, params, d, s.units, tokens, valid, at=at)


def both(
    s: Setting, params: Params, d: Any, mean: Worth | None, p: dict[str, Array]
) -> tuple[Float[Array, " V"], Worth, Worth]:
    """The model's logits at a prompt's answer, what its units are worth there, and their reference values."""
    logits, clean = record(s, params, d, p["clean"], p["valid"], p["at"])
    match s.ablation:
        case "resample":
            reference = record(s, params, d, p["other"], p["valid"])[1]
        case "mean":
            assert mean is not None
            reference = jax.tree.map(_aligned, mean, clean)
        case "zero":
            reference = jax.tree.map(jnp.zeros_like, clean)
    return logits, clean, reference


def _aligned(mean: Float[Array, "L M *X"], own: Float[Array, "L T *X"]) -> Float[Array, "L T *X"]:
    """A mean of other prompts at the distance from the end; the first there is stands for those further away."""
    short = max(0, own.shape[1] - mean.shape[1])
    wide = jnp.pad(mean, ((0, 0), (short, 0), *[(0, 0)] * (mean.ndim - 2)), mode="edge")
    return wide[:, wide.shape[1] - own.shape[1] :].astype(own.dtype)


def masked(
    s: Setting, params: Params, d: Any, mask: Float[Array, " U"], clean: Worth, reference: Worth, p: dict[str, Array]
) -> Float[Array, " V"]:
    """The logits of a circuit at a prompt's answer."""
    by_kind = s.units.split(mask)
    if isinstance(s.units, Edges):
        assert isinstance(reference, Written)
        return edge_forward.run(s.cfg, params, s.units, p["clean"], p["valid"], by_kind, reference, p["at"])
    assert isinstance(clean, Values)
    assert isinstance(reference, Values)
    given = (p["clean"], p["valid"], by_kind, reference, clean, s.errors, p["at"])
    return run(s.cfg, params, d, s.units, *given)[0]


def judged(s: Setting, logits: Float[Array, " V"], own: Float[Array, " V"], p: dict[str, Array]) -> Answers:
    """What logits say of a prompt; `own` are the model's."""
    log_p, log_q = jax.nn.log_softmax(own), jax.nn.log_softmax(logits)
    choice = logits.argmax(-1).astype(jnp.int32)
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q))
    return Answers(metric(s.metric, logits, p["right"], p["wrong"]), kl, choice, (choice == p["right"]).any())


def metric(name: Metric, logits: Float[Array, " V"], right: Int[Array, " A"], wrong: Int[Array, " W"]) -> Array:
    """Right against wrong answers: mean logits, or summed probabilities."""
    values = logits if name == "logit_difference" else jax.nn.softmax(logits)

    def side(ids: Array) -> Array:
        total = jnp.sum(jnp.where(ids >= 0, values[jnp.maximum(ids, 0)], 0.0))
        return total / jnp.maximum(jnp.sum(ids >= 0), 1) if name == "logit_difference" else total

    return side(right) - side(wrong)


def mean_values(
    model: Model, behaviour: Behaviour, s: Setting, d: Transcoders | None, batch: int, split: str = "attribution"
) -> Worth:
    """The mean of what units are worth over a split's prompts, by distance from the end: [L, T, ...]."""
    p, total, count = behaviour[split], None, np.zeros(behaviour[split].clean.shape[1])
    for number, part in enumerate(parts(model, p, batch)):
        fresh = np.arange(len(part["clean"])) < p.n - number * len(part["clean"])
        sums = _sums(s, model.params, d, part, jnp.asarray(fresh))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        count += (host(part["valid"]) & fresh[:, None]).sum(0)
    size = jnp.asarray(np.maximum(count, 1))

    def divided(a: Array) -> Array:
        return a / size.astype(a.dtype).reshape(1, -1, *[1] * (a.ndim - 2))

    return jax.tree.map(divided, total)


@partial(jax.jit, static_argnames="s")
def _sums(s: Setting, params: Params, d: Any, prompts: dict[str, Array], fresh: Bool[Array, " N"]) -> Worth:
    with jax.default_matmul_precision("highest"):
        values = jax.vmap(lambda p: record(s, params, d, p["clean"], p["valid"])[1])(prompts)
    weight = prompts["valid"] & fresh[:, None]
    return jax.tree.map(
        lambda a: jnp.einsum("NT,NLT...->LT...", weight.astype(a.dtype), a, precision="highest"), values
    )

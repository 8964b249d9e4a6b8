"""What an edge between two units is worth: the source's counterfactual value, told to one feature alone.

    1. The source has its reference value, every other feature and the errors those of the clean run; heads (and skips)
       compute on what they get: the target is what it would be if it alone heard the change.
    2. The target has that value, and everything after it computes anew: how far the metric falls is the edge's effect.

This is path patching (Goldowsky-Dill et al. 2023, arXiv 2304.05969) with features as readers. Effects of a source's
edges need not add up to what its own ablation costs: step 2 lets one target know at a time.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.circuits.forward import Errors, Values, run
from tcircuits.circuits.running import Ablation, Setting, Worth, both, check, masked, mean_values, metric, parts
from tcircuits.circuits.units import Units
from tcircuits.models.model import Model
from tcircuits.models.params import Params
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float, InputError, Int


def edge_effects(
    model: Model,
    behaviour: Behaviour,
    units: Units,
    pairs: Any,
    *,
    dictionary: Transcoders,
    ablation: Ablation = "resample",
    errors: Errors = "keep",
    split: str = "attribution",
    at_once: int = 16,
    batch: int = 16,
) -> tuple[Float[np.ndarray, "E N"], Float[np.ndarray, " N"]]:
    """The metric of each prompt (logits or probability, `Behaviour.metric`) with one edge patched, and with none.

    Args:
        model: from `load_model`.
        behaviour: its prompts.
        units: what `pairs` counts.
        pairs: [E, 2], numbers of the source and of the target, which is a feature. Where no path leads from one to the
            other nothing changes.
        dictionary: whose features they are. MLPs of layers without one are never held.
        ablation: what the source is worth, as in `run_circuits`.
        errors: of the dictionary in step 2, likewise.
        split: of the behaviour.
        at_once: edges that run together.
        batch: prompts that run together.

    Raises:
        InputError: pairs of another shape, numbers that no unit has, targets that are no features, what `run_circuits`
            refuses.
    """
    setting, pairs = check(model, behaviour, units, dictionary, ablation, errors, split), np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.dtype.kind not in "iu":
        raise InputError(f"pairs have shape {pairs.shape} of {pairs.dtype}; give whole numbers [edges, 2]")
    if pairs.min() < 0 or pairs.max() >= units.n:
        raise InputError(f"pairs go from {pairs.min()} to {pairs.max()}; units are numbered 0..{units.n - 1}")
    first = units.starts.get("feature", units.n)
    if (pairs[:, 1] < first).any():
        other = int(pairs[pairs[:, 1] < first, 1][0])
        raise InputError(f"{units.label(other)} is no feature: an edge's target is one")
    mean = mean_values(model, behaviour, setting, dictionary, batch) if ablation == "mean" else None
    at_once = min(at_once, len(pairs))
    filled = np.concatenate([pairs, np.repeat(pairs[-1:], -len(pairs) % at_once, 0)])
    groups = jnp.asarray(filled.reshape(-1, at_once, 2), jnp.int32)
    found = [
        _program(setting, model.params, dictionary, mean, groups, part)
        for part in parts(model, behaviour[split], batch)
    ]
    patched, own = (np.concatenate([host(a) for a in side], -1) for side in zip(*found, strict=True))
    n = behaviour[split].n
    return patched.reshape(-1, patched.shape[-1])[: len(pairs), :n], own[:n]


@partial(jax.jit, static_argnames="s")
def _program(
    s: Setting, params: Params, d: Transcoders, mean: Worth | None, groups: Array, prompts: dict[str, Array]
) -> tuple[Float[Array, "G c N"], Float[Array, " N"]]:
    with jax.default_matmul_precision("highest"):
        _, clean, reference = jax.vmap(lambda p: both(s, params, d, mean, p))(prompts)

        def edge(pair: Int[Array, " 2"]) -> Float[Array, " N"]:
            def one(p: dict[str, Array], clean: Worth, reference: Worth) -> Array:
                return judged(_patched(s, params, d, pair, clean, reference, p), p)

            return jax.vmap(one)(prompts, clean, reference)

        def judged(logits: Array, p: dict[str, Array]) -> Array:
            return metric(s.metric, logits, p["right"], p["wrong"])

        def none(p: dict[str, Array], clean: Worth, reference: Worth) -> Array:
            return judged(masked(s, params, d, jnp.ones(s.units.n), clean, reference, p), p)

        return jax.lax.map(jax.vmap(edge), groups), jax.vmap(none)(prompts, clean, reference)


def _patched(
    s: Setting, params: Params, d: Transcoders, pair: Array, clean: Worth, reference: Worth, p: dict[str, Array]
) -> Float[Array, " V"]:
    """The logits of one prompt at its answer with one edge patched."""
    assert isinstance(s.units, Units)
    assert isinstance(clean, Values)
    assert isinstance(reference, Values)
    source, target = (s.units.split(jnp.arange(s.units.n) == number) for number in pair)
    assert clean.feature is not None
    assert reference.feature is not None
    told = jnp.where(jnp.swapaxes(source["feature"], 1, 2), reference.feature, clean.feature)
    mask = {kind: 1.0 - a for kind, a in source.items()} | {"feature": jnp.zeros(source["feature"].shape)}
    alone, tokens, valid = replace(reference, feature=told), p["clean"], p["valid"]
    _, heard = run(s.cfg, params, d, s.units, tokens, valid, mask, alone, clean, "clean")
    rest = {kind: 1.0 - a for kind, a in target.items()}
    changed = replace(reference, feature=heard.feature)
    return run(s.cfg, params, d, s.units, tokens, valid, rest, changed, clean, s.errors, p["at"])[0]

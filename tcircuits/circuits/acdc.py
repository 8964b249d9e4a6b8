"""ACDC: edges are taken out one after the other, from the logits down, where that costs little (Conmy et al. 2023).

    for every reader, the last first, and every writer that it hears, the last first (algorithm 1, arXiv 2304.14997):
        without the edge, what was taken out before it also out, KL(model || circuit) grows by less than the threshold:
        the edge is out

Every step runs the whole circuit on all prompts; the loop over edges is one compiled program. It costs as many runs as
there are edges, and its steps depend on each other, so that it does not go faster on more devices than prompts fill.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.circuits.circuit import Circuit
from tcircuits.circuits.edges import Edges
from tcircuits.circuits.running import Ablation, Setting, Worth, both, check, judged, masked, mean_values, parts
from tcircuits.models.model import Model
from tcircuits.parallel import host
from tcircuits.tasks.behaviour import Behaviour, told
from tcircuits.types import Array, Bool, InputError


def acdc(
    model: Model,
    behaviour: Behaviour,
    edges: Edges,
    *,
    threshold: float,
    ablation: Ablation = "resample",
    split: str = "attribution",
) -> Circuit:
    """The circuit of the edges that ACDC keeps on a split.

    Args:
        model: from `load_model`.
        behaviour: its prompts.
        edges: from `edges_of`.
        threshold: how much KL, in nats and on average over prompts, an edge may cost to be taken out.
        ablation: as in `run_circuits`.
        split: of the behaviour.

    Raises:
        InputError: a threshold that is not positive, and what `run_circuits` refuses; an empty circuit is returned.
    """
    if not threshold > 0:
        raise InputError(f"threshold={threshold}: give a positive number of nats")
    s, start = check(model, behaviour, edges, None, ablation, "keep", split), time.perf_counter()
    n = behaviour[split].n
    (prompts,) = parts(model, behaviour[split], n)
    mean = mean_values(model, behaviour, s, None, min(n, 16)) if ablation == "mean" else None
    real = jnp.arange(prompts["clean"].shape[0]) < n
    order = np.lexsort((-edges.pairs[:, 1], -edges.pairs[:, 0]))
    mask = host(search_program(s, model.params, mean, prompts, real, jnp.asarray(order), jnp.float32(threshold)))
    about = {
        "method": "acdc",
        "threshold": threshold,
        "ablation": ablation,
        "split": split,
        "behaviour": told(behaviour),
    }
    about["cost"] = {"forwards": n * (edges.n + 3), "backwards": 0, "seconds": time.perf_counter() - start}
    return Circuit(edges, np.asarray(mask), None, model.name, about)


@partial(jax.jit, static_argnames="s")
def search_program(
    s: Setting, params: Any, mean: Worth | None, prompts: dict[str, Array], real: Array, order: Array, threshold: Array
) -> Bool[Array, " U"]:
    """The edges that are kept: the whole search, as one program."""
    with jax.default_matmul_precision("highest"):
        own, clean, reference = jax.vmap(lambda p: both(s, params, None, mean, p))(prompts)

        def divergence(mask: Array) -> Array:
            def one(p: Any, own: Array, clean: Any, reference: Any) -> Array:
                return judged(s, masked(s, params, None, mask, clean, reference, p), own, p).kl

            return jnp.sum(jnp.where(real, jax.vmap(one)(prompts, own, clean, reference), 0)) / jnp.sum(real)

        def step(carry: tuple[Array, Array], edge: Array) -> tuple[tuple[Array, Array], None]:
            mask, before = carry
            tried = mask.at[edge].set(0.0)
            after = divergence(tried)
            out = after - before < threshold
            return (jnp.where(out, tried, mask), jnp.where(out, after, before)), None

        full = jnp.ones(s.units.n, jnp.float32)
        (mask, _), _ = jax.lax.scan(step, (full, divergence(full)), order)
    return mask > 0

"""How far a path has come in each pattern, for every pattern and every continuation at once.

`state[p, j]` says that the path's last j nodes match the first j steps of pattern p. Adding a node gives

    state'[p, j + 1] = state[p, j] and the node matches step j of p,    state'[p, 0] = true

which follows all beginnings at once and so never has to go back.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.paths.filters import ABSENT, EMBED, FEATURE, HEAD, INFIX, NOT_INFIX, SUFFIX, Rules, holds
from tcircuits.types import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tables:
    """Which nodes a filter matches; leading axes are the filter's (none, or pattern and step)."""

    feature: Bool[Array, "*X L T C"]
    head: Bool[Array, "*X L H S"]
    embed: Bool[Array, "*X T"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Progress:
    """Of a path, or of several with a leading axis: `state` as in the module, and which patterns it has contained."""

    state: Bool[Array, "*B P W"]
    seen: Bool[Array, "*B P"]


def tables(conditions: Int[Array, "*X Z 3"], names: Int[Array, "L T C"], n_heads: int) -> Tables:
    """Evaluate filters on every node that there is; `names` are the features' numbers."""
    layer, pos = (jnp.arange(n) for n in names.shape[:2])

    def one(c: Array) -> Tables:
        feature = holds(c, (layer[:, None, None], pos[:, None], FEATURE, ABSENT, names))
        heads = jnp.arange(n_heads)[:, None]
        head = holds(c, (layer[:, None, None], pos, HEAD, heads, ABSENT))
        return Tables(feature, head, holds(c, (0, pos, EMBED, ABSENT, ABSENT)))

    for _ in conditions.shape[:-2]:
        one = jax.vmap(one)
    return one(conditions)


def begin(rules: Rules, fields: tuple[Any, ...]) -> Progress:
    """A path that is its root alone."""
    P, W = rules.step.shape[:2]
    matched = jax.vmap(jax.vmap(lambda c: holds(c, fields)))(rules.step) if P else jnp.zeros((0, W), bool)
    empty = Progress(jnp.zeros((P, W + 1), bool).at[:, 0].set(True), jnp.zeros(P, bool))
    return advance(rules, empty, matched)


def advance(rules: Rules, before: Progress, matched: Bool[Array, "*B P W"]) -> Progress:
    """The path with one more node, which matches the steps `matched`."""
    more = before.state[..., :-1] & matched
    state = jnp.concatenate([jnp.ones_like(more, shape=(*more.shape[:-1], 1)), more], -1)
    return Progress(state, before.seen | ends(rules, state))


def ends(rules: Rules, state: Bool[Array, "*B P W"]) -> Bool[Array, "*B P"]:
    """Whether the path ends in the whole of each pattern."""
    return (state & (jnp.arange(state.shape[-1]) == rules.length[:, None])).any(-1)


def missing(rules: Rules, at: Progress) -> Int[Array, "*B P"]:
    """The least number of further nodes with which what is asked of each pattern can be true."""
    step = jnp.arange(at.state.shape[-1])
    furthest = jnp.where(at.state & (step <= rules.length[:, None]), step, 0).max(-1)
    return jnp.where((rules.ask == INFIX) & at.seen | (rules.ask == NOT_INFIX), 0, rules.length - furthest)


def hopeless(rules: Rules, at: Progress, remaining: Any) -> Bool[Array, "*B"]:
    """Whether no continuation by `remaining` nodes at most can satisfy every pattern."""
    never = (rules.ask == NOT_INFIX) & at.seen
    return (never | (missing(rules, at) > remaining)).any(-1)


def satisfied(rules: Rules, at: Progress) -> Bool[Array, "*B"]:
    """Whether the path as it is satisfies every pattern."""
    true = jnp.where(rules.ask == SUFFIX, ends(rules, at.state), at.seen ^ (rules.ask == NOT_INFIX))
    return true.all(-1)

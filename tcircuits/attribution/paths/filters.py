"""Which paths are wanted: conditions on nodes, and patterns of neighbouring nodes in a path.

A node filter is a conjunction of conditions FIELD OP VALUE. Fields are `layer` (the embedding's is 0), `position` (a
head's is its source; negative counts from the end), `kind` (feature, head, embed, root), `head` and `feature` (its
number); operators EQ NE GT GE LT LE, in text `= != > >= < <=`. A node without a field (the head of a feature) fails
every condition on it except NE.

A pattern is a sequence of node filters that neighbouring nodes of a path must match, from the root down as paths are
printed; `*` matches any node:

>>> parse_pattern("kind=feature,layer>=8 <- head=7 <- *", length=10)[0]
(Condition(field='kind', op='EQ', value=0), Condition(field='layer', op='GE', value=8))

Everything is integers in arrays, so that other filters do not make another program.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.types import Array, Bool, InputError, Int

FIELDS = ("layer", "position", "kind", "head", "feature")
KINDS = ("feature", "head", "embed", "root")
FEATURE, HEAD, EMBED, ROOT = range(4)
LESS, EQUAL, MORE = 1, 2, 4  # an operator is the set of outcomes of a comparison that it allows
OPS = {"EQ": EQUAL, "NE": LESS | MORE, "GT": MORE, "GE": MORE | EQUAL, "LT": LESS, "LE": LESS | EQUAL}
SIGNS = {"=": "EQ", "==": "EQ", "!=": "NE", ">": "GT", ">=": "GE", "<": "LT", "<=": "LE"}
ANY = LESS | EQUAL | MORE
ABSENT = -1  # the value of a field that a node does not have
INFIX, NOT_INFIX, SUFFIX = range(3)


@dataclass(frozen=True)
class Condition:
    """One condition on one field of a node; the value of `kind` is a number of `KINDS` or its name."""

    field: str
    op: str
    value: int | str


Conditions = tuple[Condition, ...]


@dataclass(frozen=True)
class Filters:
    """All that is wanted of paths; everything must hold.

    Attributes:
        nodes: of every node below the root.
        infix: each pattern stands somewhere in the path.
        not_infix: none of these stands anywhere in it.
        suffix: the path ends in each of these.
    """

    nodes: Conditions = ()
    infix: tuple[tuple[Conditions, ...], ...] = ()
    not_infix: tuple[tuple[Conditions, ...], ...] = ()
    suffix: tuple[tuple[Conditions, ...], ...] = ()

    @property
    def patterns(self) -> list[tuple[int, tuple[Conditions, ...]]]:
        """All patterns with what is asked of them."""
        kinds = ((INFIX, self.infix), (NOT_INFIX, self.not_infix), (SUFFIX, self.suffix))
        return [(kind, p) for kind, several in kinds for p in several]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rules:
    """Filters as arrays: conditions (field, allowed outcomes, value), N of nodes, Z of each of W steps of P patterns.

    `ask` is INFIX, NOT_INFIX or SUFFIX of each pattern, `length` its number of steps (those beyond mean nothing).
    """

    node: Int[Array, "N 3"]
    step: Int[Array, "P W Z 3"]
    length: Int[Array, " P"]
    ask: Int[Array, " P"]


def condition(given: Any, length: int) -> Condition:
    """A condition from its text, checked; positions from the start, kinds as numbers.

    Raises:
        InputError: an unknown field or operator, a value that is no whole number of that field.
    """
    made = given
    if isinstance(given, str):
        found = re.fullmatch(r"\s*([a-z]+)\s*(==|!=|>=|<=|=|<|>)\s*([-\w]+)\s*", given)
        if found is None:
            raise InputError(f"condition {given!r}: write FIELD OP VALUE, for example layer<8; {_allowed()}")
        made = Condition(found[1], SIGNS[found[2]], found[3])
    if not isinstance(made, Condition) or made.field not in FIELDS or made.op not in OPS:
        raise InputError(f"condition {given!r:.80} is unknown; {_allowed()}")
    return Condition(made.field, made.op, _value(made, length))


def _allowed() -> str:
    return f"fields are {', '.join(FIELDS)}, operators {', '.join(OPS)} ({' '.join(SIGNS)})"


def _value(c: Condition, length: int) -> int:
    if c.field == "kind":
        if c.op not in ("EQ", "NE") or c.value not in (*KINDS, *range(len(KINDS))):
            raise InputError(f"kind {c.op} {c.value}: kinds are {', '.join(KINDS)}, with = or !=")
        return KINDS.index(c.value) if isinstance(c.value, str) else int(c.value)
    try:
        value = int(c.value)
    except ValueError:
        raise InputError(f"{c.field} {c.op} {c.value}: give a whole number") from None
    if c.field == "position":
        if not -length <= value < length:
            raise InputError(f"position {c.op} {value}: the prompt has positions {-length}..{length - 1}")
        return value % length
    if value < 0:
        raise InputError(f"{c.field} {c.op} {value}: numbers start at 0")
    return value


def parse_nodes(given: Any, length: int) -> Conditions:
    """A conjunction of conditions: a text with commas, a condition, or a sequence of these."""
    if isinstance(given, str):
        return tuple(condition(part, length) for part in given.split(",")) if given.strip() != "*" else ()
    if isinstance(given, Condition):
        return (condition(given, length),)
    if not isinstance(given, Iterable):
        raise InputError(f"filter {given!r:.80}: give a text or Conditions; {_allowed()}")
    return tuple(c for part in given for c in parse_nodes(part, length))


def parse_pattern(given: Any, length: int) -> tuple[Conditions, ...]:
    """A sequence of node filters: a text with `<-` between them, or a sequence of filters.

    Raises:
        InputError: no step, or a step that is no filter.
    """
    parts = given.split("<-") if isinstance(given, str) else list(given)
    if not parts:
        raise InputError("a pattern of a path has no step; give at least one node, for example kind=head")
    return tuple(parse_nodes(part, length) for part in parts)


def parse_filters(nodes: Any, infix: Any, not_infix: Any, suffix: Any, length: int) -> Filters:
    """Filters from what the caller gave; patterns are one text or a sequence of patterns."""
    several = [([p] if isinstance(p, str) else list(p)) for p in (infix, not_infix, suffix)]
    return Filters(parse_nodes(nodes, length), *(tuple(parse_pattern(p, length) for p in s) for s in several))


def check_filters(filters: Filters, model: Any, dictionary: Any) -> None:
    """Raise for what neither model nor dictionary has, before anything is run.

    Raises:
        InputError: a layer, head or feature that does not exist, or features of a layer without a dictionary.
    """
    c = dictionary.cfg
    bound = {"layer": model.cfg.n_layers, "head": model.cfg.n_heads, "feature": c.d_feature}
    if c.fill == "neurons":
        bound["feature"] = max(c.d_feature, model.cfg.d_mlp)
    for conditions in (filters.nodes, *(step for _, pattern in filters.patterns for step in pattern)):
        for x in conditions:
            if x.op == "EQ" and x.field in bound and int(x.value) >= bound[x.field]:
                raise InputError(f"{x.field}={x.value} does not exist: there are 0..{bound[x.field] - 1}")
        layers = [int(x.value) for x in conditions if x.field == "layer" and x.op == "EQ"]
        wants = any((x.field, x.op, x.value) == ("kind", "EQ", FEATURE) for x in conditions)
        wants |= any(x.field == "feature" and x.op != "NE" for x in conditions)
        if wants and c.fill == "error":
            for layer in layers:
                check_layer(layer, dictionary)


def check_layer(layer: int, dictionary: Any) -> None:
    """Raise for a layer whose MLP has no features."""
    c = dictionary.cfg
    if c.fill == "error" and layer not in c.layers:
        raise InputError(
            f"no path goes through features of layer {layer}: {dictionary.source!r} has no dictionary there "
            f"(it has layers {', '.join(map(str, c.layers))}), and its MLP is part of the error"
        )


def rules(filters: Filters) -> Rules:
    """The same as arrays, padded to few sizes."""
    patterns = filters.patterns
    wide = -(-max((len(p) for _, p in patterns), default=0) // 4) * 4
    deep = -(-max((len(step) for _, p in patterns for step in p), default=0) // 4) * 4
    step = np.zeros((len(patterns), wide, deep, 3), np.int32)
    step[..., 1] = ANY
    for i, (_, pattern) in enumerate(patterns):
        for j, conditions in enumerate(pattern):
            step[i, j] = _encoded(conditions, deep)
    length, ask = (np.array(x, np.int32) for x in ([len(p) for _, p in patterns], [kind for kind, _ in patterns]))
    node = _encoded(filters.nodes, -(-len(filters.nodes) // 4) * 4)
    return Rules(*(jnp.asarray(x) for x in (node, step, length, ask)))


def _encoded(conditions: Conditions, size: int) -> np.ndarray:
    """[size, 3]; the rest allows everything."""
    out = np.tile(np.array([0, ANY, 0], np.int32), (size, 1))
    for i, c in enumerate(conditions):
        out[i] = FIELDS.index(c.field), OPS[c.op], c.value
    return out


def holds(conditions: Int[Array, "Z 3"], fields: tuple[Any, ...]) -> Bool[Array, "*X"]:
    """Whether all conditions hold, for nodes whose fields (in the order of `FIELDS`) broadcast to [*X]."""
    x = jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(f, jnp.int32) for f in fields)))

    def one(c: Array) -> Array:
        value, allowed = x[c[0]], c[1]
        outcome = jnp.where(value < c[2], LESS, jnp.where(value == c[2], EQUAL, MORE))
        absent = (allowed == OPS["NE"]) | (allowed == ANY)
        return jnp.where(value == ABSENT, absent, (outcome & allowed) != 0)

    return jax.vmap(one)(conditions).all(0) if conditions.shape[0] else jnp.ones(x.shape[1:], bool)


def shown(conditions: Conditions) -> str:
    """Conditions as text."""
    signs = {op: sign for sign, op in reversed(SIGNS.items())}
    values = [KINDS[int(c.value)] if c.field == "kind" else c.value for c in conditions]
    return ",".join(f"{c.field}{signs[c.op]}{v}" for c, v in zip(conditions, values, strict=True)) or "*"


def plain(filters: Filters) -> dict[str, Any]:
    """Filters as texts, for the settings of a graph."""
    patterns = {
        name: [" <- ".join(map(shown, p)) for p in getattr(filters, name)] for name in ("infix", "not_infix", "suffix")
    }
    return {"nodes": shown(filters.nodes)} | patterns

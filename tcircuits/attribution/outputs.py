"""What a graph explains: from logits, differences, directions and features, as callers name them, to target chunks."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution import specify
from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.graph import TargetNode
from tcircuits.attribution.settings import Settings
from tcircuits.attribution.targets import Targets, feature_target, logit_vectors, output_targets, pad_targets
from tcircuits.compiling import compiled
from tcircuits.numerics import bucket
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import Narrow
from tcircuits.types import Array, InputError

vectors_program = compiled(logit_vectors)  # `planning` compiles it too, and `output_chunk`


def resolve(
    model: Any, d: Transcoders, frozen: Frozen, specs: Any, s: Settings, some: Narrow | None = None
) -> tuple[list[Targets], list[TargetNode]]:
    """Target chunks and their nodes, for what the caller asked to explain; `some` where `d` is a part of a set."""
    T = len(frozen.tokens)

    @cache
    def logits(pos: int) -> np.ndarray:
        return host(frozen.logits[pos], np.float64)

    if specs is None:
        specs = top_logits(logits(specify.place(s.position, T)), s)
    outputs, features = [], []
    for spec in specify.listed(specs, s.position) or []:
        if isinstance(spec, specify.Feature):
            features.append((spec, *slot_of(frozen, spec, some)))
        else:
            outputs.append(_output(model, spec, logits, T))
    features.sort(key=lambda f: -f[0].layer)
    lanes, chunks = bucket(len(outputs)), []  # one program serves any number of targets up to it
    if outputs:
        vec, const = _output_vectors(model, [o[0] for o in outputs], frozen.final.dtype, lanes)
        pos, weight = np.zeros(lanes, np.int32), np.zeros(lanes, vec.dtype)
        pos[: len(outputs)], weight[: len(outputs)] = zip(*((o[1].pos, o[1].weight) for o in outputs), strict=True)
        chunks.append(output_chunk(model.cfg, model.params, frozen, vec, const, pos, weight, len(outputs)))
    for spec, at, slot in features:
        place = np.asarray([spec.layer, at, slot], np.int32)
        chunks.append(_feature_chunk(model.cfg, model.params, d, frozen, place, lanes))
    nodes = [o[1] for o in outputs]
    nodes += [
        TargetNode(f"L{f.layer} f{f.index} @{at}", "feature", None, None, 1.0, f.layer, at) for f, at, _ in features
    ]
    return chunks, nodes


@partial(compiled, static_argnames=("cfg",))
@jax.default_matmul_precision("highest")
def output_chunk(
    cfg: Any, params: Any, frozen: Frozen, vec: Array, const: Array, pos: Array, weight: Array, n: int | Array
) -> Targets:
    """`output_targets` of lanes of which the first n are valid."""
    every = output_targets(cfg, params, frozen, vec, const, pos, weight)
    return replace(every, valid=(jnp.arange(len(pos)) < n)[None])


@partial(compiled, static_argnames=("cfg", "lanes"))
@jax.default_matmul_precision("highest")
def _feature_chunk(cfg: Any, params: Any, d: Transcoders, frozen: Frozen, place: Array, lanes: int) -> Targets:
    """The feature at (layer, position, slot) as a target in the first of the lanes."""
    layer, pos, slot = place
    one = jnp.ones((), frozen.value.dtype)
    return pad_targets(feature_target(cfg, params, d, frozen, layer, pos, slot, one), lanes)


def top_logits(logits: np.ndarray, s: Settings) -> list[int]:
    """The smallest set of top logits that reaches the wanted probability, at most `max_n_logits`."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")[: s.max_n_logits]
    n = int(np.searchsorted(np.cumsum(p[order]), s.desired_logit_prob)) + 1
    return [int(i) for i in order[:n]]


def _output(model: Any, spec: Any, logits: Callable[[int], np.ndarray], T: int) -> tuple[Any, TargetNode]:
    """(what to read at the output, node) of a logit, difference or direction; `logits` are those of a position."""
    pos, L = specify.place(spec.position, T), model.cfg.n_layers
    if isinstance(spec, specify.Logit):
        token = specify.token_id(model, spec.token)
        p = np.exp(logits(pos) - logits(pos).max())
        prob = float(p[token] / p.sum())
        return ("logit", token), TargetNode(model.token(token), "logit", token, prob, prob, L, pos)
    if isinstance(spec, specify.Difference):
        plus, minus = specify.token_id(model, spec.plus), specify.token_id(model, spec.minus)
        label = f"{model.token(plus)} - {model.token(minus)}"
        return ("difference", plus, minus), TargetNode(label, "difference", None, None, 1.0, L, pos)
    vector = specify.checked_direction(spec.vector, model.cfg.d_model)
    return ("direction", vector), TargetNode(spec.label, "direction", None, None, 1.0, L, pos)


def _output_vectors(model: Any, wanted: list[Any], dtype: Any, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors at the final norm's output [lanes, D] and constants [lanes]; zero in the lanes beyond those wanted."""
    ids = [token for kind, *what in wanted if kind != "direction" for token in what]
    padded = np.pad(np.asarray(ids, np.int32), (0, bucket(len(ids)) - len(ids)))
    columns = zip(*map(host, vectors_program(model.params, padded)), strict=True)
    vec, const = np.zeros((lanes, model.cfg.d_model), dtype), np.zeros(lanes, dtype)
    for i, (kind, *what) in enumerate(wanted):
        if kind == "direction":
            vec[i] = what[0]
            continue
        vec[i], const[i] = next(columns)
        if kind == "difference":
            less, constant = next(columns)
            vec[i], const[i] = vec[i] - less, const[i] - constant
    return vec, const


def slot_of(frozen: Frozen, spec: specify.Feature, some: Narrow | None) -> tuple[int, int]:
    """Position and slot of a feature; it must be active on the prompt."""
    pos = specify.place(spec.position, frozen.index.shape[1])
    number = spec.index if some is None else some.here(np.array([spec.layer]), np.array([spec.index]))[0]
    here = host(frozen.valid[spec.layer, pos]) & (host(frozen.index[spec.layer, pos]) == number)
    if not here.any():
        active = int(host(frozen.valid[spec.layer, pos]).sum())
        raise InputError(
            f"feature {spec.index} of layer {spec.layer} is not active at position {pos} ({active} others are): "
            "only active features are nodes"
        )
    return pos, int(np.argmax(here))

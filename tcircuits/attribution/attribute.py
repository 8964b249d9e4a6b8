"""From a prompt to a graph: the host's part. Resolves targets, picks static sizes, runs the compiled cores.

The cores (`freeze`, `effects`, `rows`) are pure and compiled once per bucket of sizes; rows are computed chunk by chunk
(`expansion`) and go to their place in the graph (`row_store`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution import specify
from tcircuits.attribution.expansion import store_for, sweep_rows
from tcircuits.attribution.frozen import Frozen, default_slots, freeze, read_by
from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.memory import check_memory
from tcircuits.attribution.narrowing import narrowed, whole_numbers
from tcircuits.attribution.prune import with_influence
from tcircuits.attribution.reference_selection import restrict_like_reference
from tcircuits.attribution.row_store import RowStore
from tcircuits.attribution.rows import effects
from tcircuits.attribution.select import Selection, select_top
from tcircuits.attribution.sketch import influence_sketch
from tcircuits.attribution.targets import Targets, feature_target, logit_vectors, output_targets, pad_targets
from tcircuits.attribution.timing import Timings
from tcircuits.compiling import compiled
from tcircuits.models.forward import check_length
from tcircuits.numerics import bucket
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders, encode
from tcircuits.transcoders.lazy import LazyTranscoders, Narrow
from tcircuits.types import Array, InputError

# The compiled programs; `planning` compiles the same ones for machines that are not there.
freeze_program = compiled(freeze, static_argnames=("cfg", "n_slots"))
SCORE_PROGRAMS = {
    "effect": compiled(effects, static_argnames=("cfg",)),
    "influence": compiled(influence_sketch, static_argnames=("cfg", "n_probes")),
}
select_program = compiled(select_top, static_argnames=("n",))
vectors_program = compiled(logit_vectors)


@dataclass(frozen=True)
class Settings:
    """What decides a graph beside model, dictionary, prompt and targets; see `attribute`."""

    max_features: int | None
    max_n_logits: int = 10
    desired_logit_prob: float = 0.95
    position: int = -1
    position_zero: str = "auto"
    selection: str = "influence"
    chunk: int | None = None
    precision: str = "highest"


@partial(compiled, static_argnames=("cfg",))
def count_active(cfg: Any, params: Any, d: Transcoders, tokens: Array, origin: bool | Array) -> Array:
    """The most active features at any layer and position; position 0 does not count where it is a constant."""
    with jax.default_matmul_precision("highest"):
        x = read_by(cfg, params, d.cfg, tokens)
        count = jax.lax.map(lambda s: (encode(d, s, x[s]) != 0).sum(-1), jnp.arange(len(x)))
    return jnp.where(origin & (jnp.arange(len(tokens)) == 0), 0, count).max()


def check_prompt(model: Any, prompt: Any) -> tuple[np.ndarray, str]:
    """Token ids and text of a prompt given as text or ids.

    Raises:
        InputError: no tokens, ids outside the vocabulary, more than the context, or text for a model without tokenizer.
    """
    ids = np.asarray(model.encode(prompt) if isinstance(prompt, str) else prompt, np.int64)
    if ids.ndim != 1:
        raise InputError(f"the prompt has shape {ids.shape}; give one prompt (attribute_batch takes several)")
    check_length(model.cfg, len(ids))
    if ids.min() < 0 or ids.max() >= model.cfg.d_vocab:
        raise InputError(f"token ids {ids.min()}..{ids.max()} leave the vocabulary 0..{model.cfg.d_vocab - 1}")
    return ids.astype(np.int32), prompt if isinstance(prompt, str) else model.decode(ids)


def check_match(model: Any, d: Transcoders | LazyTranscoders) -> None:
    """Raise where a dictionary was made for a model of other sizes."""
    cfg, c = model.cfg, d.cfg
    if c.kind == "sae":
        raise InputError(
            f"{d.source!r} are SAEs on {c.reads}: they stand for no computation to attribute through; give transcoders"
        )
    wrong = []
    if c.d_model != cfg.d_model:
        wrong.append(f"its width is {c.d_model}, the model's d_model {cfg.d_model}")
    if c.n_layers != cfg.n_layers:
        wrong.append(f"it is for {c.n_layers} layers, the model has {cfg.n_layers}")
    if c.kind == "neurons" and c.d_feature != cfg.d_mlp:
        wrong.append(f"it has {c.d_feature} neurons, the model's d_mlp is {cfg.d_mlp}")
    if wrong:
        raise InputError(f"transcoders {d.source!r} do not fit the model {model.name!r}: " + "; ".join(wrong))


def resolve(
    model: Any, d: Transcoders, frozen: Frozen, specs: Any, s: Settings, some: Narrow | None = None
) -> tuple[list[Targets], list[TargetNode]]:
    """Target chunks and their nodes, for what the caller asked to explain; `some` where `d` is a part of a set."""
    logits = host(frozen.logits, np.float64)
    T = logits.shape[0]
    if specs is None:
        specs = top_logits(logits[specify.place(s.position, T)], s)
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


def _output(model: Any, spec: Any, logits: np.ndarray, T: int) -> tuple[Any, TargetNode]:
    """(what to read at the output, node) of a logit, difference or direction."""
    pos, L = specify.place(spec.position, T), model.cfg.n_layers
    if isinstance(spec, specify.Logit):
        token = specify.token_id(model, spec.token)
        p = np.exp(logits[pos] - logits[pos].max())
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


def attribute(
    model: Any,
    transcoders: Transcoders | LazyTranscoders,
    prompt: Any,
    *,
    targets: Any = None,
    max_features: int | None = None,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    position: int = -1,
    position_zero: str = "auto",
    selection: str = "influence",
    chunk: int | None = None,
    precision: str = "highest",
    memory_gb: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    timings: Timings | None = None,
) -> Graph:
    """The attribution graph of one prompt.

    Args:
        model: from `load_model`.
        transcoders: from `load_transcoders`, in memory or on disk (lazy: see `narrowing`).
        prompt: a text or token ids.
        targets: what to explain: None is the smallest set of top logits up to `desired_logit_prob` (at most
            `max_n_logits`); else one or a list of token ids, texts, `Logit`, `Difference`, `Direction`, `Feature`.
        max_features: how many features get a row of their own (None: all, if that fits); others are leaves, summed.
        max_n_logits: at most so many top logits.
        desired_logit_prob: the probability that they should reach together.
        position: where logits are explained when `targets` does not say (negative: from the end).
        position_zero: `nodes` treats the MLPs at position 0 like all others, `constant` as one constant in the bias
            (the public tracer's BOS rule), `auto` is `constant` where the prompt starts with the BOS token.
        selection: `influence` or `effect` (see `select`), or `reference`: circuit-tracer's rounds and its
            column-restricted rows, for comparison on graphs small enough to expand whole.
        chunk: targets swept together (None: at most 160 on CPU, 256 elsewhere).
        precision: of the rows' matrix products, in the words of `jax.default_matmul_precision`: `highest` is float32;
            `default` is TensorFloat-32 on GPUs, bfloat16 on TPUs. All else stays float32; `Graph.max_row_gap` tells.
        memory_gb: bound for the estimate that refuses; None is 60 % of what the machine has free.
        progress: called with (rows done, rows in all); before, for a set on disk, with (blocks read, blocks in all).
        timings: gets the seconds of each stage.

    Raises:
        InputError: see `check_prompt`, `check_match` and `specify`.
    """
    s = Settings(max_features, max_n_logits, desired_logit_prob, position, position_zero, selection, chunk, precision)
    ids, text = _checked(model, transcoders, prompt, targets, s)
    times = Timings() if timings is None else timings
    d, some = narrowed(model, transcoders, [ids], [origin_rule(model, ids, s)], progress, times)
    with times.stage("forward"):
        frozen = freeze_prompt(model, d, ids, s)
        chunks, nodes = resolve(model, d, frozen, targets, s, some)
    with times.stage("select"):
        chosen, flat, n_active = _select(model, d, frozen, chunks, s, memory_gb)
    with times.stage("attribute"):
        store = store_for(model.cfg, frozen, flat, nodes, len(flat) < n_active)
        sweep_rows(model, d, frozen, chosen, chunks, store, s.chunk, s.precision, progress)
    with times.stage("influence"):
        graph = whole_numbers(assemble(model, d, frozen, ids, text, nodes, flat, store, n_active, s), some)
    return restrict_like_reference(graph, max_features) if selection == "reference" else graph


def _checked(model: Any, transcoders: Any, prompt: Any, targets: Any, s: Settings) -> tuple[np.ndarray, str]:
    """Token ids and text, once everything that was asked for has been looked at."""
    check_settings(s)
    check_match(model, transcoders)
    ids, text = check_prompt(model, prompt)
    specify.check(model, targets, s.position, len(ids))
    return ids, text


def expanded(frozen: Frozen, s: Settings) -> tuple[int, int]:
    """How many features get a row of their own, and how many are active."""
    n_active = int(host(frozen.valid).sum())
    every = s.max_features is None or s.selection == "reference"
    return n_active if every else min(s.max_features or 0, n_active), n_active


def check_precision(precision: str) -> None:
    """Raise for a word that `jax.default_matmul_precision` does not know."""
    try:
        with jax.default_matmul_precision(precision):
            pass
    except ValueError:
        raise InputError(
            f"precision={precision!r}; there are highest, high, default and the other words of "
            "jax.default_matmul_precision"
        ) from None


def check_settings(s: Settings) -> None:
    """Raise for settings outside what is allowed."""
    if s.position_zero not in ("auto", "nodes", "constant"):
        raise InputError(f"position_zero={s.position_zero!r}; there are auto, nodes, constant")
    if s.selection not in ("influence", "effect", "reference"):
        raise InputError(f"selection={s.selection!r}; there are influence, effect, reference")
    check_precision(s.precision)
    if s.max_features is not None and s.max_features < 1:
        raise InputError(f"max_features={s.max_features}; give at least 1, or None for all")
    if s.max_n_logits < 1 or not 0 < s.desired_logit_prob <= 1:
        raise InputError(
            f"max_n_logits={s.max_n_logits}, desired_logit_prob={s.desired_logit_prob}: give >= 1 and within (0, 1]"
        )


def freeze_prompt(model: Any, d: Transcoders, ids: np.ndarray, s: Settings) -> Frozen:
    """Freeze, with as many slots as the prompt needs."""
    origin, slots = origin_rule(model, ids, s), None
    if d.cfg.kind != "neurons" and default_slots(d) > 64:
        slots = min(bucket(int(count_active(model.cfg, model.params, d, ids, origin))), default_slots(d))
    frozen = freeze_program(model.cfg, model.params, d, ids, n_slots=slots, origin=origin)
    check_finite(model, frozen)
    return frozen


def check_finite(model: Any, frozen: Frozen) -> None:
    """Raise for a model that cannot compute the prompt."""
    if not np.isfinite(host(frozen.logits)).all():
        raise InputError(
            f"the model {model.name!r} gives logits that are not finite on this prompt: its weights are damaged"
        )


def origin_rule(model: Any, ids: np.ndarray, s: Settings) -> bool:
    """Whether the MLPs at position 0 are a constant rather than nodes."""
    bos = None if model.tokenizer is None else model.tokenizer.bos_id
    return s.position_zero == "constant" or (s.position_zero == "auto" and bos is not None and int(ids[0]) == bos)


def _select(
    model: Any, d: Transcoders, frozen: Frozen, chunks: list[Targets], s: Settings, memory_gb: float | None
) -> tuple[Selection, np.ndarray, int]:
    """The selected features, padded to a bucket; their places without the padding; how many are active."""
    (n, n_active), (L, T, C) = expanded(frozen, s), frozen.index.shape
    check_memory(n, n_active, L, T, memory_gb)
    if n == n_active:
        flat = np.flatnonzero(host(frozen.valid))
    else:
        rule = SCORE_PROGRAMS[s.selection]
        score = sum((rule(model.cfg, model.params, d, frozen, t) for t in chunks), jnp.zeros_like(frozen.value))
        flat = host(select_program(score, frozen.valid, n=n).flat)
    flat = flat.astype(np.int32)
    start = np.searchsorted(flat, np.arange(L + 1) * (T * C)).astype(np.int32)
    padded = np.pad(flat, (0, bucket(n, 64) - n), constant_values=frozen.index.size)
    return Selection(jnp.asarray(padded), jnp.asarray(start)), flat, n_active


def assemble(
    model: Any,
    d: Transcoders,
    frozen: Frozen,
    ids: np.ndarray,
    text: str,
    nodes: list[TargetNode],
    flat: np.ndarray,
    store: RowStore,
    n_active: int,
    s: Settings,
) -> Graph:
    """The rows of the features at `flat` places and of the targets `nodes`, as a graph with its influence."""
    L, T, C = frozen.index.shape
    layer, pos, slot = flat // (T * C), flat // C % T, flat % C
    number, value = host(frozen.index)[layer, pos, slot], host(frozen.value)[layer, pos, slot]
    row_start, source, weight = store.edges()
    graph = Graph(
        model=model.name,
        transcoders=d.source,
        prompt=text,
        tokens=ids,
        token_text=tuple(model.token(int(i)) for i in ids),
        n_layers=L,
        d_vocab=model.cfg.d_vocab,
        features=np.stack([layer, pos, number], 1).astype(np.int32),
        activations=value,
        targets=tuple(nodes),
        row_start=row_start,
        source=source,
        weight=weight,
        row_bias=store.bias,
        row_origin=store.origin,
        row_value=store.value,
        row_unexpanded=store.unexpanded,
        row_unexpanded_abs=store.unexpanded_abs,
        row_tail=np.zeros(len(store.bias)),
        row_tail_abs=np.zeros(len(store.bias)),
        influence=np.zeros(len(flat) + L * T + T),
        influence_unexpanded=np.zeros((L, T)),
        n_active=n_active,
        settings=describe(d, s, origin_rule(model, ids, s), bool((host(frozen.n_active) > C).any())),
    )
    return with_influence(graph)


def describe(d: Transcoders, s: Settings, origin: bool, overflow: bool) -> dict[str, Any]:
    """Settings as plain JSON values."""
    c = d.cfg
    out = {
        "dictionary": {
            "kind": c.kind,
            "activation": c.activation,
            "reads": c.reads,
            "writes": c.writes,
            "skip": c.skip,
        },
        "layers_without_dictionary": [i for i in range(c.n_layers) if i not in c.layers],
        "fill": c.fill,
        "max_features": s.max_features,
        "max_n_logits": s.max_n_logits,
        "desired_logit_prob": s.desired_logit_prob,
        "selection": s.selection,
        "precision": s.precision,
        "position_zero": "constant" if origin else "nodes",
        "overflow": overflow,
    }
    return json.loads(json.dumps(out))

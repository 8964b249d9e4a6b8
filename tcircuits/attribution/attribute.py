"""From a prompt to a graph: the host's part. Picks static sizes, runs the compiled cores, puts the graph together.

The cores (`freeze`, `effects`, `rows`) are pure and compiled once per bucket of sizes; rows are computed chunk by chunk
(`expansion`) and go to their place in the graph (`row_store`).
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution import specify
from tcircuits.attribution.checks import check_finite, check_match, check_prompt
from tcircuits.attribution.expansion import spread_for, store_for, sweep_rows
from tcircuits.attribution.frozen import Frozen, freeze, read_by
from tcircuits.attribution.graph import Graph, TargetNode
from tcircuits.attribution.memory import carried, check_memory, lean, streams
from tcircuits.attribution.narrowing import narrowed, whole_numbers
from tcircuits.attribution.outputs import resolve
from tcircuits.attribution.prune import with_influence
from tcircuits.attribution.reference_selection import restrict_like_reference
from tcircuits.attribution.row_store import RowStore
from tcircuits.attribution.rows import effects
from tcircuits.attribution.select import Selection, select_top
from tcircuits.attribution.settings import Settings, check_settings
from tcircuits.attribution.sketch import PROBES, influence_sketch
from tcircuits.attribution.slots import default_slots
from tcircuits.attribution.targets import Targets
from tcircuits.attribution.timing import Timings
from tcircuits.compiling import compiled
from tcircuits.numerics import bucket
from tcircuits.parallel import Spread, host, mesh_of, positions_of
from tcircuits.transcoders.dictionary import Transcoders, encode
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.types import Array

# The compiled programs; `planning` compiles the same ones for machines that are not there.
freeze_program = compiled(freeze, static_argnames=("cfg", "n_slots", "lean", "spread"))
SCORE_PROGRAMS = {
    "effect": compiled(effects, static_argnames=("cfg",)),
    "influence": compiled(influence_sketch, static_argnames=("cfg", "n_probes", "spread")),
}
select_program = compiled(select_top, static_argnames=("n",))


@partial(compiled, static_argnames=("cfg", "spread"))
def count_active(
    cfg: Any, params: Any, d: Transcoders, tokens: Array, origin: bool | Array, spread: Spread | None = None
) -> Array:
    """The most active features at any layer and position; position 0 does not count where it is a constant."""
    with jax.default_matmul_precision("highest"):
        x = read_by(cfg, params, d.cfg, tokens, spread)
        count = jax.lax.map(lambda s: (encode(d, s, x[s]) != 0).sum(-1), jnp.arange(len(x)))
    return jnp.where(origin & (jnp.arange(len(tokens)) == 0), 0, count).max()


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


def freeze_prompt(model: Any, d: Transcoders, ids: np.ndarray, s: Settings) -> Frozen:
    """Freeze, with as many slots as the prompt needs."""
    origin, slots, spread = origin_rule(model, ids, s), None, positions_of(mesh_of(model.params.embed))
    if d.cfg.kind != "neurons" and default_slots(d) > 64:
        most = count_active(model.cfg, model.params, d, ids, origin, spread)
        slots = min(bucket(int(most)), default_slots(d))
    few = lean(model.cfg, d.cfg, len(ids), slots or default_slots(d), jax.default_backend())
    frozen = freeze_program(model.cfg, model.params, d, ids, n_slots=slots, origin=origin, lean=few, spread=spread)
    check_finite(model, frozen)
    return frozen


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
        rule = partial(SCORE_PROGRAMS[s.selection], model.cfg, model.params, d, frozen)
        if s.selection == "influence":
            probes = min(PROBES, streams(T, carried(model.cfg, d.cfg, C)))
            rule = partial(rule, n_probes=probes, spread=spread_for(model))
        score = sum((rule(t) for t in chunks), jnp.zeros_like(frozen.value))
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

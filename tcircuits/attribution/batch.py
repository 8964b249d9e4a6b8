"""Many prompts in one call: the pure cores, vmapped over prompts of one length."""

from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution import specify
from tcircuits.attribution.attribute import assemble, count_active, origin_rule
from tcircuits.attribution.checks import check_finite, check_match, check_prompt
from tcircuits.attribution.expand import expand
from tcircuits.attribution.expansion import fill_first_layer, store_for
from tcircuits.attribution.frozen import Frozen, freeze
from tcircuits.attribution.graph import Graph
from tcircuits.attribution.memory import check_memory
from tcircuits.attribution.narrowing import narrowed, whole_numbers
from tcircuits.attribution.outputs import resolve
from tcircuits.attribution.row_store import RowStore
from tcircuits.attribution.settings import Settings, check_settings
from tcircuits.attribution.slots import default_slots
from tcircuits.attribution.targets import Targets, pad_targets
from tcircuits.compiling import compiled
from tcircuits.numerics import bucket
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.types import Array, InputError


@partial(compiled, static_argnames=("cfg", "n_slots"))
def _freeze_all(cfg: Any, params: Any, d: Transcoders, tokens: Array, n_slots: int | None, origin: bool) -> Frozen:
    return jax.vmap(lambda t: freeze(cfg, params, d, t, n_slots=n_slots, origin=origin))(tokens)


@partial(compiled, static_argnames=("cfg", "n", "chunk"))
def _expand_all(cfg: Any, params: Any, d: Transcoders, frozen: Frozen, outputs: Targets, n: int, chunk: int) -> Any:
    return jax.vmap(lambda f, t: expand(cfg, params, d, f, t, n, chunk=chunk))(frozen, outputs)


def attribute_batch(
    model: Any,
    transcoders: Transcoders | LazyTranscoders,
    prompts: Any,
    *,
    targets: Any = None,
    max_features: int = 512,
    chunk: int = 64,
    memory_gb: float | None = None,
    **options: Any,
) -> list[Graph]:
    """Attribution graphs of several prompts; those of one length go through one compiled, vmapped call.

    Args:
        model: from `load_model`.
        transcoders: from `load_transcoders`; a set that stays on disk is read once for all prompts.
        prompts: texts or lists of token ids.
        targets: one entry a prompt (each as in `attribute`), or None for the top logits of each.
        max_features: features expanded in each graph.
        chunk: targets swept together.
        memory_gb: bound for the estimate that refuses, as in `attribute`.
        **options: `max_n_logits`, `desired_logit_prob`, `position`, `position_zero`, as in `attribute`.

    Returns:
        One graph a prompt, in order; equal to `attribute` with the same options.

    Raises:
        InputError: as `attribute`, or as many targets as prompts are missing.
    """
    other = sorted(options.keys() - {"max_n_logits", "desired_logit_prob", "position", "position_zero"})
    if other or max_features is None:
        raise InputError(f"attribute_batch needs a number for max_features and takes no {', '.join(other) or 'None'}")
    s = Settings(max_features, chunk=chunk, **options)
    check_settings(s)
    check_match(model, transcoders)
    parsed = [check_prompt(model, p) for p in prompts]
    wanted = [None] * len(parsed) if targets is None else list(targets)
    if len(wanted) != len(parsed):
        raise InputError(f"{len(wanted)} targets for {len(parsed)} prompts: give one entry a prompt, or None")
    for (ids, _), specs in zip(parsed, wanted, strict=True):
        specify.check(model, specs, s.position, len(ids))
        if any(isinstance(t, specify.Feature) for t in specify.listed(specs, s.position) or []):
            raise InputError(
                "attribute_batch explains logits, differences and directions; for feature targets call attribute"
            )
    origins = [origin_rule(model, ids, s) for ids, _ in parsed]
    d, some = narrowed(model, transcoders, [ids for ids, _ in parsed], origins)
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for i, (ids, _) in enumerate(parsed):
        groups[len(ids), origins[i]].append(i)
    out: dict[int, Graph] = {}
    for (length, origin), members in groups.items():
        possible = model.cfg.n_layers * length * max(default_slots(d), model.cfg.d_mlp)
        check_memory(min(max_features, possible), None, model.cfg.n_layers, length, memory_gb, len(members))
        graphs = _group(model, d, [parsed[i] for i in members], [wanted[i] for i in members], origin, s)
        out.update(zip(members, graphs, strict=True))
    return [whole_numbers(out[i], some) for i in range(len(parsed))]


def _group(model: Any, d: Transcoders, parsed: Any, wanted: Any, origin: bool, s: Settings) -> list[Graph]:
    """Graphs of prompts of one length."""
    tokens = np.stack([ids for ids, _ in parsed])
    slots = None
    if d.cfg.kind != "neurons" and default_slots(d) > 64:
        busiest = max(int(count_active(model.cfg, model.params, d, t, origin)) for t in tokens)
        slots = min(bucket(busiest), default_slots(d))
    frozen = _freeze_all(model.cfg, model.params, d, tokens, slots, origin)
    check_finite(model, frozen)
    single = [jax.tree.map(lambda x, i=i: x[i], frozen) for i in range(len(parsed))]
    resolved = [resolve(model, d, f, t, s) for f, t in zip(single, wanted, strict=True)]
    lanes = max(chunks[0].pos.shape[1] for chunks, _ in resolved)
    outputs = jax.tree.map(lambda *x: jnp.stack(x), *[pad_targets(chunks[0], lanes) for chunks, _ in resolved])
    n = min(s.max_features or 1, max(int(f.valid.sum()) for f in single))
    chosen, rows = _expand_all(model.cfg, model.params, d, frozen, outputs, max(n, 1), s.chunk or 64)
    graphs = []
    rows = jax.tree.map(host, rows)
    for i, (ids, text) in enumerate(parsed):
        active, nodes = int(single[i].valid.sum()), resolved[i][1]
        flat = host(chosen.flat[i])[: int(chosen.start[i, -1])]
        store = store_for(model.cfg, single[i], flat, nodes, len(flat) < active)
        _fill(store, jax.tree.map(lambda x, i=i: x[i], rows))
        fill_first_layer(model, d, single[i], flat, store)
        graphs.append(assemble(model, d, single[i], ids, text, nodes, flat, store, active, s))
    return graphs


def _fill(store: RowStore, rows: Any) -> None:
    """Host rows, chunk by chunk, to their place: a feature's is its own, targets follow."""
    at = store.n
    for q in range(len(rows.layer)):
        one = jax.tree.map(lambda x, q=q: x[q], rows)
        lanes = np.flatnonzero(one.valid)
        if not len(lanes) or (one.node[lanes[0]] >= 0 and store.dtype == np.float32 and one.layer == 0):
            continue  # rows of layer 0 come from `precise`
        number = one.node[lanes].astype(np.int64)
        outputs = int((number < 0).sum())
        number[number < 0] = at + np.arange(outputs)
        at += outputs
        store.put_rows(one, number, lanes)

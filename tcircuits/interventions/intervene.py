"""Interventions for people: prompts as text, checked edits, results with what changed most."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.checks import check_match, check_prompt
from tcircuits.interventions.features import Clean, FeatureEdit, Run, clean_run, edited_run
from tcircuits.models.edits import Edit, check_edits, edit, outside
from tcircuits.numerics import wide
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders, pair
from tcircuits.transcoders.lazy import LazyTranscoders, decoders
from tcircuits.types import InputError

_clean = jax.jit(clean_run, static_argnames=("cfg",))
_edited = jax.jit(edited_run, static_argnames=("cfg", "freeze_attention", "freeze_norms"))


@dataclass(frozen=True)
class Intervention:
    """Logits [T, V] and activations [L, T, F] without and with the edits; `linear` as in `Run`."""

    tokens: np.ndarray
    clean_logits: np.ndarray
    logits: np.ndarray
    clean_activations: np.ndarray
    activations: np.ndarray
    linear: np.ndarray

    def probabilities(self, position: int = -1) -> tuple[np.ndarray, np.ndarray]:
        """Next-token probabilities [V] at a position, clean and edited, in float64."""
        return _softmax(self.clean_logits[position]), _softmax(self.logits[position])


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def intervene(
    model: Any,
    transcoders: Transcoders,
    prompt: Any,
    edits: Any,
    *,
    freeze_attention: bool = True,
    freeze_norms: bool = False,
    freeze_mlps: bool | Sequence[int] = False,
) -> Intervention:
    """Run a prompt with edits of features (`feature_edit`) and of sites (`edit`), and without them.

    Args:
        model: from `load_model`.
        transcoders: from `load_transcoders`, whole.
        prompt: a text or token ids.
        edits: one edit or several, of both sorts.
        freeze_attention: hold attention patterns at their clean values.
        freeze_norms: hold norm denominators too.
        freeze_mlps: True holds the output of every MLP (only the edits themselves move the stream: direct effects), a
            list of layers those, False none (effects through everything that follows).

    Raises:
        InputError: edits outside the model, the prompt or the dictionary; a set that stays on disk.
    """
    if isinstance(transcoders, LazyTranscoders):
        raise InputError(
            f"transcoders {transcoders.source!r} stay on disk (lazy), and an edit may switch on any of their "
            f"{transcoders.cfg.d_feature} features a layer: load them whole for interventions"
        )
    check_match(model, transcoders)
    ids, _ = check_prompt(model, prompt)
    given = [edits] if isinstance(edits, (FeatureEdit, Edit)) else list(edits)
    features = tuple(e for e in given if isinstance(e, FeatureEdit))
    sites = tuple(e for e in given if isinstance(e, Edit))
    if len(features) + len(sites) != len(given):
        raise InputError("edits are made by feature_edit(...) or edit(...)")
    for e in features:
        check_feature_edit(transcoders, e, len(ids))
    check_edits(model.cfg, sites, len(ids))
    held = _held_layers(freeze_mlps, model.cfg.n_layers)
    tokens = ids
    clean: Clean = _clean(model.cfg, model.params, transcoders, tokens)
    run: Run = _edited(
        model.cfg,
        model.params,
        transcoders,
        tokens,
        clean,
        features,
        sites,
        hold_mlps=held,
        freeze_attention=freeze_attention,
        freeze_norms=freeze_norms,
    )
    arrays = (clean.logits, run.logits, clean.activations, run.activations, run.linear)
    return Intervention(ids, *(host(x) for x in arrays))


def _held_layers(freeze_mlps: bool | Sequence[int], n_layers: int) -> jax.Array:
    if isinstance(freeze_mlps, bool):
        return jnp.full(n_layers, float(freeze_mlps))
    wrong = [i for i in freeze_mlps if not 0 <= i < n_layers]
    if wrong:
        raise InputError(f"freeze_mlps names layers {wrong}; the model has 0..{n_layers - 1}")
    return (
        jnp.zeros(n_layers).at[jnp.asarray(list(freeze_mlps), jnp.int32)].set(1.0)
        if len(freeze_mlps)
        else jnp.zeros(n_layers)
    )


def check_feature_edit(d: Transcoders, e: FeatureEdit, length: int) -> None:
    """Raise for edits that nothing would be changed by."""
    layer, feature = np.asarray(e.layer), np.asarray(e.feature)
    start, stop = np.asarray(e.start), np.asarray(e.stop)
    wrong = [f"layer {i} has no dictionary (it has {list(d.cfg.layers)})" for i in layer if i not in d.cfg.layers]
    wrong += [f"feature {i} is outside 0..{d.cfg.d_feature - 1}" for i in feature if not 0 <= i < d.cfg.d_feature]
    wrong += outside(start, stop, length)
    if not np.isfinite(np.asarray(e.value)).all():
        wrong.append("a value is not finite")
    if wrong:
        raise InputError("these edits cannot be applied: " + "; ".join(wrong))


def steer(
    model: Any,
    transcoders: Transcoders | LazyTranscoders,
    layer: int,
    feature: int,
    value: float,
    *,
    position: int | tuple[int, int | None] | None = None,
) -> tuple[Edit, ...]:
    """Site edits that add `value` times a feature's decoder rows to the stream: steering, for `forward` and `generate`.

    Raises:
        InputError: a layer without dictionary, or a feature that does not exist.
    """
    d = transcoders
    if layer not in d.cfg.layers or not 0 <= feature < d.cfg.d_feature:
        raise InputError(
            f"feature {feature} of layer {layer}: layers are {list(d.cfg.layers)}, features 0..{d.cfg.d_feature - 1}"
        )
    if isinstance(d, LazyTranscoders):
        d, feature = decoders(d, {layer: [feature]}).transcoders, 0
    add = partial(edit, d.cfg.writes, position=position, mode="add")
    if d.cfg.kind == "neurons":
        return (add(layer, value * wide(model.params.blocks.mlp.w_out[layer, feature])),)
    assert d.w_dec is not None
    slot = d.cfg.layers.index(layer)
    if d.cfg.kind == "transcoder":
        return (add(layer, value * wide(d.w_dec[slot, feature])),)
    return tuple(
        add(m, value * wide(d.w_dec[pair(d.cfg, layer, m), feature])) for m in range(layer, model.cfg.n_layers)
    )

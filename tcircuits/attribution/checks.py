"""Whether a prompt can be traced, a dictionary fits, and what a person names exists: one clear message each.

All but `check_finite` before anything is computed.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tcircuits.attribution.frozen import Frozen
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import check_length
from tcircuits.parallel import host
from tcircuits.transcoders.config import TranscoderConfig, misfits
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.lazy import LazyTranscoders
from tcircuits.types import InputError


def n_features(cfg: ModelConfig, c: TranscoderConfig, layer: int) -> int:
    """How many features a layer has; 0 where it has no dictionary."""
    if layer in c.layers:
        return c.d_feature
    return cfg.d_mlp if c.fill == "neurons" else 0


def check_layer(cfg: ModelConfig, c: TranscoderConfig, layer: int) -> None:
    """Raise for a layer that the model does not have, or that has no dictionary."""
    if not 0 <= layer < cfg.n_layers:
        raise InputError(f"layer {layer}: the model has layers 0..{cfg.n_layers - 1}")
    if n_features(cfg, c, layer) == 0:
        there = ", ".join(map(str, c.layers))
        raise InputError(f"layer {layer} has no dictionary (layers with one: {there}), so it has no features")


def check_feature(cfg: ModelConfig, c: TranscoderConfig, layer: int, index: int) -> None:
    """Raise for a feature that does not exist."""
    check_layer(cfg, c, layer)
    n = n_features(cfg, c, layer)
    if not 0 <= index < n:
        raise InputError(f"feature {index} of layer {layer}: its dictionary has features 0..{n - 1}")


def check_head(cfg: ModelConfig, layer: int, head: int) -> None:
    """Raise for a head that does not exist."""
    if not 0 <= layer < cfg.n_layers or not 0 <= head < cfg.n_heads:
        raise InputError(
            f"head {layer}/{head} does not exist: the model has layers 0..{cfg.n_layers - 1} "
            f"of heads 0..{cfg.n_heads - 1}"
        )


def check_heads(cfg: ModelConfig, top: int, heads: Sequence[tuple[int, int]]) -> None:
    """Raise for a chain of heads, from the target at layer `top` down, that no path can take."""
    limit = top if cfg.parallel or top == cfg.n_layers else top + 1
    for layer, head in heads:
        check_head(cfg, layer, head)
        if layer >= limit:
            lowest = "no layer" if limit == 0 else f"a layer up to {limit - 1}"
            raise InputError(f"head {layer}/{head} cannot come here in the chain: the next head is of {lowest}")
        limit = layer


def parse_pair(text: str, what: str) -> tuple[int, int]:
    """Two numbers as the command line writes them: LAYER/INDEX or LAYER/HEAD.

    Raises:
        InputError: another form.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise InputError(f"{what} {text!r}: write LAYER/{'HEAD' if 'head' in what else 'INDEX'}, for example 2/7")
    return int(found[1]), int(found[2])


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
    if wrong := misfits(cfg, c):
        raise InputError(f"transcoders {d.source!r} do not fit the model {model.name!r}: " + "; ".join(wrong))


def check_finite(model: Any, frozen: Frozen) -> None:
    """Raise for a model that cannot compute the prompt."""
    if not np.isfinite(host(frozen.logits)).all():
        raise InputError(
            f"the model {model.name!r} gives logits that are not finite on this prompt: its weights are damaged"
        )

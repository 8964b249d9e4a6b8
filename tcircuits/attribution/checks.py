"""Whether features, heads and layers that a person names exist: one clear message each, before anything is computed."""

import re
from collections.abc import Sequence

from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.config import TranscoderConfig
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

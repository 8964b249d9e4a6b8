"""`tcircuits weights` and `attention`."""

from dataclasses import dataclass
from typing import Any, Literal

import tyro

from tcircuits.cli import common
from tcircuits.cli.common import Repeated, print_json
from tcircuits.types import InputError


@dataclass(frozen=True)
class Weights:
    """What a feature answers to and does, from weights alone: tokens, logits, heads, earlier and later features."""

    feature: tyro.conf.Positional[str]
    """LAYER/INDEX, for example 2/7."""
    model: str = common.MODEL
    """As in trace."""
    transcoders: str | None = None
    """As in trace."""
    choose: Repeated = ()
    """As in trace."""
    through: Repeated = ()
    """Look through this head, LAYER/HEAD; repeated, a chain of heads from the feature down."""
    data: str | None = None
    """Text or tokens (as in eval): norms' denominators are their means there. Default: ones."""
    n_tokens: int = 8192
    """Tokens of DATA that are read."""
    top: int = 10
    """Tokens and features listed on each side."""
    heads: int = 6
    """Heads listed, by OV norm."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class Attention:
    """Why a head looks where it looks: a score as pairs of features, tokens, errors and biases of query and key."""

    prompt: tyro.conf.Positional[str]
    """The text."""
    head: str
    """LAYER/HEAD."""
    query: int = -1
    """Position that looks; negative counts from the end."""
    key: int | None = None
    """Position that is looked at; default: the one that the head attends to most."""
    model: str = common.MODEL
    """As in trace."""
    transcoders: str | None = None
    """As in trace."""
    choose: Repeated = ()
    """As in trace."""
    bos: Literal["auto", "add", "none"] = "auto"
    """As in trace."""
    top: int = 12
    """Pairs, and sources of each side, listed."""
    json: bool = False
    """Print one JSON object instead of tables."""


def weights(cfg: Weights) -> None:
    """Run `tcircuits weights`."""
    from tcircuits.attribution.checks import parse_pair
    from tcircuits.transcoders.options import parse_choices

    layer, index = parse_pair(cfg.feature, "feature")
    through, choices = [parse_pair(text, "head") for text in cfg.through], parse_choices(cfg.choose)
    if cfg.top < 1 or cfg.heads < 0 or cfg.n_tokens < 1:
        raise InputError(f"--top {cfg.top} --heads {cfg.heads} --n-tokens {cfg.n_tokens}: give at least 1, 0 and 1")
    common.start_jax()
    import tcircuits as tc
    from tcircuits.attribution.checks import check_feature, check_heads
    from tcircuits.attribution.feature_weights import feature_weights
    from tcircuits.parallel import is_lead
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.terminal_weights import show_weights

    model = tc.load_model(cfg.model)
    d = tc.load_transcoders(cfg.transcoders or usual_set(cfg.model), model=model, **choices)
    check_feature(model.cfg, d.cfg, layer, index)
    check_heads(model.cfg, layer, through)
    hold = None if cfg.data is None else _mean_hold(cfg, model, d)
    found = feature_weights(model, d, layer, index, through=through, hold=hold, top=cfg.top, n_heads=cfg.heads)
    if cfg.data is not None:
        found["denominators"] = f"means over {cfg.data}"
    if is_lead():
        print_json(found) if cfg.json else show_weights(found)


def _mean_hold(cfg: Weights, model: Any, d: Any) -> Any:
    """Mean denominators over the start of a corpus."""
    from tcircuits.attribution.corpus import mean_hold
    from tcircuits.transcoders.evaluation.corpus import corpus
    from tcircuits.transcoders.evaluation.data import open_rows

    assert cfg.data is not None
    with open_rows(cfg.data, model) as rows:
        some = corpus(model.cfg, rows, cfg.n_tokens)
        return mean_hold(model, d, some.read(0, some.n))


def attention(cfg: Attention) -> None:
    """Run `tcircuits attention`."""
    from tcircuits.attribution.checks import parse_pair
    from tcircuits.transcoders.options import parse_choices

    head, choices = parse_pair(cfg.head, "head"), parse_choices(cfg.choose)
    if cfg.top < 1:
        raise InputError(f"--top {cfg.top}: give at least 1")
    common.start_jax()
    import tcircuits as tc
    from tcircuits.attribution.head_report import attention_report
    from tcircuits.parallel import is_lead
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.terminal_weights import show_attention

    model = tc.load_model(cfg.model)
    d = tc.load_transcoders(cfg.transcoders or usual_set(cfg.model), model=model, **choices)
    ids = model.encode(cfg.prompt, bos=cfg.bos)
    found = attention_report(model, d, ids, head, cfg.query, cfg.key, top=cfg.top) | {"prompt": cfg.prompt}
    if is_lead():
        print_json(found) if cfg.json else show_attention(found)

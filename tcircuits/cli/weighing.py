"""`tcircuits weights` and `attention`."""

import sys
from dataclasses import dataclass
from pathlib import Path
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
    lazy: bool = False
    """Leave transcoders on disk: decoders of earlier and encoders of later layers pass by in blocks."""
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
    """Why a head looks where it looks (--head), or which heads carry an edge of a graph (--edge)."""

    prompt: tyro.conf.Positional[str | None] = None
    """The text; or give --graph."""
    head: str | None = None
    """LAYER/HEAD: its score as pairs of features, tokens, errors and biases of query and key."""
    query: int = -1
    """Of --head: position that looks; negative counts from the end."""
    key: int | None = None
    """Of --head: position that is looked at; default: the one that the head attends to most."""
    edge: tuple[str, str] | None = None
    """TARGET SOURCE: ids of two nodes, as the page of a graph and its JSON have them."""
    graph: Path | None = None
    """A saved graph (graph.npz): its prompt is taken, and its edge is compared with the one found."""
    model: str | None = None
    """As in trace; default: the graph's."""
    transcoders: str | None = None
    """As in trace; default: the graph's."""
    choose: Repeated = ()
    """As in trace."""
    lazy: bool = False
    """As in trace."""
    bos: Literal["auto", "add", "none"] = "auto"
    """As in trace."""
    top: int = 12
    """Pairs, sources of each side, or heads listed."""
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
    from tcircuits.attribution.lazy_weights import told_rows
    from tcircuits.parallel import is_lead
    from tcircuits.transcoders.lazy import LazyTranscoders
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.terminal import progress
    from tcircuits.view.terminal_weights import show_weights

    model = tc.load_model(cfg.model)
    load = tc.open_transcoders if cfg.lazy else tc.load_transcoders
    d = load(cfg.transcoders or usual_set(cfg.model), model=model, **choices)
    check_feature(model.cfg, d.cfg, layer, index)
    check_heads(model.cfg, layer, through)
    hold = None if cfg.data is None else _mean_hold(cfg, model, d)
    options = {"through": through, "hold": hold, "top": cfg.top, "n_heads": cfg.heads}
    if isinstance(d, LazyTranscoders) and is_lead():
        what = told_rows(d, layer, through[-1][0] if through else layer)
        print(f"tcircuits: every feature's weight is wanted: reading {what or 'no matrix'} in blocks", file=sys.stderr)
    with progress("blocks", not cfg.json) as bar:
        found = feature_weights(model, d, layer, index, **options, progress=bar)
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


def check_attention(cfg: Attention) -> None:
    """Raise for options that do not go together."""
    if (cfg.head is None) == (cfg.edge is None):
        raise InputError("give one of --head LAYER/HEAD and --edge TARGET SOURCE")
    if (cfg.prompt is None) == (cfg.graph is None):
        raise InputError("give one of a prompt and --graph FILE")
    if cfg.edge is not None and (cfg.query != -1 or cfg.key is not None):
        raise InputError("--query and --key belong to --head; an edge has its positions in the ids of its nodes")
    if cfg.graph is not None and cfg.bos != "auto":
        raise InputError("--bos belongs to a prompt; --graph has its tokens")
    if cfg.top < 1:
        raise InputError(f"--top {cfg.top}: give at least 1")


def attention(cfg: Attention) -> None:
    """Run `tcircuits attention`."""
    from tcircuits.attribution.checks import parse_pair
    from tcircuits.transcoders.options import parse_choices

    check_attention(cfg)
    head, choices = None if cfg.head is None else parse_pair(cfg.head, "head"), parse_choices(cfg.choose)
    common.start_jax()
    import tcircuits as tc
    from tcircuits.attribution.edge_report import edge_report
    from tcircuits.attribution.head_report import attention_report
    from tcircuits.parallel import is_lead
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.terminal_weights import show_attention, show_edge

    graph = None if cfg.graph is None else tc.load_graph(cfg.graph)
    name = cfg.model or (common.MODEL if graph is None else graph.model)
    model = tc.load_model(name)
    # Transcoders that are not named belong to the graph; with another model, to that.
    usual = graph.transcoders if graph is not None and cfg.model is None else usual_set(name)
    d = (tc.open_transcoders if cfg.lazy else tc.load_transcoders)(cfg.transcoders or usual, model=model, **choices)
    ids = model.encode(cfg.prompt or "", bos=cfg.bos) if graph is None else graph.tokens
    if cfg.edge is not None:
        found = edge_report(model, d, ids, *cfg.edge, graph=graph, top=cfg.top)
    else:
        assert head is not None
        found = attention_report(model, d, ids, head, cfg.query, cfg.key, top=cfg.top)
    found["prompt"] = cfg.prompt if graph is None else graph.prompt
    if is_lead():
        print_json(found) if cfg.json else (show_attention if cfg.edge is None else show_edge)(found)

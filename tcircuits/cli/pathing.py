"""`tcircuits paths`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tcircuits.cli import common
from tcircuits.cli.common import Repeated, check_folder, print_json, write_text
from tcircuits.types import InputError


@dataclass(frozen=True)
class Paths:
    """Which chains of features and heads lead to an output: computational paths, signed, every node balanced."""

    prompt: tyro.conf.Positional[str]
    """The text to explain."""
    out: Path | None = None
    """Folder for paths.npz and paths.txt; by default nothing is written."""
    model: str = common.MODEL
    """A built-in name, a folder, a .gguf file, or a hub id."""
    transcoders: str | None = None
    """`neurons`, the name of a set, a folder, a file, or a hub id; default: the model's own set, or its neurons."""
    choose: Repeated = ()
    """What the files of transcoders leave open, NAME=VALUE (repeatable): layers=0,1 reads=mlp_in l0=70 width=16k ..."""
    lazy: bool = False
    """Leave transcoders on disk and read the rows of active features only."""
    target: str | None = None
    """What to explain: a token (' Paris'), feature:LAYER/POS/INDEX or direction:FILE.npy; default: likeliest token."""
    minus: str | None = None
    """Explain the difference between the target token and this one."""
    position: int = -1
    """Where a token is explained; negative counts from the end."""
    bos: Literal["auto", "add", "none"] = "auto"
    """Put the BOS token before the prompt: auto where the model was made with one."""
    iterations: int = 5
    """Nodes below the root at most."""
    branches: int | None = 15
    """Paths kept at each level; `None` keeps all, for small models."""
    filter: Repeated = ()
    """Condition on every node (repeatable): layer<8 position>=3 kind=feature kind!=embed head=7 feature!=355."""
    infix: Repeated = ()
    """Nodes somewhere in the path (repeatable), root first: 'kind=feature,layer=8 <- head=7'."""
    not_infix: Repeated = ()
    """Nodes that stand nowhere in the path (repeatable)."""
    suffix: Repeated = ()
    """Nodes that the path ends in (repeatable)."""
    positive: bool = False
    """Positive contributions only."""
    cap: bool = False
    """Rank by contributions capped at the least activation above them on the path."""
    bos_source: bool | None = None
    """Whether heads may lead to position 0; default: where the prompt does not start with the BOS token."""
    json: bool = False
    """Print one JSON object instead of tables."""


def parse_target(cfg: Paths) -> Any:
    """The target, with --minus and --position applied."""
    from tcircuits.attribution import Difference, Direction, Logit
    from tcircuits.attribution.specify import parse

    spec = None if cfg.target is None else parse(cfg.target)
    if cfg.minus is not None:
        if not isinstance(spec, str):
            raise InputError("--minus needs a --target that is a token")
        return Difference(spec, cfg.minus, cfg.position)
    if spec is None and cfg.position != -1:
        raise InputError("--position needs a --target; without one the likeliest next token is explained")
    if isinstance(spec, Direction):
        return Direction(spec.vector, spec.label, cfg.position)
    return Logit(spec, cfg.position) if isinstance(spec, str) else spec


def paths(cfg: Paths) -> None:
    """Run `tcircuits paths`."""
    from tcircuits.transcoders.options import parse_choices

    if cfg.out is not None:
        check_folder(cfg.out, "--out")
    target, choices = parse_target(cfg), parse_choices(cfg.choose)
    common.start_jax()
    import tcircuits as tc
    from tcircuits.attribution.paths.filters import parse_filters
    from tcircuits.parallel import is_lead
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.paths import show_paths, summary

    model = tc.load_model(cfg.model)
    tokens = model.encode(cfg.prompt, bos=cfg.bos)
    patterns = {"infix": cfg.infix, "not_infix": cfg.not_infix, "suffix": cfg.suffix}
    parse_filters(cfg.filter, **patterns, length=len(tokens))  # before transcoders are loaded
    load = tc.open_transcoders if cfg.lazy else tc.load_transcoders
    graph = tc.find_paths(
        model,
        load(cfg.transcoders or usual_set(cfg.model), model=model, **choices),
        tokens,
        target=target,
        iterations=cfg.iterations,
        branches=cfg.branches,
        cap=cfg.cap,
        positive=cfg.positive,
        filters=cfg.filter,
        **patterns,
        bos_source=cfg.bos_source,
    )
    if not is_lead():
        return
    if cfg.out is not None:
        write_text(cfg.out / "paths.txt", graph.text)
        tc.save_paths(graph, cfg.out / "paths.npz")
    if cfg.json:
        print_json(summary(graph))
    else:
        show_paths(graph)

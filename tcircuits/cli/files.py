"""`tcircuits convert` and `info`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tcircuits.cli.common import Repeated, check_folder, print_json
from tcircuits.types import InputError


@dataclass(frozen=True)
class Convert:
    """Rewrite a model or transcoders in another format, in the dtype of the files."""

    source: tyro.conf.Positional[str]
    """What to read."""
    destination: tyro.conf.Positional[Path]
    """A new folder."""
    to: Literal["orbax", "circuit-tracer", "saelens"] = "orbax"
    """Format to write."""
    what: Literal["auto", "model", "transcoders"] = "auto"
    """What the source is; auto looks."""
    model: str | None = None
    """The model that transcoders belong to, where their files do not say its depth."""
    choose: Repeated = ()
    """As in trace."""


@dataclass(frozen=True)
class Info:
    """Sizes, sites, memory and use of a model or of transcoders, from their headers."""

    source: tyro.conf.Positional[str] = ""
    """A model or transcoders; without it, everything that is known by name."""
    what: Literal["auto", "model", "transcoders"] = "auto"
    """Which of the two it is; auto looks."""
    choose: Repeated = ()
    """As in trace."""
    json: bool = False
    """Print one JSON object instead of a table."""


def convert(cfg: Convert) -> None:
    """Run `tcircuits convert`."""
    if cfg.destination.exists() and (not cfg.destination.is_dir() or any(cfg.destination.iterdir())):
        raise InputError(f"{cfg.destination} exists and is not an empty folder; give a new one")
    check_folder(cfg.destination, "the destination")
    import tcircuits as tc
    from tcircuits.transcoders.describing import inspect, what_is
    from tcircuits.transcoders.options import parse_choices

    choices = parse_choices(cfg.choose)
    if what_is(cfg.source, cfg.what) == "model":
        if cfg.to != "orbax":
            raise InputError(f"a model is written as orbax, not {cfg.to}")
        model = tc.load_model(cfg.source)
        if cfg.destination.is_dir():  # it is empty; what is written takes its place
            cfg.destination.rmdir()
        tc.save_model(model, cfg.destination)
    else:
        model = None if cfg.model is None else tc.load_model(cfg.model)
        facts = {} if cfg.source == "neurons" else inspect(cfg.source, **choices)
        dtype, name = facts.get("dtype") or "float32", cfg.model or facts.get("model")
        transcoders = tc.load_transcoders(cfg.source, model=model, dtype=dtype, **choices)
        tc.save_transcoders(transcoders, cfg.destination, format=cfg.to, model_name=name)
    print(f"{cfg.source} -> {cfg.destination} ({cfg.to})")


def info(cfg: Info) -> None:
    """Run `tcircuits info`."""
    from tcircuits.transcoders.describing import needs, what_is
    from tcircuits.transcoders.options import parse_choices
    from tcircuits.view.terminal import show_facts, show_known

    if not cfg.source:
        show_known()
        return
    if what_is(cfg.source, cfg.what) == "transcoders":
        facts = needs(cfg.source, **parse_choices(cfg.choose))
    else:
        from tcircuits.models.loading import describe_model

        facts = describe_model(cfg.source)
    if cfg.json:
        print_json(facts)
    else:
        show_facts(cfg.source, facts)

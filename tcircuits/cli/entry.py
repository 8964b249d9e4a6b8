"""The entry point: reads the arguments, runs the verb, turns what went wrong into one message and an exit code."""

import io
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from tcircuits.cli.circuiting import Discover, Patch, Validate, discover, patch, validate
from tcircuits.cli.dictionaries import Eval, Tokenize, evaluate, tokenize
from tcircuits.cli.extracting import Extract, extract
from tcircuits.cli.features import Features, features
from tcircuits.cli.files import Convert, Info, convert, info
from tcircuits.cli.pathing import Paths, paths
from tcircuits.cli.planning import Plan, plan
from tcircuits.cli.sweeping import Sweep, sweep
from tcircuits.cli.tracing import Intervene, Trace, View, intervene, trace, view
from tcircuits.cli.training import Train, train
from tcircuits.cli.weighing import Attention, Weights, attention, weights
from tcircuits.types import InputError

RUN: dict[type, Callable[[Any], None]] = {
    Trace: trace,
    Paths: paths,
    View: view,
    Convert: convert,
    Intervene: intervene,
    Weights: weights,
    Attention: attention,
    Discover: discover,
    Extract: extract,
    Validate: validate,
    Patch: patch,
    Tokenize: tokenize,
    Train: train,
    Sweep: sweep,
    Info: info,
    Plan: plan,
    Eval: evaluate,
    Features: features,
}


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code where it arose."""
    print("tcircuits: warning:", " ".join(str(message).split()), file=sys.stderr)


def check_paths(cfg: Any) -> None:
    """Raise where a folder or file is given by an address: a path of that name would be made beside the command."""
    for name, value in ((f.name, getattr(cfg, f.name)) for f in fields(cfg)):
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and (kind := re.match(r"([a-z][a-z0-9+.-]*):/", str(path))):
                raise InputError(
                    f"{name} {path}: {kind[1]}:// addresses are not read or written; mount the bucket on every host "
                    "(gcsfuse, for example) and give its folder, or copy the files"
                )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    kinds: Any = Annotated[Trace, tyro.conf.subcommand("trace")]
    for kind in list(RUN)[1:]:
        kinds = kinds | Annotated[kind, tyro.conf.subcommand(kind.__name__.lower())]
    cfg = tyro.cli(kinds, prog="tcircuits", description="Circuit discovery in language models.", args=argv)
    warnings.showwarning = show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # tokens hold characters that a terminal may not have
    try:
        check_paths(cfg)
        RUN[type(cfg)](cfg)
    except (InputError, OSError) as problem:
        print("tcircuits:", " ".join(str(problem).split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tcircuits: interrupted", file=sys.stderr)
        return 130
    return 0

"""`tcircuits features`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tcircuits.cli import common
from tcircuits.cli.common import Repeated, check_folder, print_json
from tcircuits.types import InputError

STATE, SAMPLED = "state", "sampled.tokens"


@dataclass(frozen=True)
class Features:
    """What each feature of transcoders stands for: one pass over text, pages of all features, the viewers' files."""

    corpus: tyro.conf.Positional[str] = ""
    """Tokens (a folder that `tokenize` wrote, or rows [n, T] in a .npy file) or text; default: the model writes it."""
    out: Path = Path("features")
    """A new folder, or that of a pass that was cut off, with --resume."""
    model: str = common.MODEL
    """As in trace."""
    transcoders: str | None = None
    """As in trace."""
    choose: Repeated = ()
    """As in trace."""
    layers: str = "all"
    """Which: all, or 0,3 or 2-5."""
    tokens: int | None = None
    """Tokens to read, rounded down to whole rows; default: all of the corpus, 100,000 where the model writes it."""
    context: int = 128
    """Tokens of a row, BOS included."""
    part: Literal["all", "held_out"] = "all"
    """Which documents: held_out are those that training left out."""
    top: int = 20
    """Strongest activations of a feature that are kept."""
    drawn: int = 20
    """Activations of a feature that are drawn at random, for its quantiles."""
    width: int = 10
    """Tokens shown on either side of an example."""
    batch: int = 8
    """Rows at once; a GPU takes many more."""
    seed: int = 0
    """Of what is drawn, and of the text that the model writes."""
    resume: bool = False
    """Go on with the pass that was cut off in --out."""
    json: bool = False
    """Print one JSON object instead of a table."""


def check_features(cfg: Features) -> None:
    """Raise for options outside what is allowed, and for a folder with something else in it."""
    check_folder(cfg.out, "--out")
    if cfg.context < 2 or cfg.width < 0 or cfg.batch < 1:
        raise InputError(f"--context {cfg.context}, --width {cfg.width}, --batch {cfg.batch}: give at least 2, 0 and 1")
    if cfg.tokens is not None and cfg.tokens < cfg.context:
        raise InputError(f"--tokens {cfg.tokens}: give at least one row of --context {cfg.context}")
    there = cfg.out.is_dir() and any(cfg.out.iterdir())
    if there and not cfg.resume:
        raise InputError(f"{cfg.out} exists and is not empty; give a new folder, or --resume a pass that was cut off")
    if cfg.resume and (cfg.out / "index.html").exists():
        raise InputError(f"the pass in {cfg.out} is done; there is nothing to resume")


def features(cfg: Features) -> None:
    """Run `tcircuits features`."""
    from tcircuits.transcoders.options import parse_choices

    check_features(cfg)
    choices = parse_choices(cfg.choose)
    common.start_jax()
    import tcircuits as tc
    from tcircuits.parallel import is_lead
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.transcoders.statistics.run import check_layers, forget, only_layers
    from tcircuits.view.feature_data import Texts, collect
    from tcircuits.view.features import write_dashboards
    from tcircuits.view.terminal import progress, show_features

    model = tc.load_model(cfg.model)
    d = tc.load_transcoders(cfg.transcoders or usual_set(cfg.model), model=model, **choices)
    if cfg.layers != "all":
        from tcircuits.transcoders.evaluation.data import parse_layers

        d = only_layers(d, check_layers(d, parse_layers(cfg.layers)))
    with text_of(cfg, model) as rows:
        options = {"top": cfg.top, "drawn": cfg.drawn, "seed": cfg.seed, "batch": cfg.batch}
        with progress("rows", not cfg.json) as bar:
            found = tc.feature_statistics(
                model, d, rows, n_tokens=cfg.tokens, folder=cfg.out / STATE, progress=bar, **options
            )
        with progress("examples", not cfg.json) as bar:
            layers = collect(model, d, rows, found, width=cfg.width, batch=cfg.batch, progress=bar)
        if not is_lead():
            return
        page = write_dashboards(cfg.out, found, layers, Texts(model, rows, found)).resolve()
    forget(cfg.out / STATE)
    told = {"model": model.name, "transcoders": d.source, "positions": found.n_positions, "page": str(page)}
    if cfg.json:
        print_json(told | {"layers": found.table()})
    else:
        show_features(told, found.table())


@contextmanager
def text_of(cfg: Features, model: Any) -> Iterator[Any]:
    """The rows to read; text that the model wrote lies in the folder, so that a pass can go on with it."""
    from tcircuits.data import Rows, open_tokens, sample_tokens
    from tcircuits.transcoders.evaluation.data import open_rows

    if cfg.corpus:
        with open_rows(cfg.corpus, model, context=cfg.context, part=cfg.part) as rows:
            yield rows
        return
    path = cfg.out / SAMPLED
    if not path.exists():
        from tcircuits.view.terminal import progress

        with progress("tokens", not cfg.json) as bar:
            options = {"context": cfg.context, "seed": cfg.seed, "progress": bar}
            sample_tokens(model, path, cfg.tokens or 100_000, **options)
    yield Rows(open_tokens(path), cfg.context)

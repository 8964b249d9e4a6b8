"""`tcircuits trace`, `view` and `intervene`."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from tcircuits.cli import common
from tcircuits.cli.common import Repeated, check_folder, print_json
from tcircuits.types import InputError


@dataclass(frozen=True)
class Trace:
    """Explain what a model says next: an attribution graph, and a page that shows it."""

    prompt: tyro.conf.Positional[str]
    """The text to explain."""
    out: Path = Path("trace")
    """Folder for page, graph and the viewers' JSON; an earlier trace there is replaced, other files are left alone."""
    model: str = common.MODEL
    """A built-in name, a folder, a .gguf file, or a hub id."""
    transcoders: str | None = None
    """`neurons`, the name of a set, a folder, a file, or a hub id; default: the model's own set, or its neurons."""
    choose: Repeated = ()
    """What the files of transcoders leave open, NAME=VALUE (repeatable): layers=0,1 reads=mlp_in l0=70 width=16k ..."""
    lazy: bool = False
    """Leave transcoders on disk and read the rows of active features only."""
    scratch: Path | None = None
    """With --lazy, on one CPU: a folder of a disk where the decoders of active features lie instead of the memory."""
    target: Repeated = ()
    """What to explain: a token (' Paris'), feature:LAYER/POS/INDEX or direction:FILE.npy; default: likeliest tokens."""
    minus: str | None = None
    """Explain the difference between the target token and this one."""
    position: int = -1
    """Where tokens are explained; negative counts from the end."""
    bos: Literal["auto", "add", "none"] = "auto"
    """Put the BOS token before the prompt: auto where the model was made with one."""
    max_features: int | None = 7500
    """Features that are expanded; `None` is all."""
    precision: str = "highest"
    """Of the rows' matrix products: highest is float32; default is TensorFloat-32 on GPUs and bfloat16 on TPUs."""
    node_threshold: float = 0.8
    """Share of influence that kept nodes carry."""
    edge_threshold: float = 0.98
    """Share of influence that kept edges carry."""
    page_edges: int = 40_000
    """Edges in the page and in the viewers' JSON at most, the strongest ones; graph.npz has all that pruning kept."""
    slug: str = "graph"
    """Name of the viewers' JSON file."""
    features: Path | None = None
    """What `tcircuits features --out` wrote for these transcoders: the page shows where features are strongest."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class View:
    """Serve a folder of traces on this machine only."""

    directory: tyro.conf.Positional[Path]
    """What `tcircuits trace --out` wrote, a folder of such folders, or a graph file (.npz, or circuit-tracer's .pt)."""
    port: int = 8041
    """Port on the loopback address."""


@dataclass(frozen=True)
class Intervene:
    """Change features and see what the model says then."""

    prompt: tyro.conf.Positional[str]
    """The text to run."""
    edit: Repeated
    """Edits (repeatable): LAYER/POSITION/INDEX=VALUE sets, +=VALUE adds, *=VALUE scales; POSITION may be `all`."""
    model: str = common.MODEL
    """As in trace."""
    transcoders: str | None = None
    """As in trace."""
    choose: Repeated = ()
    """As in trace."""
    bos: Literal["auto", "add", "none"] = "auto"
    """As in trace."""
    free_attention: bool = False
    """Let attention patterns react."""
    freeze_mlps: bool = False
    """Hold the outputs of all MLPs: direct effects only."""
    json: bool = False
    """Print one JSON object instead of tables."""


def check_trace(cfg: Trace) -> None:
    """Raise for options outside what is allowed, and where the files of a trace could not be written."""
    from tcircuits.attribution.settings import check_precision
    from tcircuits.attribution.viewer_json import check_slug

    check_slug(cfg.slug)
    check_precision(cfg.precision)
    check_folder(cfg.out, "--out")
    if not 0 <= cfg.node_threshold <= 1 or not 0 <= cfg.edge_threshold <= 1:
        raise InputError(f"thresholds {cfg.node_threshold}, {cfg.edge_threshold} are shares of influence: give 0..1")
    if cfg.max_features is not None and cfg.max_features < 1:
        raise InputError(f"--max-features {cfg.max_features}: give at least 1, or None for all")
    if cfg.scratch is not None and not cfg.lazy:
        raise InputError("--scratch is for decoders of sets that stay on disk: give --lazy too")
    if cfg.page_edges < 0:
        raise InputError(f"--page-edges {cfg.page_edges}: give 0 or more")


def parse_targets(cfg: Trace) -> list[Any] | None:
    """The targets of a trace, with --minus and --position applied."""
    from tcircuits.attribution import Difference, Direction, Logit
    from tcircuits.attribution.specify import parse

    specs = [parse(text) for text in cfg.target]
    if cfg.minus is not None:
        if len(specs) != 1 or not isinstance(specs[0], str):
            raise InputError("--minus needs exactly one --target that is a token")
        return [Difference(specs[0], cfg.minus, cfg.position)]
    if not specs:
        return None
    placed = [Direction(s.vector, s.label, cfg.position) if isinstance(s, Direction) else s for s in specs]
    return [Logit(s, cfg.position) if isinstance(s, str) else s for s in placed]


def trace(cfg: Trace) -> None:
    """Run `tcircuits trace`."""
    from tcircuits.transcoders.options import parse_choices

    check_trace(cfg)
    targets, choices = parse_targets(cfg), parse_choices(cfg.choose)
    common.start_jax()
    import tcircuits as tc
    from tcircuits.attribution import specify
    from tcircuits.attribution.checks import check_prompt
    from tcircuits.attribution.promote import promoted
    from tcircuits.attribution.summary import summary
    from tcircuits.parallel import is_lead
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.examples import open_features
    from tcircuits.view.terminal import STAGES, progress, show_trace

    times = tc.Timings()
    with times.stage("load"):
        model = tc.load_model(cfg.model)
        tokens, _ = check_prompt(model, model.encode(cfg.prompt, bos=cfg.bos))
        specify.check(model, targets, cfg.position, len(tokens))
        load = partial(tc.open_transcoders, scratch=cfg.scratch) if cfg.lazy else tc.load_transcoders
        transcoders = load(cfg.transcoders or usual_set(cfg.model), model=model, **choices)
        examples = None if cfg.features is None else open_features(cfg.features, transcoders.cfg, transcoders.source)
    with progress("rows", not cfg.json) as bar:
        graph = tc.attribute(
            model,
            transcoders,
            tokens,
            targets=targets,
            max_features=cfg.max_features,
            precision=cfg.precision,
            position=cfg.position,
            progress=bar,
            timings=times,
        )
    with times.stage("prune"):
        graph = tc.prune(graph, cfg.node_threshold, cfg.edge_threshold)
        found = summary(graph)
    with times.stage("write"):
        words = promoted(model, transcoders, graph)
        page = write_trace(cfg, graph, words, examples) if is_lead() else cfg.out
    times["attribute"] = times.get("attribute", 0.0) + times.pop("select", 0.0)
    found["seconds"] = {s: round(times.get(s, 0.0), 3) for s in STAGES}
    found["page"] = str(page)
    if not is_lead():
        return
    if cfg.json:
        print_json(found)
    else:
        show_trace(graph, found, str(page), words)


def write_trace(cfg: Trace, graph: Any, words: dict[int, Any], examples: Any = None) -> Path:
    """The files of a trace; the page last, so that it never shows a graph that is not there."""
    import tcircuits as tc
    from tcircuits.view.examples import with_examples

    cfg.out.mkdir(parents=True, exist_ok=True)
    tc.save_graph(graph.compact(), cfg.out / "graph.npz")
    options = {"slug": cfg.slug, "max_edges": cfg.page_edges, "promoted": words}
    shown = graph.to_viewer_json(cfg.out / f"{cfg.slug}.json", **options)
    if examples is not None:
        shown = with_examples(shown, examples)
    return tc.write_page(shown, cfg.out / "index.html").resolve()


def view(cfg: View) -> None:
    """Run `tcircuits view`."""
    from tcircuits.view.server import serve

    serve(cfg.directory, cfg.port)


def parse_edit(text: str) -> Any:
    """An edit as the command line writes it.

    Raises:
        InputError: another form.
    """
    from tcircuits.interventions import feature_edit

    found = re.fullmatch(r"(\d+)/(all|\d+)/(\d+)(\+|\*)?=([-+.\deE]+)", text)
    try:
        if found is None:
            raise ValueError
        layer, position, feature, sign, value = found.groups()
        place = None if position == "all" else int(position)
        make = partial(feature_edit, int(layer), int(feature), float(value), position=place)
        return make(mode="add") if sign == "+" else make(mode="scale") if sign == "*" else make(mode="set")
    except InputError:
        raise
    except ValueError:
        form = "LAYER/POSITION/INDEX=VALUE (or += or *=; POSITION may be all), for example 24/4/1005=0"
        raise InputError(f"edit {text!r}: write {form}") from None


def intervene(cfg: Intervene) -> None:
    """Run `tcircuits intervene`."""
    if not cfg.edit:
        raise InputError("give at least one --edit LAYER/POSITION/INDEX=VALUE")
    from tcircuits.transcoders.options import parse_choices

    common.start_jax()
    edits, choices = [parse_edit(text) for text in cfg.edit], parse_choices(cfg.choose)
    import numpy as np

    import tcircuits as tc
    from tcircuits.transcoders.presets import usual_set
    from tcircuits.view.terminal import show_intervention

    model = tc.load_model(cfg.model)
    transcoders = tc.load_transcoders(cfg.transcoders or usual_set(cfg.model), model=model, **choices)
    tokens = model.encode(cfg.prompt, bos=cfg.bos)
    options = {"freeze_attention": not cfg.free_attention, "freeze_mlps": cfg.freeze_mlps}
    run = tc.intervene(model, transcoders, tokens, edits, **options)
    before, after = run.probabilities()
    moved = np.abs(run.activations - run.clean_activations)
    top = np.argsort(-moved, axis=None, kind="stable")[:8]
    places = [tuple(int(i) for i in np.unravel_index(k, moved.shape)) for k in top]
    changed = [
        (f"L{i} f{f} @{t}", float(run.clean_activations[i, t, f]), float(run.activations[i, t, f]))
        for i, t, f in places
    ]
    if cfg.json:
        best = np.argsort(-np.maximum(before, after), kind="stable")[:10]
        rows = [
            {"token": model.token(int(i)), "id": int(i), "clean": float(before[i]), "edited": float(after[i])}
            for i in best
        ]
        print_json({"prompt": cfg.prompt, "edits": list(cfg.edit), "next": rows})
    else:
        show_intervention(model, before, after, changed)

"""The command line: one thin command a verb. Each parses, calls the library and writes; nothing is computed here.

Wrong input ends with one message and exit code 2, before anything expensive is run.
"""

import io
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tcircuits.types import InputError

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Trace:
    """Explain what a model says next: an attribution graph, and a page that shows it."""

    prompt: tyro.conf.Positional[str]
    """The text to explain."""
    out: Path
    """Folder for page, graph and the viewers' JSON; an earlier trace there is replaced, other files are left alone."""
    model: str = "smollm2-135m"
    """A built-in name, a folder, a .gguf file, or a hub id."""
    transcoders: str = "neurons"
    """`neurons`, the name of a published set, a folder, a file, or a hub id."""
    choose: Repeated = ()
    """What the files of transcoders leave open, NAME=VALUE (repeatable): layers=0,1 reads=mlp_in l0=70 width=16k ..."""
    lazy: bool = False
    """Leave transcoders on disk and read the rows of active features only."""
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
    node_threshold: float = 0.8
    """Share of influence that kept nodes carry."""
    edge_threshold: float = 0.98
    """Share of influence that kept edges carry."""
    page_edges: int = 40_000
    """Edges in the page and in the viewers' JSON at most, the strongest ones; graph.npz has all that pruning kept."""
    slug: str = "graph"
    """Name of the viewers' JSON file."""
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
class Intervene:
    """Change features and see what the model says then."""

    prompt: tyro.conf.Positional[str]
    """The text to run."""
    edit: Repeated
    """Edits (repeatable): LAYER/POSITION/INDEX=VALUE sets, +=VALUE adds, *=VALUE scales; POSITION may be `all`."""
    model: str = "smollm2-135m"
    """As in trace."""
    transcoders: str = "neurons"
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


@dataclass(frozen=True)
class Tokenize:
    """Turn text into token ids on disk, to train and evaluate on; or let a model write them."""

    out: Path
    """A new folder, for example prose.tokens."""
    text: tyro.conf.Positional[tuple[str, ...]] = ()
    """Text files, .jsonl files, folders of them, data sets of the hub (hf:OWNER/NAME[:CONFIG][@SPLIT])."""
    model: str = "smollm2-135m"
    """Whose tokenizer it is, and who writes with --sample; as in trace."""
    field: str = "text"
    """Where the text stands in a JSON line or in a data set's row."""
    separator: Literal["auto", "eos", "bos", "none"] = "auto"
    """Token after each document; auto is EOS where there is one, else BOS."""
    sample: int | None = None
    """Let the model write this many tokens instead, from its BOS token, or from how the documents of TEXT begin."""
    context: int = 128
    """Tokens of a row: rows are counted, and sampled texts are as long."""
    batch: int = 64
    """Texts that are sampled together; a GPU takes many more."""
    seed: int = 0
    """Of what is sampled."""
    json: bool = False
    """Print one JSON object instead of a table."""


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


@dataclass(frozen=True)
class Eval:
    """Measure transcoders or SAEs: reconstruction, sparsity, and what the model loses with layers replaced."""

    transcoders: tyro.conf.Positional[str]
    """As in trace."""
    data: str
    """Tokens (a folder that `tokenize` wrote, or rows [n, T] in a .npy file) or text (a file or folder)."""
    model: str = "smollm2-135m"
    """As in trace."""
    choose: Repeated = ()
    """As in trace."""
    n_tokens: int | None = None
    """Tokens to read, rounded down to whole rows; default: all of them."""
    context: int = 128
    """Tokens of a row, BOS included."""
    part: Literal["all", "held_out"] = "all"
    """Which documents: held_out are those that training left out."""
    layers: Repeated = ()
    """Layers to replace together: each, all, 0,3 or 2-5 (repeatable); default: each, and all."""
    batch: int = 8
    """Rows at once."""
    replace_first: bool = False
    """Replace position 0 too; it is counted nowhere."""
    out: Path | None = None
    """File for the JSON object; an earlier one is replaced."""
    json: bool = False
    """Print one JSON object instead of tables."""


def print_json(found: dict[str, Any]) -> None:
    """One object on one line; characters are escaped where the stream cannot show all of them."""
    everything = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(found, ensure_ascii=not everything))


def start_jax() -> None:
    """Join the other hosts of a run, if any, and keep compiled programs on disk, so that a second run is fast."""
    import jax

    from tcircuits.parallel import initialize

    folder = os.environ.get("TCIRCUITS_CACHE", str(Path.home() / ".cache" / "tcircuits"))
    jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    initialize()


def check_folder(path: Path, name: str) -> None:
    """Raise where a folder cannot be made or written, before anything is computed; nothing is left behind."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{name} {path} is a file; give a folder")
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as problem:
        raise InputError(f"{name} {path} cannot be written: {problem.strerror or problem}") from None


def check_trace(cfg: Trace) -> None:
    """Raise for options outside what is allowed, and where the files of a trace could not be written."""
    from tcircuits.attribution.viewer_json import check_slug

    check_slug(cfg.slug)
    check_folder(cfg.out, "--out")
    if not 0 <= cfg.node_threshold <= 1 or not 0 <= cfg.edge_threshold <= 1:
        raise InputError(f"thresholds {cfg.node_threshold}, {cfg.edge_threshold} are shares of influence: give 0..1")
    if cfg.max_features is not None and cfg.max_features < 1:
        raise InputError(f"--max-features {cfg.max_features}: give at least 1, or None for all")
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
    start_jax()
    import tcircuits as tc
    from tcircuits.attribution import specify
    from tcircuits.attribution.attribute import check_prompt
    from tcircuits.attribution.promote import promoted
    from tcircuits.attribution.summary import summary
    from tcircuits.parallel import is_lead
    from tcircuits.view.terminal import STAGES, progress, show_trace

    times = tc.Timings()
    with times.stage("load"):
        model = tc.load_model(cfg.model)
        tokens, _ = check_prompt(model, model.encode(cfg.prompt, bos=cfg.bos))
        specify.check(model, targets, cfg.position, len(tokens))
        load = tc.open_transcoders if cfg.lazy else tc.load_transcoders
        transcoders = load(cfg.transcoders, model=model, **choices)
    with progress("rows", not cfg.json) as bar:
        graph = tc.attribute(
            model,
            transcoders,
            tokens,
            targets=targets,
            max_features=cfg.max_features,
            position=cfg.position,
            progress=bar,
            timings=times,
        )
    with times.stage("prune"):
        graph = tc.prune(graph, cfg.node_threshold, cfg.edge_threshold)
        found = summary(graph)
    with times.stage("write"):
        words = promoted(model, transcoders, graph)
        page = write_trace(cfg, graph, words) if is_lead() else cfg.out
    times["attribute"] = times.get("attribute", 0.0) + times.pop("select", 0.0)
    found["seconds"] = {s: round(times.get(s, 0.0), 3) for s in STAGES}
    found["page"] = str(page)
    if not is_lead():
        return
    if cfg.json:
        print_json(found)
    else:
        show_trace(graph, found, str(page), words)


def write_trace(cfg: Trace, graph: Any, words: dict[int, Any]) -> Path:
    """The files of a trace; the page last, so that it never shows a graph that is not there."""
    import tcircuits as tc

    cfg.out.mkdir(parents=True, exist_ok=True)
    tc.save_graph(graph.compact(), cfg.out / "graph.npz")
    options = {"slug": cfg.slug, "max_edges": cfg.page_edges, "promoted": words}
    shown = graph.to_viewer_json(cfg.out / f"{cfg.slug}.json", **options)
    return tc.write_page(shown, cfg.out / "index.html").resolve()


def view(cfg: View) -> None:
    """Run `tcircuits view`."""
    from tcircuits.view.server import serve

    serve(cfg.directory, cfg.port)


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

    start_jax()
    edits, choices = [parse_edit(text) for text in cfg.edit], parse_choices(cfg.choose)
    import numpy as np

    import tcircuits as tc
    from tcircuits.view.terminal import show_intervention

    model = tc.load_model(cfg.model)
    transcoders = tc.load_transcoders(cfg.transcoders, model=model, **choices)
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


def tokenize(cfg: Tokenize) -> None:
    """Run `tcircuits tokenize`."""
    from tcircuits import data
    from tcircuits.data.writing import check_new
    from tcircuits.models.loading import load_tokenizer
    from tcircuits.view.terminal import progress, show_facts

    check_new(cfg.out)
    if cfg.context < 2:
        raise InputError(f"--context {cfg.context}: a row has at least 2 tokens")
    if cfg.sample is None:
        corpus = data.open_text(cfg.text, field=cfg.field)
        tokenizer, size = load_tokenizer(cfg.model)
        options = {"separator": cfg.separator, "vocab_size": size, "n_bytes": corpus.n_bytes}
        with progress("bytes", not cfg.json) as bar:
            tokens = data.tokenize(corpus, tokenizer, cfg.out, progress=bar, **options)
    else:
        tokens = sample(cfg, cfg.sample)
    facts = data.summary(tokens, cfg.context)
    if cfg.json:
        print_json(facts)
    else:
        show_facts(cfg.model, facts)


def sample(cfg: Tokenize, n: int) -> Any:
    """Token ids that the model writes."""
    import tcircuits as tc
    from tcircuits import data
    from tcircuits.view.terminal import progress

    corpus = data.open_text(cfg.text, field=cfg.field) if cfg.text else None
    start_jax()
    model = tc.load_model(cfg.model)
    starts = None if corpus is None else data.starts_of(model.encode(d.text[:200]) for d in corpus)
    with progress("tokens", not cfg.json) as bar:
        options = {"context": cfg.context, "batch": cfg.batch, "seed": cfg.seed, "starts": starts}
        return data.sample_tokens(model, cfg.out, n, progress=bar, **options)


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


def evaluate(cfg: Eval) -> None:
    """Run `tcircuits eval`."""
    from tcircuits.transcoders.options import parse_choices

    choices = parse_choices(cfg.choose)
    if cfg.out is not None:
        check_folder(cfg.out.absolute().parent, "the folder of --out")
    start_jax()
    import tcircuits as tc
    from tcircuits.parallel import is_lead
    from tcircuits.transcoders.evaluation.data import open_rows, parse_sets
    from tcircuits.transcoders.evaluation.table import evaluate
    from tcircuits.view.terminal import progress, show_evaluation

    model = tc.load_model(cfg.model)
    d = tc.load_transcoders(cfg.transcoders, model=model, **choices)
    sets = parse_sets(cfg.layers, d.cfg.layers)
    options = {"n_tokens": cfg.n_tokens, "batch": cfg.batch, "keep_first": not cfg.replace_first}
    with (
        open_rows(cfg.data, model, context=cfg.context, part=cfg.part) as rows,
        progress("rows", not cfg.json) as bar,
    ):
        found = evaluate(model, d, rows, conditions=sets, progress=bar, **options)
    told = found.to_json() | {"data": cfg.data, "part": cfg.part}
    if not is_lead():
        return
    if cfg.out is not None:
        write_text(cfg.out, json.dumps(told, indent=1) + "\n")
    if cfg.json:
        print_json(told)
    else:
        show_evaluation(told)


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


RUN: dict[type, Callable[[Any], None]] = {
    Trace: trace,
    View: view,
    Convert: convert,
    Intervene: intervene,
    Tokenize: tokenize,
    Info: info,
    Eval: evaluate,
}


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code where it arose."""
    print("tcircuits: warning:", " ".join(str(message).split()), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    kinds: Any = Annotated[Trace, tyro.conf.subcommand("trace")]
    for kind in (View, Convert, Intervene, Tokenize, Info, Eval):
        kinds = kinds | Annotated[kind, tyro.conf.subcommand(kind.__name__.lower())]
    cfg = tyro.cli(kinds, prog="tcircuits", description="Circuit discovery in language models.", args=argv)
    warnings.showwarning = show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # tokens hold characters that a terminal may not have
    try:
        RUN[type(cfg)](cfg)
    except (InputError, OSError) as problem:
        print("tcircuits:", " ".join(str(problem).split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tcircuits: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

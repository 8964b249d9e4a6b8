"""`tcircuits tokenize` and `eval`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from tcircuits.cli import common
from tcircuits.cli.common import Repeated, check_folder, print_json, write_text
from tcircuits.types import InputError


@dataclass(frozen=True)
class Tokenize:
    """Turn text into token ids on disk, to train and evaluate on; or let a model write them."""

    out: Path
    """A new folder, for example prose.tokens."""
    text: tyro.conf.Positional[tuple[str, ...]] = ()
    """Text files, .jsonl files, folders of them, data sets of the hub (hf:OWNER/NAME[:CONFIG][@SPLIT])."""
    model: str = common.MODEL
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
class Eval:
    """Measure transcoders or SAEs: reconstruction, sparsity, and what the model loses with layers replaced."""

    transcoders: tyro.conf.Positional[str]
    """As in trace."""
    data: str
    """Tokens (a folder that `tokenize` wrote, or rows [n, T] in a .npy file) or text (a file or folder)."""
    model: str = common.MODEL
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
    common.start_jax()
    model = tc.load_model(cfg.model)
    starts = None if corpus is None else data.starts_of(model.encode(d.text[:200]) for d in corpus)
    with progress("tokens", not cfg.json) as bar:
        options = {"context": cfg.context, "batch": cfg.batch, "seed": cfg.seed, "starts": starts}
        return data.sample_tokens(model, cfg.out, n, progress=bar, **options)


def evaluate(cfg: Eval) -> None:
    """Run `tcircuits eval`."""
    from tcircuits.transcoders.options import parse_choices

    choices = parse_choices(cfg.choose)
    if cfg.out is not None:
        check_folder(cfg.out.absolute().parent, "the folder of --out")
    common.start_jax()
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

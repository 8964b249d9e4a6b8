"""Dictionaries of the embedded model: transcoders, skip and cross-layer transcoders of all its layers.

    python -m experiments.tiny_dictionaries
    python -m experiments.tiny_dictionaries --keep
    python -m experiments.tiny_dictionaries --model experiments/models/tiny-gpt2-1 --curve

The second measures the package's own sets as they are and trains only those of the curve. The third is for a model
that `experiments.tiny_lm` wrote: its sets go into the model's folder, and its result has the model's name.

Trained on the text that the model saw last (prose and grammars, `experiments.lm.rows`), drawn anew, by the package's
own trainer: 1,024 features a layer, BatchTopK, written as JumpReLU, which every reader of circuit-tracer's files
knows. The sets with at most 16 features on (an eighth of the width) are the package's own, in float16, in
`tcircuits/assets/tiny`; with 4, 8 and 32 transcoders are trained for the curve. Killed, the command goes on where it
was.

Figures are of the files as they are, on held-out prose and held-out examples: unexplained variance, L0, dead features,
and the cross-entropy with each layer and with all MLPs replaced, of which share of a zero or a mean ablation's loss is
recovered, and how often the most likely token stays. Position 0 is the model's own.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import ROOT, save, show
from experiments.lm import rows
from tcircuits.transcoders.evaluation.results import Evaluation
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.presets import dictionary, make
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.run import train

ASSETS = ROOT / "tcircuits/assets/tiny"
PACKAGED = {"transcoder": "transcoders", "skip": "skip-transcoders", "clt": "clt"}  # kind: folder
CONTEXT = 128


@dataclass(frozen=True)
class Config:
    """What to train, and where to."""

    model: Path | None = None
    """Folder of another small model; the embedded one."""
    kinds: tuple[Literal["transcoder", "skip", "clt"], ...] = ("transcoder", "skip", "clt")
    """Sets of `k` features."""
    keep: bool = False
    """Measure the sets of `k` features that are in their folder, and train the others."""
    features: int = 1024
    """Of a layer."""
    k: int = 15
    """Features on at a position, in the sets of the package; held-out text has a few hundredths more."""
    curve: tuple[int, ...] = (4, 8, 32)
    """Others, for the curve of the transcoders."""
    tokens: int = 1_572_864
    """Trained on, each set."""
    batch: int = 1024
    """Tokens of a step."""
    dead_after: int = 32_768
    """Tokens without firing after which a feature is revived."""
    rows: int = 512
    """Held-out rows of 128 tokens."""
    dead_rows: int = 4096
    """Rows over which a feature must be on once to count as alive."""
    seed: int = 0
    """Of weights and data."""
    out: Path | None = None
    """Where the sets of `k` features go; the model's folder."""
    work: Path | None = None
    """Runs, with their checkpoints; build/NAME-dictionaries."""


def recipe(cfg: Config, model: tc.Model, kind: str, k: int) -> Recipe:
    """The settings of one set."""
    d = dictionary(
        model.cfg,
        kind="clt" if kind == "clt" else "transcoder",
        features=cfg.features,
        activation="batchtopk",
        k=k,
        skip=kind == "skip",
    )
    objective = {"dead_after": cfg.dead_after}
    return make(d, tokens=cfg.tokens, batch=cfg.batch, k=k, seed=cfg.seed, objective=objective)


def trained(cfg: Config, model: tc.Model, text: Any, kind: str, k: int, work: Path) -> tc.Transcoders:
    """A set, trained now or by an earlier run of this command (remove `work` to train anew)."""
    run = work / f"{kind}-{k}"
    if (run / "transcoders").is_dir():  # appears when it is whole
        return tc.load_transcoders(run / "transcoders", model=model)

    def watch(row: dict[str, Any]) -> None:
        if row["step"] % 256 == 0:
            fvu = " ".join(f"{x:.3f}" for x in row["fvu"])
            print(f"{kind} k={k}: step {row['step']}, fvu {fvu}, {row['tokens_per_second']:.0f} tokens/s", flush=True)

    drawn = rows.Drawn(text, CONTEXT, cfg.seed)
    done = train(model, recipe(cfg, model, kind, k), drawn, run, fill=Fill(CONTEXT, 64, 32), watch=watch)
    if done.transcoders is None:
        raise SystemExit(f"stopped at step {done.step}; the same command goes on")
    return done.transcoders


def written(d: tc.Transcoders, folder: Path, model: tc.Model) -> tc.Transcoders:
    """The set in float16, as its folder gives it back; an earlier folder of that name is replaced."""
    draft = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    tc.save_transcoders(jax.tree.map(lambda x: x.astype(jnp.float16), d), draft, model_name=model.name)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return tc.load_transcoders(folder, model=model)


def figures(e: Evaluation) -> dict[str, Any]:
    """What is told of a set."""
    every = e.replaced[-1]

    def told(r: Any) -> dict[str, Any]:
        recovered = {name: None if i is None else asdict(i) for name, i in r.recovered.items()}
        return {"layers": r.layers, "ce": r.ce, "kl": r.kl, "agree": r.agree, "recovered": recovered}

    return {
        "fvu": e.fvu,
        "l0": e.l0,
        "dead": e.dead,
        "mean_l0": float(e.l0.mean()),
        "features": int(np.asarray(e.sums.fired).size),
        "positions": e.n_positions,
        "ce_original": e.ce_original,
        "all": told(every),
        "each": [told(r) for r in e.replaced[:-1]],
    }


def dead(cfg: Config, model: tc.Model, d: tc.Transcoders, text: Any) -> dict[str, Any]:
    """Features that are never on over `dead_rows` held-out rows, by layer."""
    drawn = rows.held_out(text, cfg.dead_rows, CONTEXT, seed=1)
    e = evaluate(model, d, drawn, conditions=[d.cfg.layers[-1:]], batch=32)
    silent = np.sum(np.asarray(e.sums.fired) == 0, -1)
    return {"dead_by_layer": silent, "dead_features": int(silent.sum()), "dead_over_positions": e.n_positions}


def main(cfg: Config) -> None:
    """Train, write, measure."""
    home = cfg.model or ASSETS
    model, text = tc.load_model(cfg.model or "tiny"), rows.text_of(home)
    out, work = cfg.out or home, cfg.work or ROOT / "build" / f"{home.name}-dictionaries"
    held_out = rows.held_out(text, cfg.rows, CONTEXT)
    found: dict[str, Any] = {}
    for kind, k in [*((kind, cfg.k) for kind in cfg.kinds), *(("transcoder", k) for k in cfg.curve)]:
        own = out / PACKAGED[kind] if k == cfg.k else None
        if own and cfg.keep and own.is_dir():
            d = tc.load_transcoders(own, model=model)
        else:
            d = trained(cfg, model, text, kind, k, work)
            d = written(d, own, model) if own else d
        found[f"{kind}-{k}"] = figures(evaluate(model, d, held_out, batch=32)) | dead(cfg, model, d, text)
        found[f"{kind}-{k}"] |= {"kind": kind, "k": k}
        print(_line(found[f"{kind}-{k}"]), flush=True)
    show("held-out text, all MLPs replaced", [_line(f) for f in found.values()])
    sizes = {PACKAGED[kind]: sum(p.stat().st_size for p in (out / PACKAGED[kind]).iterdir()) for kind in cfg.kinds}
    told = {"sets": found, "bytes": sizes}
    save("tiny_dictionaries", cfg, told, variant=cfg.model.name if cfg.model else "")


def _line(f: dict[str, Any]) -> dict[str, Any]:
    every = f["all"]
    return {
        "kind": f["kind"],
        "k": f["k"],
        "L0": f["mean_l0"],
        "FVU": float(np.mean(f["fvu"])),
        "dead": f["dead_features"],
        "CE": every["ce"]["dictionary"],
        "recovered (zero)": every["recovered"]["zero"]["value"],
        "(mean)": every["recovered"]["mean"]["value"],
        "same top token": every["agree"]["dictionary"],
    }


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

"""Train transformers that compute a known function, and check that they do it the known way.

    python -m experiments.algorithmic
    python -m experiments.algorithmic --names parity --dictionaries False
    python -m experiments.algorithmic --names sorting --keep

Addition modulo 113 as in Nanda et al. 2023 (arXiv 2301.05217): one layer, five seeds, and one model of two layers;
parity of 4 to 10 bits; sorting of five different numbers below 30. Held-out texts are fixed in `tasks.algorithms`. Each
model is written as a folder (`algorithms.folders` says where); those of the package load by name. Figures are of the
folders, in float16. The result keeps the figures of models that a call does not name, as long as settings are the
same; each has the commit that it was measured at.

For addition: key frequencies of the embedding, restricted and excluded loss (`experiments.algorithms.fourier`), at the
end and along the way, and how many neurons are tuned to one frequency. For all: transcoders trained by the package's
trainer (models of two layers have a cross-layer set too), beside the neurons. A model takes 4 to 9 minutes of a core;
what was stopped goes on where it was (`build/algorithmic`). `--keep` takes models that are there as they are, and
trains the dictionaries that are not.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.algorithms import addition, dictionaries, folders, fourier, small
from experiments.algorithms.training import Problem, Recipe, load, snapshots, train
from experiments.common import ROOT, commit, plain, result_path, save, show
from tcircuits.models.params import Params
from tcircuits.tasks.algorithms import MODULUS, trained_sums
from tcircuits.tasks.gate import capability

FOLDERS = {"transcoder": "transcoders", "clt": "clt"}


@dataclass(frozen=True)
class Spec:
    """A model: its task, how its problem is made, how it is trained, and kinds of dictionaries."""

    task: str
    problem: Callable[[], Problem]
    recipe: Recipe = field(default_factory=Recipe)
    kinds: tuple[dictionaries.Kind, ...] = ("transcoder",)


def _mod(name: str, **sizes: int) -> Callable[[], Problem]:
    return lambda: addition.problem(name, addition.config(MODULUS, **sizes))


SPECS = {
    **{name: Spec("addition", _mod(name), Recipe(seed=i)) for i, name in enumerate(folders.SEEDS)},
    folders.DEEPER: Spec("addition", _mod(folders.DEEPER, n_layers=2, d_mlp=256), kinds=("transcoder", "clt")),
    "parity": Spec("parity", small.parity, Recipe(weight_decay=0.3, after=900)),
    "sorting": Spec("sorting", small.sorting, Recipe(weight_decay=0.1, after=600), kinds=("transcoder", "clt")),
}


@dataclass(frozen=True)
class Config:
    """What to train, and where to."""

    names: tuple[str, ...] = tuple(SPECS)
    """Of the models."""
    dictionaries: bool = True
    """Train transcoders as well."""
    keep: bool = False
    """Keep models and dictionaries that are there, with their figures in the stored result; train what is missing."""
    features: int = 256
    """Of a layer."""
    k: int = 16
    """Features on at a position."""
    tokens: int = 819_200
    """Trained on, each set."""
    out: Path | None = None
    """Folder of the models' folders; `algorithms.folders` says where they lie otherwise."""
    work: Path | None = None
    """Checkpoints; build/algorithmic."""


def key_points(log: list[dict[str, float]]) -> dict[str, Any]:
    """When accuracy was first reached (None: never), and the curves, thinned out."""

    def first(name: str, least: float) -> float | None:
        return next((row["step"] for row in log if row[name] >= least), None)

    rows = log[:: max(1, len(log) // 30)]
    rows += [] if rows[-1] is log[-1] else [log[-1]]
    return {
        "steps": log[-1]["step"],
        "minutes": log[-1]["seconds"] / 60,
        "memorised": first("train_accuracy", 0.99),
        "half": first("test_accuracy", 0.5),
        "generalised": first("test_accuracy", 0.99),
        "curve": [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
    }


def table(cfg: Any, params: Params, modulus: int) -> np.ndarray:
    """Logits of all sums, [p, p, p], without "="."""
    every = np.argwhere(np.ones((modulus, modulus), bool))
    tokens = jnp.asarray(np.insert(every, 2, modulus, 1).astype(np.int32))
    found = jax.jit(partial(addition.logits, cfg))(params, tokens)
    return np.asarray(found, np.float64).reshape(modulus, modulus, modulus)


def along_the_way(name: str, work: Path, keys: list[int]) -> list[dict[str, float]]:
    """Progress measures of the checkpoints, at the final key frequencies."""
    spec, rows = SPECS[name], []
    problem = spec.problem()
    modulus = problem.cfg.d_vocab - 1
    for path in snapshots(work):
        state = load(path, problem, spec.recipe)
        logits = table(problem.cfg, state.params, modulus)
        rows.append({"step": int(state.step)} | fourier.progress(logits, keys, trained_sums(modulus)))
    return rows


def tuned(frequency: np.ndarray, r2: np.ndarray, alive: np.ndarray, keys: list[int]) -> dict[str, Any]:
    """Among units that are ever on: how many follow one frequency, and how many of these a key one."""
    own = r2[alive]
    return {
        "alive": int(alive.sum()),
        "tuned_share": float(np.mean(own >= fourier.TUNED)) if len(own) else None,
        "r2_median": float(np.median(own)) if len(own) else None,
        "key_share": float(np.mean(np.isin(frequency[alive], keys))) if len(own) else None,
    }


def tuning(model: tc.Model, d: tc.Transcoders, keys: list[int]) -> dict[str, Any]:
    """Whether the units of the last layer, before their activation function, follow one frequency (and phase).

    `input`: over a number t, what a unit's encoder reads through embedding and all heads' values and outputs at the
    position of a; `table`: over (a, b), with the attention that there is.
    """
    cfg, params, p = model.cfg, model.params, model.cfg.d_vocab - 1
    every = np.argwhere(np.ones((p, p), bool))
    tokens = jnp.asarray(np.insert(every, 2, p, 1).astype(np.int32))
    read = np.asarray(tc.forward(cfg, params, tokens, sites=("mlp_in",)).acts["mlp_in"][-1, :, -1], np.float64)
    w, b = _encoder(model, d)
    before = read @ w + b
    threshold = 0.0 if d.threshold is None else np.asarray(d.threshold[-1], np.float64)
    alive = np.max(before - threshold, 0) > 0
    found = {"table": tuned(*fourier.table_tuning(before.reshape(p, p, -1)), alive, keys)}
    if cfg.n_layers == 1:  # deeper down, numbers are not what the last layer's heads read
        attn = params.blocks.attn
        through = np.einsum("DHK,HKE->DE", *(np.asarray(x[0], np.float64) for x in (attn.w_v, attn.w_o)))
        weights = np.asarray(params.embed[:-1], np.float64) @ through @ w
        found["input"] = tuned(*fourier.weight_tuning(weights), alive, keys)
    return found


def _encoder(model: tc.Model, d: tc.Transcoders) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, F] and biases [F] of the last layer's units before their activation function."""
    if d.cfg.kind == "neurons":
        mlp = model.params.blocks.mlp
        assert mlp is not None
        assert mlp.b_in is not None
        return np.asarray(mlp.w_in[-1], np.float64), np.asarray(mlp.b_in[-1], np.float64)
    assert d.w_enc is not None
    assert d.b_enc is not None
    return np.asarray(d.w_enc[-1], np.float64).T, np.asarray(d.b_enc[-1], np.float64)


def known(name: str, model: tc.Model, work: Path) -> dict[str, Any]:
    """What the literature says of addition, of this model."""
    p = model.cfg.d_vocab - 1
    embed = np.asarray(model.params.embed[:-1], np.float64)
    keys, logits = fourier.key_frequencies(embed), table(model.cfg, model.params, p)
    right = (np.arange(p)[:, None] + np.arange(p)) % p
    hits, trained = logits.argmax(-1) == right, trained_sums(p)
    share = fourier.energies(embed)
    return {
        "accuracy": {"trained": float(hits[trained].mean()), "held_out": float(hits[~trained].mean())},
        "key_frequencies": keys,
        "key_energy": float(share[np.asarray(keys) - 1].sum()) if keys else 0.0,
        "progress": fourier.progress(logits, keys, trained),
        "along_the_way": along_the_way(name, work, keys),
        "neurons": tuning(model, tc.load_transcoders("neurons", model=model), keys),
    }


def written(d: tc.Transcoders, folder: Path, model: tc.Model) -> tc.Transcoders:
    """A set in float16, as its folder gives it back."""
    shutil.rmtree(folder, ignore_errors=True)
    tc.save_transcoders(jax.tree.map(lambda x: x.astype(jnp.float16), d), folder, model_name=model.name)
    return tc.load_transcoders(folder, model=model)


def sets(
    cfg: Config, name: str, model: tc.Model, folder: Path, work: Path, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Dictionaries of a model, and their worth on held-out rows; those whose figures are known are kept."""
    spec, found = SPECS[name], dict(known or {})
    rows = dictionaries.rows_of(spec.task, held_out=True)
    answers = dictionaries.answers_of(spec.task, rows)
    drawn = dictionaries.Rows(spec.task, dictionaries.rows_of(spec.task, held_out=False))
    sizes = {"features": cfg.features, "k": cfg.k, "tokens": cfg.tokens}
    for kind in (kind for kind in spec.kinds if kind not in found):
        d = dictionaries.trained(model, drawn, kind, work / f"{kind}-{cfg.features}-{cfg.k}", **sizes)
        d = written(d, folder / FOLDERS[kind], model)
        found[kind] = dictionaries.worth(model, d, rows, answers)
        if spec.task == "addition":
            keys = fourier.key_frequencies(np.asarray(model.params.embed[:-1], np.float64))
            found[kind]["tuning"] = tuning(model, d, keys)
    return found


def folder_of(cfg: Config, name: str) -> Path:
    """Where a model is written."""
    return folders.home(name) if cfg.out is None else cfg.out / name


def finished(cfg: Config, name: str) -> dict[str, Any]:
    """The figures of a model, of now or of an earlier run with the same settings (remove the file to measure anew)."""
    sets = f"{cfg.features}-{cfg.k}-{cfg.tokens}" if cfg.dictionaries else "none"
    path = (cfg.work or ROOT / "build/algorithmic") / name / f"figures-{sets}.json"
    if path.exists() and folder_of(cfg, name).is_dir():
        return json.loads(path.read_text(encoding="utf-8"))
    found = one(cfg, name)
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(found, allow_nan=False, default=plain), encoding="utf-8")
    draft.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def kept(cfg: Config, name: str) -> dict[str, Any]:
    """The stored figures of a model that is there, with those of dictionaries that were missing."""
    folder, stored = folder_of(cfg, name), earlier(replace(cfg, names=()))
    if not folder.is_dir() or name not in stored:
        raise SystemExit(f"nothing to keep: {name} is not at {folder}, or the stored result does not have it")
    found, model = stored[name], tc.load_model(folder)
    work = (cfg.work or ROOT / "build/algorithmic") / name
    every = sets(cfg, name, model, folder, work, found["dictionaries"])
    return found | {"dictionaries": every, "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())}


def one(cfg: Config, name: str) -> dict[str, Any]:
    """Train a model, write it, measure it."""
    spec, work = SPECS[name], (cfg.work or ROOT / "build/algorithmic") / name
    folder = folder_of(cfg, name)
    problem = spec.problem()
    params, log = train(problem, spec.recipe, work)
    folders.write(folder, problem.cfg, params)
    model = tc.load_model(folder)
    behaviour = tc.make_behaviour(model, spec.task)
    gates = {split: asdict(capability(model, behaviour, split)) for split in behaviour.splits}
    found = {"git": commit(), "task": spec.task, "recipe": asdict(spec.recipe)}
    found |= {"training": key_points(log), "gate": gates}
    found |= {"exact_match_held_out": log[-1]["test_accuracy"], "parameters": tc.models.params.count(model.cfg)}
    if spec.task == "addition":
        found["known"] = known(name, model, work)
    if cfg.dictionaries:
        found["dictionaries"] = sets(cfg, name, model, folder, work)
    return found | {"bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())}


def earlier(cfg: Config) -> dict[str, Any]:
    """Figures of models that this call does not name, from the stored result, if it has the same settings."""
    path = result_path("algorithmic")
    if not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    if any(stored["config"][key] != getattr(cfg, key) for key in ("dictionaries", "features", "k", "tokens")):
        return {}
    models = stored["figures"]["models"]
    return {name: {"git": stored["git"]} | f for name, f in models.items() if name not in cfg.names}


def main(cfg: Config) -> None:
    """Train, write, measure; the result is written after each model."""
    found = earlier(cfg) if cfg.out is None else {}
    for name in cfg.names:
        found[name] = (kept if cfg.keep else finished)(cfg, name)
        if cfg.out is None:
            save("algorithmic", cfg, {"models": found})
        show(name, [_line(name, found[name])])
        show("dictionaries", [_set_line(kind, d) for kind, d in found[name].get("dictionaries", {}).items()])


def _set_line(kind: str, d: dict[str, Any]) -> dict[str, Any]:
    means = {key: float(np.mean(d[key])) for key in ("fvu", "l0", "dead")}
    both = {key: d[f"accuracy_{key}"] for key in ("original", "replaced")}
    tuned_share = {where: t["tuned_share"] for where, t in d.get("tuning", {}).items()}
    return {"kind": kind, "features": d["features"]} | means | both | {"tuned": str(tuned_share or "-")}


def _line(name: str, f: dict[str, Any]) -> dict[str, Any]:
    t, k = f["training"], f.get("known", {})
    progress = k.get("progress", {})
    return {
        "model": name,
        "memorised": t["memorised"],
        "generalised": t["generalised"],
        "held-out": f["exact_match_held_out"],
        "gate": f["gate"]["selection"]["exact"],
        "keys": str(k.get("key_frequencies", "-")),
        "restricted": progress.get("restricted_test_loss"),
        "excluded": progress.get("excluded_train_loss"),
    }


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

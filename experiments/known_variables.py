"""Are transcoder features as interpretable as SAE features? Against known variables, without people who rate.

    python -m experiments.known_variables

The paper's Table 1 (Dunefsky et al. 2024, section 4.1) has people rate 50 features of each kind. Here text of the
embedded model's grammars is made of known variables (`experiments.known.variables`), and a feature is as interpretable
as the best of them describes it: F1 of "the feature is above a threshold" with the variable, variable and threshold
chosen on examples of the training split, F1 measured on held-out examples.

TopK transcoders and SAEs on the MLP's output, of all layers and several seeds, are trained on the same tokens with the
same k (`experiments.lm.sweeps`). Of each set `features` live ones are drawn at random, from all layers together;
neurons (where positive) are a control. Intervals: over the features of a set by resampling, over seeds by Student's t.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import tcircuits as tc
from experiments.common import ROOT, save, show
from experiments.greater_than import told
from experiments.known.scoring import Scored, Sparse, score
from experiments.known.variables import Annotated, annotate
from experiments.lm import sweeps
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward, mlp_hidden
from tcircuits.models.params import Params
from tcircuits.tasks import grammars
from tcircuits.transcoders.dictionary import encode
from tcircuits.transcoders.evaluation.intervals import interval, resampled
from tcircuits.types import Array, Float, Int

BATCH = 64
CONTEXT_FREE = ("token=", "class=")


@dataclass(frozen=True)
class Config:
    """What is compared."""

    features: int = 100
    """Live features drawn of each set of dictionaries."""
    examples: int = 300
    """Of each grammar, in each half."""
    least: int = 20
    """Tokens of the choosing half at which a feature is on, or a variable is true, to be asked about."""
    interpretable: float = 0.8
    """F1 from which a feature counts as described."""
    seeds: tuple[int, ...] = sweeps.SEEDS
    """Of the dictionaries."""
    tokens: int = sweeps.TOKENS
    """That they are trained on, each."""
    work: Path = ROOT / "build/studies"
    """The training run; what is there is used."""


def halves(cfg: Config, model: tc.Model) -> tuple[Annotated, Annotated]:
    """Examples to choose with (training split) and to measure on (held out), with the same variables."""
    assert model.tokenizer is not None
    backend, both = model.tokenizer.backend, []
    for held_out in (False, True):
        drawn = [e for g in grammars.GRAMMARS for e in grammars.examples(g, cfg.examples, 7, held_out=held_out)]
        both.append(annotate(backend, drawn))
    often = dict(zip(both[0].names, np.asarray(both[0].true.sum(0)), strict=True))
    names = tuple(n for n in both[0].names if often[n] >= cfg.least)
    return both[0].only(names), both[1].only(names)


@partial(jax.jit, static_argnames="cfg")
def _values(
    cfg: ModelConfig, params: Params, d: tc.Transcoders | None, tokens: Int[Array, "B T"]
) -> Float[Array, "B T N"]:
    """Values of the features of all layers side by side; of neurons where there is no dictionary."""
    site = "mlp_in" if d is None else d.cfg.reads
    read = forward(cfg, params, tokens, sites=(site,)).acts[site]

    def layer(i: Array) -> Array:
        if d is None:
            return mlp_hidden(cfg, jax.tree.map(lambda a: a[i], params.blocks.mlp), read[i])
        return encode(d, i, read[i])

    return jnp.concatenate([layer(jnp.asarray(i)) for i in range(cfg.n_layers)], -1)


def values(model: tc.Model, d: tc.Transcoders | None, a: Annotated) -> Sparse:
    """Positive values at the real tokens, [tokens, layers x features]."""
    d = None if d is None else replace(d, source="")  # static: one program for all sets
    parts = []
    for first in range(0, len(a.tokens), BATCH):
        rows, real = a.tokens[first : first + BATCH], a.real[first : first + BATCH]
        tokens = np.zeros((BATCH, rows.shape[1]), np.int32)
        tokens[: len(rows)] = rows
        found = np.asarray(_values(model.cfg, model.params, d, jnp.asarray(tokens)))[: len(rows)][real]
        parts.append(scipy.sparse.csr_array(np.maximum(found, 0)))
    return scipy.sparse.csc_array(scipy.sparse.vstack(parts))


def scored(cfg: Config, model: tc.Model, d: tc.Transcoders | None, both: Any, seed: int) -> tuple[Scored, float]:
    """Random live features of all layers against the variables; and how many features a token and layer have on."""
    chosen, held_out = both
    first, second = (values(model, d, a) for a in both)
    live = np.flatnonzero(np.diff(first.indptr) >= cfg.least)
    drawn = np.sort(np.random.default_rng([seed, 3]).choice(live, min(cfg.features, len(live)), replace=False))
    l0 = second.nnz / second.shape[0] / model.cfg.n_layers
    found = score((first[:, drawn], chosen.true), (second[:, drawn], held_out.true), chosen.names)
    return found, l0


def row(cfg: Config, kind: str, seed: int, found: Scored, l0: float) -> dict[str, Any]:
    """Figures of one set: mean F1 with its interval over features, how many are described, and by what."""
    free = [v.startswith(CONTEXT_FREE) for v in found.variable]
    mean = interval(float(found.f1.mean()), resampled(found.f1[:, None])[:, 0], len(found.f1))
    return {
        "kind": kind,
        "seed": seed,
        "l0": l0,
        "f1": {"value": mean.value, "low": mean.low, "high": mean.high, "n": len(found.f1)},
        "f1_where_chosen": float(found.chosen.mean()),
        "described": float((found.f1 >= cfg.interpretable).mean()),
        "context_free": float(np.mean(free)),
        "features": [{"variable": v, "f1": round(float(f), 4)} for v, f in zip(found.variable, found.f1, strict=True)],
    }


def compared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: F1 of each kind, and transcoders less SAEs, seed by seed."""
    by = {k: [r for r in rows if r["kind"] == k] for k in sweeps.KINDS}

    def gap(key: Any) -> dict[str, Any]:
        return told([key(t) - key(s) for t, s in zip(*by.values(), strict=True)])

    kinds = {k: {"f1": told([r["f1"]["value"] for r in of]), "described": told([r["described"] for r in of]),
                 "context_free": told([r["context_free"] for r in of])} for k, of in by.items()}  # fmt: skip
    return {"kinds": kinds, "f1_gap": gap(lambda r: r["f1"]["value"]), "described_gap": gap(lambda r: r["described"])}


def main(cfg: Config) -> None:
    """Annotate, train, encode, score, compare."""
    model = tc.load_model("tiny")
    both, made = halves(cfg, model), sweeps.standard(model, cfg.work, cfg.seeds, cfg.tokens)
    rows = [row(cfg, kind, seed, *scored(cfg, model, d, both, seed)) for (kind, seed), d in made.items()]
    control = row(cfg, "neurons", 0, *scored(cfg, model, None, both, 0))
    told_ = ("kind", "seed", "l0", "f1_where_chosen", "described", "context_free")
    show("best known variable, held-out F1", [{k: r[k] for k in told_} | {"f1": r["f1"]["value"]}
                                              for r in [*rows, control]])  # fmt: skip
    over = compared(rows)
    print("transcoders less SAEs:", over["f1_gap"])
    figures = {"variables": len(both[0].names), "tokens": [int(a.real.sum()) for a in both], "compared": over}
    save("known_variables", cfg, figures | {"sets": rows, "neurons": control})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

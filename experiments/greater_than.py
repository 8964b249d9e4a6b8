"""Greater-than: how few transcoder features of one MLP carry it, against neurons?

    python -m experiments.greater_than
    python -m experiments.greater_than --model openai-community/gpt2 --transcoders pchlenski/gpt2-transcoders --layer 10

The paper's study (Dunefsky et al. 2024, section 5.2, Figure 5): the parts of one MLP are ranked by the variance of
their values at the last position, the first k are kept and the rest set to zero, and the probability difference
(Hanna et al. 2023) is drawn against k, for features and for neurons. Further rankings are controls: by mean value, and
random. Parts are ranked, the layer is chosen and a harmful feature is looked for on some start years, and everything is
measured on others (of the embedded model: on years that it never saw).

The first command trains transcoders of that layer, one for each seed, on the same text; intervals are over the seeds
(Student's t), or over prompts where there is one dictionary only. The second uses what is given, whole-layer sets and
the paper's prompt.

- `needed`: the least k from which a curve is at `share` of the probability difference with the full dictionary, for
  features and for neurons alike (for the paper's figures: about 13 against 47); `needed_of_gap` the same for the part
  that keeping nothing does not reach;
- `harmful`: of the first `harmful_of` features the one whose removal helps most where it was looked for, and what its
  removal does where it was not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

import tcircuits as tc
from experiments.common import ROOT, save, show
from experiments.lm import sweeps
from experiments.years import kept
from experiments.years.prompts import Prompts, difference, grammar_prompts, template_prompts
from tcircuits.transcoders.training.grid import grid
from tcircuits.types import InputError

RANKINGS = ("variance", "mean", "random")
TEMPLATE = "The war lasted from 17{yy} to 17"


@dataclass(frozen=True)
class Config:
    """The model, its dictionaries, and what is measured."""

    model: str = "tiny"
    """The embedded model, or any that the package loads."""
    transcoders: str | None = None
    """Per-layer transcoders; None trains `seeds` of them (embedded model only)."""
    layer: int | None = None
    """Whose MLP; None takes the one whose mean ablation costs most."""
    template: str = TEMPLATE
    """The prompt of models other than the embedded one."""
    everywhere: bool = False
    """Replace the MLP at all positions, as the paper's code does, not at the last one only."""
    most: int = 100
    """The most parts that are kept."""
    prompts: int = 100
    """Of each half."""
    share: float = 0.95
    """Of the full dictionary's probability difference."""
    harmful_of: int = 50
    """First features by variance among which a harmful one is looked for."""
    k: int = 15
    """Features on at a position, of the trained transcoders."""
    expansion: int = 8
    """Their features for each dimension of the model."""
    tokens: int = 1_572_864
    """Trained on, each."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of weights and the order of tokens."""
    work: Path = ROOT / "build/greater-than"
    """The training run; what is there is used."""


def halves(cfg: Config, model: tc.Model) -> tuple[Prompts, Prompts]:
    """Prompts to choose with, and prompts to measure on."""
    if cfg.model == "tiny":
        chosen, measured = (grammar_prompts(model, cfg.prompts, 0, held_out=h) for h in (False, True))
        return chosen, measured
    chosen, measured = (template_prompts(model, cfg.template, odd=odd) for odd in (True, False))
    return chosen, measured


def ablations(cfg: Config, model: tc.Model, prompts: Prompts) -> list[float]:
    """What each MLP's mean ablation takes from the probability difference."""
    plain, costs = difference(kept.real(model, prompts), prompts.yy).mean(), []
    for layer in range(model.cfg.n_layers):
        parts = kept.neurons(model, layer, prompts)
        mean = parts.value[np.arange(len(prompts.last)), prompts.last].mean(0)
        fixed = kept.Parts(parts.site, layer, parts.value * 0 + mean, parts.rows, parts.base)
        masks = np.ones((1, parts.rows.shape[0]), bool)
        left = difference(kept.logits(model, fixed, prompts, masks, everywhere=cfg.everywhere), prompts.yy)
        costs.append(float(plain - left.mean()))
    return costs


def trained(cfg: Config, model: tc.Model, layer: int) -> dict[int, tc.Transcoders]:
    """Transcoders of the layer, by seed."""
    options: Any = {"kinds": ("transcoder",), "activations": ("batchtopk",), "k": (cfg.k,), "seeds": cfg.seeds}
    sizes: Any = {"layers": (layer,), "expansions": (cfg.expansion,), "tokens": cfg.tokens, "batch": 1024}
    members = grid(model.cfg, **options, **sizes, objective={"dead_after": 32_768})

    made = sweeps.trained(model, members, cfg.work / f"layer-{layer}", 2)
    return {m.seed: made[m.name] for m in members}


def order_of(parts: kept.Parts, prompts: Prompts, ranking: str, seed: int) -> np.ndarray:
    """Parts by their values at the last positions, best first; random among those that are on at all."""
    value = np.asarray(parts.value, np.float64)[np.arange(len(prompts.last)), prompts.last]
    if ranking == "random":
        on = np.flatnonzero((value != 0).any(0))
        mixed = np.random.default_rng(seed).permutation(on)
        return np.concatenate([mixed, np.setdiff1d(np.arange(value.shape[1]), on)])
    score = value.var(0) if ranking == "variance" else np.abs(value).mean(0)
    return np.argsort(-score, kind="stable")


def curves(cfg: Config, model: tc.Model, make: Any, halves: tuple[Prompts, Prompts], seed: int) -> dict[str, Any]:
    """Probability differences [N, k] under each ranking, with all parts, and the order by variance.

    `make(prompts)` gives the parts.
    """
    choosing, measuring = halves
    chosen, parts = make(choosing), make(measuring)
    n = min(cfg.most, parts.rows.shape[0])
    orders = {ranking: order_of(chosen, choosing, ranking, seed) for ranking in RANKINGS}
    found = {}
    for ranking, order in orders.items():
        years = kept.logits(model, parts, measuring, kept.prefixes(order, n), everywhere=cfg.everywhere)
        found[ranking] = difference(years, measuring.yy)
    everything = np.ones((1, parts.rows.shape[0]), bool)
    whole = difference(kept.logits(model, parts, measuring, everything, everywhere=cfg.everywhere), measuring.yy)
    return {"curves": found, "full": whole[:, 0], "order": orders["variance"], "chosen": chosen, "parts": parts}


def needed(curve: np.ndarray, target: float) -> int | None:
    """The least k at which a mean curve [k] is at the target; None where it never is."""
    there = np.flatnonzero(curve >= target)
    return int(there[0]) if len(there) else None


def harmful(cfg: Config, model: tc.Model, found: dict[str, Any], halves: tuple[Prompts, Prompts]) -> dict[str, Any]:
    """The feature whose removal helps most on the choosing half, and what its removal does on the other."""
    choosing, measuring = halves
    first = found["order"][: cfg.harmful_of]
    masks = np.ones((len(first) + 1, len(found["order"])), bool)
    masks[np.arange(len(first)), first] = False  # the last keeps all
    tried = kept.logits(model, found["chosen"], choosing, masks, everywhere=cfg.everywhere)
    gains = difference(tried, choosing.yy).mean(0)
    best = int(np.argmax(gains[:-1]))
    again = kept.logits(model, found["parts"], measuring, masks[[best, -1]], everywhere=cfg.everywhere)
    both = difference(again, measuring.yy)
    return {
        "feature": int(first[best]),
        "rank": best + 1,
        "gain_where_chosen": float(gains[best] - gains[-1]),
        "gain": told(both[:, 0] - both[:, 1]),
    }


def told(values: Any) -> dict[str, Any]:
    """A mean with its 95 % interval (Student's t)."""
    x = np.asarray(values, np.float64)
    half = float(scipy.stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else None
    mean = float(x.mean())
    return {"value": mean, "low": None if half is None else mean - half, "high": None if half is None else mean + half,
            "n": len(x)}  # fmt: skip


def row(cfg: Config, found: dict[str, Any], neurons: dict[str, Any]) -> dict[str, Any]:
    """How many parts one dictionary and the neurons need for the same probability difference."""
    full = float(found["full"].mean())
    out: dict[str, Any] = {"full": full}
    for name, side in (("features", found), ("neurons", neurons)):
        curve = side["curves"]["variance"].mean(0)
        out[name] = needed(curve, cfg.share * full)
        out[f"{name}_of_gap"] = needed(curve, curve[0] + cfg.share * (full - curve[0]))
        out[f"{name}_nothing"] = float(curve[0])
        out[f"{name}_best"] = float(curve.max())
    return out


def main(cfg: Config) -> None:
    """Choose the layer, train or load, measure, compare."""
    model = tc.load_model(cfg.model)
    if cfg.transcoders is None and cfg.model != "tiny":
        raise InputError("give --transcoders: only the embedded model's are trained here")
    both = halves(cfg, model)
    costs = ablations(cfg, model, both[0])
    layer = int(np.argmax(costs)) if cfg.layer is None else cfg.layer
    if cfg.transcoders is None:
        sets = trained(cfg, model, layer)
    else:
        sets = {0: tc.load_transcoders(cfg.transcoders, model=model)}
    neurons = curves(cfg, model, lambda p: kept.neurons(model, layer, p), both, 0)
    found = {
        seed: curves(cfg, model, lambda p, d=d: kept.features(model, d, layer, p), both, seed)
        for seed, d in sets.items()
    }
    rows_ = [row(cfg, f, neurons) | {"seed": seed} for seed, f in found.items()]
    removed = [harmful(cfg, model, f, both) | {"seed": seed} for seed, f in found.items()]
    show(f"{cfg.model}, MLP {layer}: parts needed for {cfg.share:.0%} of the full dictionary's difference", rows_)
    ratios = [r["features"] / r["neurons"] for r in rows_ if r["features"] is not None and r["neurons"]]
    figures = {
        "layer": layer,
        "mean_ablation_costs": costs,
        "original": told(difference(kept.real(model, both[1]), both[1].yy)),
        "full": told([r["full"] for r in rows_]),
        "needed": rows_,
        "ratio": told(ratios) if ratios else None,
        "harmful": removed,
        "curves": {
            "features": {r: np.stack([f["curves"][r].mean(0) for f in found.values()]) for r in RANKINGS},
            "neurons": {r: neurons["curves"][r].mean(0) for r in RANKINGS},
        },
    }
    save("greater_than", cfg, figures)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

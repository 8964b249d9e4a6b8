"""Recipes by name: sensible ones for any model, and those of the transcoder paper.

`make` turns a few choices into a `Recipe`; `PAPER` holds the settings of Dunefsky et al. 2024, appendix E and their
code: ReLU features with an L1 penalty on the code's normalised loss, unit decoder rows, a trained vector subtracted
from the input, 60M tokens of OpenWebText in batches of 4096, 128 tokens a row, 32 features a dimension. The paper gives
a learning rate of 2e-5, the names of its files 2e-4; the latter is used here. No run of these sizes was made with it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.config import SAE_SITES, ActivationName, Reads, TranscoderConfig, Writes
from tcircuits.transcoders.training.recipe import Objective, Optimizer, Recipe
from tcircuits.types import InputError

Trained = Literal["transcoder", "clt", "sae"]
MLP_SITES: tuple[Reads, Writes] = ("mlp_in", "mlp_out")


def dictionary(
    cfg: ModelConfig,
    *,
    kind: Trained = "transcoder",
    layers: Collection[int] | None = None,
    expansion: int = 8,
    features: int | None = None,
    activation: ActivationName = "topk",
    k: int = 32,
    skip: bool = False,
    reads: Reads | None = None,
    writes: Writes | None = None,
) -> TranscoderConfig:
    """Sizes and sites of a dictionary for a model; `layers` None is all of them, `features` None expansion * d_model.

    Raises:
        InputError: layers that do not exist, k above the width, sites that the kind does not have.
    """
    chosen = tuple(range(cfg.n_layers)) if layers is None else tuple(sorted(set(layers)))
    width = expansion * cfg.d_model if features is None else features
    wrong = [
        f"layer {i} does not exist: the model has 0..{cfg.n_layers - 1}" for i in chosen if i not in range(cfg.n_layers)
    ]
    if not chosen:
        wrong.append("no layers given")
    if not 1 <= k <= width:
        wrong.append(f"k={k} is outside 1..{width}, the dictionary's width")
    if kind == "sae":
        site = reads or writes or "mlp_out"
        if site not in SAE_SITES or (reads and writes and reads != writes):
            wrong.append(f"an SAE is on one site, of {', '.join(SAE_SITES)}; given reads={reads}, writes={writes}")
        ends: Any = (site, site)
    else:
        ends = (reads or MLP_SITES[0], writes or MLP_SITES[1])
    if wrong:
        raise InputError("; ".join(wrong))
    own = k if activation == "topk" else None
    try:
        return TranscoderConfig(
            kind, cfg.n_layers, cfg.d_model, width, chosen, activation, own, reads=ends[0], writes=ends[1], skip=skip
        )
    except ValueError as problem:
        raise InputError(str(problem)) from None


def make(d: TranscoderConfig, *, tokens: int, batch: int = 4096, k: int = 32, **more: Any) -> Recipe:
    """A recipe that works without tuning, for `tokens` tokens.

    TopK and BatchTopK minimise the unexplained variance, with AuxK for dead features; ReLU has an L1 penalty, JumpReLU
    an L0 penalty that aims at k features. Decoders of transcoders are free and begin small, and sparsity is weighed by
    their norms; those of SAEs begin as their encoders and stay at norm 1. TopK's learning rate falls with the root of
    the width (Gao et al. 2024, section 2.2), from 4e-3 at 1,024 features: on the embedded model both together leave a
    quarter of the variance that unit rows and 1e-3 leave after as many tokens.

    Args:
        d: what to train.
        tokens: how many to train on; rounded to whole steps.
        batch: tokens of a step.
        k: features that should be on (not for ReLU).
        more: other fields of `Recipe`; `objective` and `optimizer` as dicts change single fields of the default.
    """
    steps = max(1, tokens // batch)
    dead = max(batch, min(10_000_000, tokens // 10))
    objective: dict[str, Any] = {"error": "fvu"}
    match d.activation:
        case "topk" | "batchtopk":
            objective |= {"auxk": 1 / 32, "dead_after": dead} | ({"k": k} if d.activation == "batchtopk" else {})
        case "jumprelu":
            objective |= {"l0": 0.1, "l0_target": float(k), "preactivation": 1e-4, "dead_after": dead}
        case "relu":
            objective |= {"l1": 1e-3, "dead_after": dead}
    chooses = d.activation in ("topk", "batchtopk")
    lr = min(4e-3, 4e-3 * (1024 / d.d_feature) ** 0.5) if chooses else 1e-3
    optimizer: dict[str, Any] = {"lr": lr, "warmup": min(1000, steps // 10), "sparsity_warmup": steps // 20}
    objective |= more.pop("objective", {})
    optimizer |= more.pop("optimizer", {})
    if chooses:
        optimizer["sparsity_warmup"] = 0
    given: dict[str, Any] = {
        "decoder_norm": "unit" if d.kind == "sae" else "free",
        "start": "tied" if d.kind == "sae" else "independent",
    } | more
    return Recipe(d, Objective(**objective), Optimizer(**optimizer), steps=steps, batch=batch, **given)


@dataclass(frozen=True)
class Paper:
    """One panel of the paper's Figure 3: model, layer, width, and the penalties that label its points.

    Which of them belong to transcoders and which to SAEs is printed for Pythia-410M only, so they are not told apart.
    """

    model: str
    layer: int
    features: int
    penalties: tuple[float, ...]


PAPER: Mapping[str, Paper] = {
    "gpt2-l8": Paper("openai-community/gpt2", 8, 24_576, (6e-5, 8e-5, 1e-4, 1.2e-4, 1.4e-4, 1.7e-4, 2e-4, 2.5e-4)),
    "pythia-410m-l15": Paper("EleutherAI/pythia-410m", 15, 32_768, (2.5e-5, 3e-5, 4e-5, 5.5e-5, 7e-5, 8.5e-5, 1e-4)),
    "pythia-1.4b-l15": Paper("EleutherAI/pythia-1.4b", 15, 65_536, (1.8e-5, 2.5e-5, 3.2e-5, 3.5e-5, 3.8e-5, 5.5e-5)),
}
PAPER_TOKENS, PAPER_CONTEXT = 60_000_000, 128


def paper(name: str, cfg: ModelConfig, l1: float, kind: Trained = "transcoder", tokens: int = PAPER_TOKENS) -> Recipe:
    """A run of the paper, by panel and penalty.

    Raises:
        InputError: an unknown panel, or a model of another depth or width.
    """
    if name not in PAPER:
        raise InputError(f"preset {name!r} is unknown; there are {', '.join(PAPER)}")
    p = PAPER[name]
    ends: Any = ("normalized", "mlp_out") if kind == "transcoder" else ("mlp_out", "mlp_out")
    d = dictionary(
        cfg, kind=kind, layers=[p.layer], features=p.features, activation="relu", reads=ends[0], writes=ends[1]
    )
    return Recipe(
        d,
        Objective(error="reference", l1=l1, dead_after=5000 * 4096),
        Optimizer(lr=2e-4, warmup=5000, decay=0.0, clip=None),
        steps=tokens // 4096,
        batch=4096,
        pre_bias=True,
        normalise=False,
        seed=42,
    )

"""The members of a sweep: one recipe for every point of a grid of kinds, activation functions, sparsities and seeds.

A family is what one line of a figure shows: dictionaries of one kind and activation function at several sparsities,
each with the same seeds. The sparsity is k, or the L1 penalty of ReLU features.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.training.presets import PAPER, PAPER_TOKENS, dictionary, make, paper
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.types import InputError

KINDS: Mapping[str, dict[str, Any]] = {
    "transcoder": {"kind": "transcoder"},
    "skip": {"kind": "transcoder", "skip": True},
    "sae": {"kind": "sae", "reads": "mlp_out", "writes": "mlp_out"},
    "clt": {"kind": "clt"},
}
ACTIVATIONS = ("topk", "batchtopk", "jumprelu", "relu")


@dataclass(frozen=True)
class Member:
    """One dictionary of a sweep: `family` is its line, `point` its place on it ("k" or "l1", and the number)."""

    name: str
    family: str
    point: tuple[str, float]
    recipe: Recipe

    @property
    def seed(self) -> int:
        """Of the first weights and the order of tokens."""
        return self.recipe.seed


def grid(
    cfg: ModelConfig,
    *,
    kinds: Sequence[str] = ("transcoder", "sae"),
    activations: Sequence[str] = ("topk",),
    k: Sequence[int] = (),
    l1: Sequence[float] = (),
    layers: Collection[int] | None = None,
    expansions: Sequence[int] = (8,),
    seeds: Sequence[int] = (0,),
    tokens: int,
    batch: int = 4096,
    **more: Any,
) -> tuple[Member, ...]:
    """A member for every combination; `l1` are the points of relu, `k` those of the other activation functions.

    Args:
        cfg: the model's sizes.
        kinds: of `KINDS`; an SAE is on the MLP's output, so that it stands in for the same MLP.
        activations: of `ACTIVATIONS`.
        k: features that are on (the aim, with jumprelu).
        l1: weights of the L1 penalty.
        layers: as in `presets.dictionary`.
        expansions: features for each dimension of the model.
        seeds: every member is trained with each.
        tokens: that each member is trained on.
        batch: tokens of a step.
        more: other options of `presets.make`.

    Raises:
        InputError: names that do not exist, repeats, an axis without values or one that nothing uses, k above the
            width, layers that a kind cannot have.
    """
    _check(kinds=kinds, activations=activations, k=k, l1=l1, expansions=expansions, seeds=seeds)
    members = []
    for kind, activation, expansion in product(kinds, activations, expansions):
        parts = [kind, *([activation] if len(activations) > 1 else []), *([f"x{expansion}"] if expansions[1:] else [])]
        own: Any = activation
        options: dict[str, Any] = {**KINDS[kind], "layers": layers, "expansion": expansion, "activation": own}
        for value, seed in product(l1 if activation == "relu" else k, seeds):
            point = ("l1", float(value)) if activation == "relu" else ("k", int(value))
            k_of = 1 if activation == "relu" else int(value)  # relu has none
            d = dictionary(cfg, **options, k=k_of)
            objective = more.get("objective", {}) | ({"l1": float(value)} if activation == "relu" else {})
            recipe = make(d, tokens=tokens, batch=batch, seed=seed, k=k_of, **(more | {"objective": objective}))
            members.append(_member("-".join(parts), point, recipe))
    return tuple(members)


def paper_grid(
    name: str,
    cfg: ModelConfig,
    *,
    kinds: Sequence[str] = ("transcoder", "sae"),
    l1: Sequence[float] = (),
    seeds: Sequence[int] = (42,),
    tokens: int = PAPER_TOKENS,
) -> tuple[Member, ...]:
    """One panel of the transcoder paper's Figure 3; `l1` empty takes all penalties that label its points.

    Raises:
        InputError: an unknown panel, a model of other sizes, a kind that the paper does not have, repeats.
    """
    penalties = tuple(l1) or (PAPER[name].penalties if name in PAPER else (1e-4,))
    _check(kinds=kinds, activations=("relu",), k=(), l1=penalties, expansions=(1,), seeds=seeds)
    absent = sorted(set(kinds) - {"transcoder", "sae"})
    if absent:
        raise InputError(f"the paper has no {', '.join(absent)}; its kinds are transcoder and sae")
    members = []
    for kind, value, seed in product(kinds, penalties, seeds):
        own: Any = kind
        recipe = replace(paper(name, cfg, float(value), own, tokens), seed=seed)
        members.append(_member(kind, ("l1", float(value)), recipe))
    return tuple(members)


def _member(family: str, point: tuple[str, float], recipe: Recipe) -> Member:
    between = "" if point[0] == "k" else "_"
    return Member(f"{family}-{point[0]}{between}{point[1]:g}-s{recipe.seed}", family, point, recipe)


def _check(**axes: Sequence[Any]) -> None:
    """Raise for a grid that is none, all problems at once."""
    wrong = [f"{name} is empty" for name in ("kinds", "activations", "expansions", "seeds") if not axes[name]]
    for name, known in (("kinds", tuple(KINDS)), ("activations", ACTIVATIONS)):
        unknown = [str(v) for v in axes[name] if v not in known]
        wrong += [f"{name}: {', '.join(unknown)} unknown; there are {', '.join(known)}"] if unknown else []
    for name, values in axes.items():
        twice = [str(v) for v, n in Counter(values).items() if n > 1]
        wrong += [f"{name} repeats {', '.join(twice)}"] if twice else []
    wanted = {"l1" if a == "relu" else "k" for a in axes["activations"]}
    whose = {"k": "topk, batchtopk and jumprelu", "l1": "relu"}
    wrong += [f"{name} is empty, and {whose[name]} needs it" for name in sorted(wanted) if not axes[name]]
    spare = [name for name in ("k", "l1") if axes[name] and name not in wanted]
    wrong += [f"{name} is given, but it is for activation {whose[name]}" for name in spare]
    if any(e < 1 for e in axes["expansions"]):
        wrong.append(f"expansions {list(axes['expansions'])}: give numbers from 1 on")
    if any(not 0 <= s < 2**31 for s in axes["seeds"]):
        wrong.append(f"seeds {list(axes['seeds'])}: give numbers in 0..{2**31 - 1}")
    if any(not v > 0 for v in axes["l1"]):
        wrong.append(f"l1 {list(axes['l1'])}: give numbers above 0")
    if wrong:
        raise InputError("this grid cannot be trained: " + "; ".join(wrong))

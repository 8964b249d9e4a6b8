"""What is to be planned, checked before anything is compiled: model, dictionary, prompt, features."""

from dataclasses import asdict, dataclass

from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import check_length
from tcircuits.numerics import bucket
from tcircuits.parallel import check_dtype
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.types import InputError


@dataclass(frozen=True)
class Extraction:
    """One `extract` call, by sizes alone.

    Attributes:
        prompts: of the attribution split.
        batch: prompts that run together.
        evaluations: circuits that run on all prompts.
        circuits: of one call.
        nodes: of the tree, the most important units (all, where there are fewer).
        steps: of gates on the tree.
        behaviours: whose graphs the membership network is trained on.
    """

    prompts: int = 64
    batch: int = 16
    evaluations: int = 256
    circuits: int = 64
    nodes: int = 4000
    steps: int = 1000
    behaviours: int = 4


@dataclass(frozen=True)
class Request:
    """One `attribute` call, by sizes alone.

    Attributes:
        model: sizes and switches of the model.
        dictionary: those of the transcoders.
        tokens: length of the prompt.
        max_features: features that are expanded; None is all that are active.
        active: features active at the busiest layer and position; all others are taken to be as busy, which makes the
            plan an upper bound. Ignored for `neurons`, all of which are.
        targets: logits that are explained.
        chunk: targets swept together; None is what `attribute` takes on the machine.
        dtype: of parameters and dictionary.
        behaviour: plan `extract` with a trace of each of its prompts; None is one trace.
    """

    model: ModelConfig
    dictionary: TranscoderConfig
    tokens: int = 64
    max_features: int | None = 7500
    active: int = 128
    targets: int = 10
    chunk: int | None = None
    dtype: str = "float32"
    behaviour: Extraction | None = None

    @property
    def slots(self) -> int:
        """Features kept at each layer and position, as `attribute` rounds them."""
        most = self.default_slots
        return most if most <= 64 or self.dictionary.kind == "neurons" else min(bucket(self.per_place), most)

    @property
    def default_slots(self) -> int:
        """Slots that always suffice (`slots.default_slots`)."""
        d = self.dictionary
        return d.k if d.activation == "topk" and d.k and d.fill == "error" else d.d_feature

    @property
    def per_place(self) -> int:
        """Active features at each layer and position."""
        return self.dictionary.d_feature if self.dictionary.kind == "neurons" else min(self.active, self.default_slots)

    @property
    def n_active(self) -> int:
        """Active features of the prompt; layers without a dictionary have none."""
        return len(self.dictionary.layers) * self.tokens * self.per_place

    @property
    def features(self) -> int:
        """Features that get a row of their own."""
        return self.n_active if self.max_features is None else self.max_features


def check(r: Request) -> None:
    """Raise for a request that `attribute` would refuse, or that cannot happen.

    Raises:
        InputError: everything that is wrong with it.
    """
    check_length(r.model, r.tokens)
    check_dtype(r.dtype)
    wrong = []
    d, m = r.dictionary, r.model
    if m.attn_only:
        wrong.append("the model has no MLPs, so it has no features to attribute to")
    if d.kind == "sae":
        wrong.append("SAEs stand for no computation to attribute through; give transcoders")
    if d.d_model != m.d_model or d.n_layers != m.n_layers:
        wrong.append(
            f"the dictionary is for {d.n_layers} layers of width {d.d_model}, "
            f"the model has {m.n_layers} of width {m.d_model}"
        )
    if r.active < 1 or r.targets < 1 or (r.chunk is not None and r.chunk < 1):
        wrong.append(f"active={r.active}, targets={r.targets}, chunk={r.chunk} must be at least 1")
    if r.max_features is not None and r.max_features < 1:
        wrong.append(f"max_features={r.max_features}; give at least 1, or None for all")
    if not wrong and r.features > r.n_active:
        wrong.append(
            f"max_features={r.features:,} is above the {r.n_active:,} features that are active: "
            f"{len(d.layers)} layers x {r.tokens} tokens x {r.per_place} at each; give at most that, "
            "None for all, or more --active"
        )
    wrong += _wrong_sizes(r)
    if wrong:
        raise InputError("; ".join(wrong))


def _wrong_sizes(r: Request) -> list[str]:
    """What cannot be extracted."""
    e = r.behaviour
    if e is None:
        return []
    small = [f"{name}={value}" for name, value in asdict(e).items() if value < 1]
    wrong = [f"{', '.join(small)} must be at least 1"] if small else []
    if not small and e.batch > e.prompts:
        wrong.append(f"batch={e.batch} is above the {e.prompts} prompts")
    return wrong if e.nodes >= 2 or small else [*wrong, "nodes=1: a tree is of at least 2 units"]

"""What is trained and how: everything that decides the result of a run, besides its data and its model.

A `Recipe` is static under `jit`; two runs with equal recipes, data and model give equal weights.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.types import InputError

Error = Literal["squared", "reference", "fvu"]
DecoderNorm = Literal["unit", "free"]
Start = Literal["independent", "tied", "small", "zero"]
Decode = Literal["auto", "dense", "sparse"]


@dataclass(frozen=True)
class Objective:
    """Terms of the loss of one dictionary; a token's loss is averaged over the batch, layers are added.

    With a the features, y the target, y_hat the output, n_j the norm of feature j's decoder (1 where rows are unit):

    Attributes:
        error: `squared` is |y - y_hat|^2 (Dunefsky et al. 2024, equation 5); `reference` is the mean over dimensions
            of (y - y_hat)^2 / |y| (their code); `fvu` is |y - y_hat|^2 over the variance of the batch's targets.
        l1: weight of sum_j n_j |a_j|.
        l0: weight of the number of features that are on, through JumpReLU's straight-through estimate
            (Rajamanoharan et al. 2024, equation 9).
        l0_target: with it, `l0` weighs (L0 / l0_target - 1)^2 instead, L0 the batch's mean.
        frequency: weight of sum_j max(0, p_j - frequency_limit), p_j the share of tokens where j is on (JumpReLU).
        tanh: weight of sum_j tanh(tanh_scale n_j a_j) (Ameisen et al. 2025).
        preactivation: weight of sum_j n_j max(0, theta_j - pre_j), which lets features that are off find their way
            back.
        bandwidth: width of JumpReLU's kernel around the threshold.
        k: BatchTopK's mean number of features kept for a token, whole or not (TopK's is part of the dictionary).
        by_norm: BatchTopK keeps the largest n_j a_j, not the largest a_j: what counts is how much a feature writes.
        auxk: weight of the error that the `k_aux` largest dead features leave of the residual (Gao et al. 2024).
        k_aux: how many; None is half of the width.
        dead_after: tokens without firing after which a feature counts as dead.
        nested: widths of prefixes of the dictionary that must each reconstruct alone (Matryoshka; Bussmann et al.
            2025); the whole is always among them, and the errors are averaged.
        overlap: weight of the mean over decoder rows of sum_{i != j} max(0, |cos(d_i, d_j)| - overlap_free)^2: rows
            that share a direction, such as a child that has absorbed its parent, are pushed apart (in the spirit of
            Korznikov et al. 2025, arXiv 2509.22033). It takes F^2 D operations three times and an array [F, F].
        overlap_free: |cos| that costs nothing; chance alone gives sqrt(2 log F / D) for the closest of F rows.
        prediction: weight of |f_{l+1} - P(f_l)|^2, P a ReLU network of rank `prediction_rank` (HAGD's cross-layer
            prediction; Uddin et al. 2026); the target is detached.
        prediction_rank: its width.
        cross_grad: let that term reach the encoder of layer l too (the paper), not only P.
    """

    error: Error = "squared"
    l1: float = 0.0
    l0: float = 0.0
    l0_target: float | None = None
    frequency: float = 0.0
    frequency_limit: float = 0.1
    tanh: float = 0.0
    tanh_scale: float = 4.0
    preactivation: float = 0.0
    bandwidth: float = 0.1
    k: float | None = None
    by_norm: bool = False
    auxk: float = 0.0
    k_aux: int | None = None
    dead_after: int = 1_000_000
    nested: tuple[int, ...] = ()
    overlap: float = 0.0
    overlap_free: float = 0.3
    prediction: float = 0.0
    prediction_rank: int = 256
    cross_grad: bool = False


@dataclass(frozen=True)
class Optimizer:
    """Adam with warm-up, a constant part, and a linear decay to zero over the last share of the run.

    Attributes:
        lr: the constant learning rate.
        warmup: steps of linear growth from zero.
        decay: share of all steps at the end, over which it falls to zero.
        b1, b2, eps: Adam's.
        clip: largest norm of one layer's gradient; None leaves it.
        sparsity_warmup: steps over which the weights of the sparsity terms grow from zero.
    """

    lr: float = 4e-4
    warmup: int = 1000
    decay: float = 0.2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = 1.0
    sparsity_warmup: int = 0


@jax.tree_util.register_static
@dataclass(frozen=True)
class Recipe:
    """A dictionary to train, and how.

    Attributes:
        dictionary: sizes, sites, activation function and k of the result.
        objective: the loss.
        optimizer: the steps.
        steps: how many.
        batch: tokens of one step.
        accumulate: parts of a batch whose gradients are added before the step.
        band: cross-layer: a source writes to its own and the next `band - 1` layers only; None is all later ones.
        tied: cross-layer: one decoder for all layers that a source writes to, with a learned factor for each.
        pre_bias: train a vector that is subtracted from the input (folded into the encoder's bias in the result).
        normalise: divide inputs and targets of each layer by their root mean square (folded into the result).
        decoder_norm: `unit` keeps decoder rows at norm 1 and the gradient at right angles to them; `free` leaves them,
            and sparsity terms are weighed by their norms.
        start: decoder rows and encoder rows drawn independently; `tied`: encoder = decoder (SAEs); `small`: tied, and
            both at norm 0.1, so that the data soon outweigh what was drawn; `zero`: the decoder is zero.
        compute: dtype of the large products; weights and moments stay in float32.
        decode: whether outputs are summed from the rows of active features, or by a dense product; `auto` sums rows
            for TopK on the CPU where few features are on, unless decoders are cross-layer.
        seed: of the initial weights, and of the order of tokens within a buffer.

    Raises:
        InputError: settings that do not fit together.
    """

    dictionary: TranscoderConfig
    objective: Objective = field(default_factory=Objective)
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: int = 10_000
    batch: int = 4096
    accumulate: int = 1
    band: int | None = None
    tied: bool = False
    pre_bias: bool = False
    normalise: bool = True
    decoder_norm: DecoderNorm = "unit"
    start: Start = "independent"
    compute: Literal["float32", "bfloat16", "float64"] = "float32"
    decode: Decode = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [*_sizes(self), *_terms(self)]
        if wrong:
            raise InputError("the recipe does not fit together: " + "; ".join(wrong))

    @property
    def coupled(self) -> bool:
        """Whether layers depend on each other, so that they must be trained at once."""
        return self.dictionary.kind == "clt" or self.objective.prediction > 0

    @property
    def chooses(self) -> bool:
        """Whether the activation function keeps the largest pre-activations."""
        return self.dictionary.activation in ("topk", "batchtopk")


def _sizes(r: Recipe) -> list[str]:
    c, wrong = r.dictionary, []
    if c.kind == "neurons":
        wrong.append("kind='neurons' is part of the model: nothing to train")
    if c.signed_topk or c.margin:
        wrong.append("signed_topk and margin belong to files of others")
    if r.steps < 1 or r.batch < 1 or r.accumulate < 1 or r.batch % r.accumulate:
        wrong.append(
            f"steps={r.steps}, batch={r.batch}, accumulate={r.accumulate}: at least 1, and parts of equal size"
        )
    if (r.band is not None or r.tied) and c.kind != "clt":
        wrong.append("band and tied belong to kind='clt'")
    if c.kind == "clt" and r.decoder_norm == "unit":
        wrong.append("kind='clt' needs decoder_norm='free': a source may write to one layer and not to another")
    if r.band is not None and not 1 <= r.band <= c.n_layers:
        wrong.append(f"band={r.band} is outside 1..{c.n_layers}")
    if r.start in ("tied", "small") and c.kind != "sae":
        wrong.append(f"start={r.start!r} is for SAEs: a transcoder's encoder and decoder live in different spaces")
    if r.start in ("small", "zero") and r.decoder_norm == "unit":
        wrong.append(f"start={r.start!r} cannot have decoder_norm='unit'")
    if not r.optimizer.lr > 0 or r.optimizer.warmup < 0 or not 0 <= r.optimizer.decay <= 1:
        wrong.append(f"lr={r.optimizer.lr}, warmup={r.optimizer.warmup}, decay={r.optimizer.decay} are out of range")
    return wrong


def _terms(r: Recipe) -> list[str]:
    o, c, wrong = r.objective, r.dictionary, []
    for name in ("l1", "l0", "frequency", "tanh", "preactivation", "auxk", "prediction", "overlap"):
        if not getattr(o, name) >= 0:
            wrong.append(f"{name}={getattr(o, name)} must not be negative")
    if (o.l0 or o.frequency) and c.activation != "jumprelu":
        wrong.append("l0 and frequency are trained through JumpReLU's thresholds: activation='jumprelu'")
    if o.l0_target is not None and not (o.l0 and o.l0_target > 0):
        wrong.append(f"l0_target={o.l0_target} needs a positive target and l0 > 0")
    if o.preactivation and c.activation not in ("relu", "jumprelu"):
        wrong.append("preactivation is for relu and jumprelu: TopK has auxk")
    if o.nested and (list(o.nested) != sorted(set(o.nested)) or o.nested[0] < 1 or o.nested[-1] >= c.d_feature):
        wrong.append(f"nested={o.nested} must be ascending widths below d_feature={c.d_feature}")
    if o.overlap and c.kind == "clt":
        wrong.append("overlap needs one decoder a feature: a cross-layer feature has one for each layer")
    if not 0 <= o.overlap_free < 1:
        wrong.append(f"overlap_free={o.overlap_free} must be a |cos|, in 0..1 without 1")
    if o.bandwidth <= 0 or o.dead_after < 1 or o.prediction_rank < 1:
        wrong.append("bandwidth, dead_after and prediction_rank must be positive")
    if o.k_aux is not None and not 1 <= o.k_aux <= c.d_feature:
        wrong.append(f"k_aux={o.k_aux} is outside 1..{c.d_feature}")
    if o.prediction and (c.kind == "clt" or len(c.layers) < 2):
        wrong.append("prediction needs a per-layer dictionary of at least two layers")
    if c.activation == "batchtopk" and not 1 <= (o.k or 0) <= c.d_feature:
        wrong.append(f"batchtopk needs objective.k, the mean number kept, in 1..{c.d_feature}; it is {o.k}")
    if c.activation != "batchtopk" and o.k is not None:
        wrong.append("objective.k belongs to batchtopk; topk's is dictionary.k")
    if o.by_norm and c.activation != "batchtopk":
        wrong.append("by_norm belongs to batchtopk")
    return wrong


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Where two settings (nested dicts, as `dataclasses.asdict` gives them) differ, as `name: stored -> given`.

    A part that one side lacks is named, not shown.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [d for n in names for d in differences(ours.get(n), theirs.get(n), f"{prefix}{n}.")]
    if isinstance(ours, dict) and theirs is None:
        return [f"{prefix.rstrip('.')}: absent -> given"]
    if isinstance(theirs, dict) and ours is None:
        return [f"{prefix.rstrip('.')}: stored -> absent"]
    same = ours == theirs or (
        isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and [*ours] == [*theirs]
    )
    return [] if same else [f"{prefix.rstrip('.')}: {theirs!r} -> {ours!r}"]

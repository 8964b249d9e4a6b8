"""What a dictionary is: kind, sizes, activation function, and where it reads and writes."""

from dataclasses import dataclass
from typing import Literal

import jax

from tcircuits.models.config import ModelConfig

Kind = Literal["transcoder", "clt", "sae", "neurons"]
ActivationName = Literal["relu", "topk", "batchtopk", "jumprelu"]
Reads = Literal["resid_mid", "normalized", "mlp_in", "mlp_out", "resid_pre", "resid_post"]
Writes = Literal["mlp_out", "mlp_raw", "mlp_in", "resid_pre", "resid_mid", "resid_post"]
Fill = Literal["error", "neurons"]
MLP_READS = ("resid_mid", "normalized", "mlp_in")
MLP_WRITES = ("mlp_out", "mlp_raw")
SAE_SITES = ("mlp_in", "mlp_out", "resid_pre", "resid_mid", "resid_post")


@jax.tree_util.register_static
@dataclass(frozen=True)
class TranscoderConfig:
    """Sizes and switches of a set of dictionaries over the layers of one model.

    Attributes:
        kind: `transcoder` writes to its own layer, `clt` to its own and all later ones, `neurons` are the model's MLP;
            `sae` reconstructs the site that it reads (one of `SAE_SITES`), so nothing can be attributed through it.
        n_layers: layers of the model.
        layers: the layers that have a dictionary, ascending (all of them for `clt` and `neurons`).
        k: number kept by `topk`.
        signed_topk: `topk` keeps negative pre-activations that are among the k largest (circuit-tracer's files);
            otherwise a ReLU comes first (sparsify's).
        margin: `topk` ranks features by how far they are above their thresholds, and keeps none that is not above
            (clt-training's files, where the value of a feature that is on has an offset).
        reads: `resid_mid` is the residual stream that the MLP's norm reads (with parallel blocks `resid_pre`);
            `normalized` is after the norm without gain and bias; `mlp_in` is what the MLP itself reads.
        writes: `mlp_out` is what is added to the residual stream; `mlp_raw` is before a post-norm (they differ for
            Gemma 2, 3).
        skip: an affine path y += x W_skip beside the features.
        fill: what stands for the MLP of a layer without dictionary: an error node, or its neurons.

    Raises:
        ValueError: switches that do not fit together.
    """

    kind: Kind
    n_layers: int
    d_model: int
    d_feature: int
    layers: tuple[int, ...]
    activation: ActivationName = "relu"
    k: int | None = None
    signed_topk: bool = False
    margin: bool = False
    reads: Reads = "mlp_in"
    writes: Writes = "mlp_out"
    skip: bool = False
    fill: Fill = "error"

    def __post_init__(self) -> None:
        wrong = []
        if (self.activation == "topk") != (self.k is not None):
            wrong.append(f"k={self.k} with activation={self.activation!r}: give k with 'topk' and only with it")
        if self.k is not None and not 1 <= self.k <= self.d_feature:
            wrong.append(f"k={self.k} is outside 1..{self.d_feature} (d_feature)")
        if self.margin and (self.activation != "topk" or self.signed_topk):
            wrong.append(f"margin=True with activation={self.activation!r}, signed_topk={self.signed_topk}")
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            wrong.append(f"layers={self.layers} must be ascending, without repeats, and not empty")
        elif self.layers[0] < 0 or self.layers[-1] >= self.n_layers:
            wrong.append(f"layers={self.layers} leave the model's 0..{self.n_layers - 1}")
        if self.kind == "sae" and (self.reads != self.writes or self.reads not in SAE_SITES or self.skip):
            wrong.append(
                f"kind='sae' with reads={self.reads!r}, writes={self.writes!r}, skip={self.skip}: it writes the site "
                f"that it reads, one of {', '.join(SAE_SITES)}, without a skip"
            )
        if self.kind != "sae" and (self.reads not in MLP_READS or self.writes not in MLP_WRITES):
            wrong.append(
                f"reads={self.reads!r}, writes={self.writes!r} with kind={self.kind!r}: "
                f"reads {', '.join(MLP_READS)}, writes {', '.join(MLP_WRITES)}"
            )
        if self.kind in ("clt", "neurons") and len(self.layers) != self.n_layers:
            wrong.append(f"kind={self.kind!r} covers all {self.n_layers} layers, but layers has {len(self.layers)}")
        if wrong:
            raise ValueError("dictionary configuration does not fit together: " + "; ".join(wrong))

    @property
    def gated(self) -> bool:
        """Whether features have thresholds."""
        return self.margin or self.activation in ("jumprelu", "batchtopk")

    @property
    def n_pairs(self) -> int:
        """Number of (source layer, output layer) decoders: L(L+1)/2 for cross-layer transcoders, else one a layer."""
        return len(self.layers) * (len(self.layers) + 1) // 2 if self.kind == "clt" else len(self.layers)


def misfits(cfg: ModelConfig, c: TranscoderConfig) -> list[str]:
    """Where the sizes that a dictionary was made for are not those of a model, in words."""
    wrong = []
    if c.d_model != cfg.d_model:
        wrong.append(f"its width is {c.d_model}, the model's d_model {cfg.d_model}")
    if c.n_layers != cfg.n_layers:
        wrong.append(f"it is for {c.n_layers} layers, the model has {cfg.n_layers}")
    if c.kind == "neurons" and c.d_feature != cfg.d_mlp:
        wrong.append(f"it has {c.d_feature} neurons, the model's d_mlp is {cfg.d_mlp}")
    return wrong

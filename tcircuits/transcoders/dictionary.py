"""Sparse dictionaries on a model's MLPs: per-layer, skip and cross-layer transcoders in one parameter tree.

    f = act(x W_enc^T + b_enc),    y_m = sum over i <= m of f_i W_dec[i -> m] + b_dec_m (+ x_m W_skip_m)

where i = m only, unless the dictionary is cross-layer. Everything here acts on single vectors (or on any leading axes);
callers `vmap`, `jit` and shard. `slot` is a layer's place among `cfg.layers` and may be traced.

Sources: Dunefsky et al. 2024 (arXiv 2406.11944), equations 3-4; JumpReLU: Rajamanoharan et al. 2024 (arXiv 2407.14435);
TopK: Gao et al. 2024 (arXiv 2406.04093); BatchTopK: Bussmann et al. 2024 (arXiv 2412.06410); cross-layer: Ameisen et
al. 2025 (transformer-circuits.pub/2025/attribution-graphs).

>>> import jax, jax.numpy as jnp
>>> cfg = TranscoderConfig("transcoder", n_layers=1, d_model=2, d_feature=3, layers=(0,))
>>> w = jnp.ones((1, 3, 2))
>>> d = Transcoders(cfg, "example", w, jnp.zeros((1, 3)), w, jnp.zeros((1, 2)), threshold=None, w_skip=None)
>>> encode(d, 0, jnp.array([1.0, 2.0])).tolist()
[3.0, 3.0, 3.0]
>>> reconstruct(d, jnp.array([[1.0, 2.0]])).tolist()
[[9.0, 9.0]]
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.models.params import ArraySpec
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.types import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transcoders:
    """A set of dictionaries. Layers without one have no row; `neurons` has no arrays at all (all None).

    `w_dec` has one matrix a layer, or for cross-layer dictionaries one a pair (i -> m) with i <= m, at `pair(i, m)`.
    `threshold` belongs to `jumprelu`, `batchtopk` and `topk` with `margin`. `source` says where it came from.
    """

    cfg: TranscoderConfig = field(metadata={"static": True})
    source: str = field(metadata={"static": True})
    w_enc: Float[Array, "L F D"] | None
    b_enc: Float[Array, "L F"] | None
    w_dec: Float[Array, "P F D"] | None
    b_dec: Float[Array, "L D"] | None
    threshold: Float[Array, "L F"] | None
    w_skip: Float[Array, "L D D"] | None


def pair(cfg: TranscoderConfig, i: Any, m: Any) -> Any:
    """Row of `w_dec` from features of slot i to the output of slot m; the sources of one output are neighbours."""
    return m * (m + 1) // 2 + i if cfg.kind == "clt" else m


def spec(cfg: TranscoderConfig) -> Transcoders:
    """The parameter tree with an `ArraySpec` in the place of each array."""
    n, F, D = len(cfg.layers), cfg.d_feature, cfg.d_model
    rows = ("layers", "feature", "embed")
    absent: Any = None
    if cfg.kind == "neurons":
        return Transcoders(cfg, "neurons", *([absent] * 6))
    leaves: list[Any] = [
        ArraySpec((n, F, D), rows, fan_in=D),
        ArraySpec((n, F), ("layers", "feature"), "zeros"),
        ArraySpec((cfg.n_pairs, F, D), rows, fan_in=F),
        ArraySpec((n, D), ("layers", "embed"), "zeros"),
        ArraySpec((n, F), ("layers", "feature"), "zeros") if cfg.gated else None,
        ArraySpec((n, D, D), ("layers", "embed", None), "zeros") if cfg.skip else None,
    ]
    return Transcoders(cfg, "spec", *leaves)


def neurons(n_layers: int, d_model: int, d_mlp: int) -> Transcoders:
    """The dictionary that needs no training: the model's own MLP neurons as features (no reconstruction error)."""
    cfg = TranscoderConfig(
        "neurons", n_layers, d_model, d_mlp, tuple(range(n_layers)), reads="mlp_in", writes="mlp_raw"
    )
    return spec(cfg)


def activate(
    cfg: TranscoderConfig, pre: Float[Array, "*X F"], threshold: Float[Array, " F"] | None
) -> Float[Array, "*X F"]:
    """Feature values from pre-activations; zero where a feature is off.

    `batchtopk` is trained by keeping the largest values of a batch; afterwards it is a threshold, stored in the file.
    """
    match cfg.activation:
        case "relu":
            return jax.nn.relu(pre)
        case "jumprelu" | "batchtopk":
            assert threshold is not None  # it belongs to these two
            on = pre > threshold
            return jnp.where(on & (pre > 0), pre, 0.0) if cfg.activation == "batchtopk" else jnp.where(on, pre, 0.0)
        case "topk":
            assert cfg.k is not None  # TranscoderConfig ensures it
            values, index = jax.lax.top_k(rank(cfg, pre, threshold), cfg.k)
            if cfg.margin:
                values = jnp.where(values > 0, jnp.take_along_axis(pre, index, -1), 0.0)
            return jnp.put_along_axis(jnp.zeros_like(pre), index, values, axis=-1, inplace=False)


def rank(
    cfg: TranscoderConfig, pre: Float[Array, "*X F"], threshold: Float[Array, " F"] | None
) -> Float[Array, "*X F"]:
    """By what `topk` chooses."""
    if cfg.margin:
        assert threshold is not None  # it belongs to it
        pre = pre - threshold
    return pre if cfg.signed_topk else jax.nn.relu(pre)


def encode(d: Transcoders, slot: Any, x: Float[Array, "*X D"]) -> Float[Array, "*X F"]:
    """Feature values of the dictionary at `slot` for what it reads."""
    assert d.w_enc is not None, "neurons have no encoder of their own: use attribution.freeze"
    assert d.b_enc is not None
    pre = jnp.einsum("...D,FD->...F", x, d.w_enc[slot]) + d.b_enc[slot]
    return activate(d.cfg, pre, None if d.threshold is None else d.threshold[slot])


BLOCK = 1 << 21  # numbers of an encoder that `encode_once` multiplies at once, at least
SHARDS = 16  # parts that each of its blocks has one piece of


def encode_once(d: Transcoders, slot: Any, x: Float[Array, "T D"]) -> Float[Array, "T F"]:
    """`encode` for few vectors and a `slot` that a loop over layers counts, where reading weights is what takes time.

    XLA's CPU backend copies whatever a loop slices out of an array, and the copy of a layer's encoder takes longer than
    its product with a prompt. Here the loop slices blocks, which stay in a cache. A block is one piece of each of
    many equal parts of the features, so that shards of features stay where they are. Other backends multiply a layer
    at once.
    """
    assert d.w_enc is not None, "neurons have no encoder of their own: use attribution.freeze"
    assert d.b_enc is not None
    _, F, D = d.w_enc.shape
    parts = min(F & -F, SHARDS)  # powers of two
    each = F // parts
    n = max(i for i in range(1, each + 1) if each % i == 0 and (i == 1 or F // i * D >= BLOCK))
    if n == 1:
        return encode(d, slot, x)

    def blocks(w: Array) -> Array:
        pieces = w.reshape(len(w), parts, n, each // n, D)

        def add(j: Array, pre: Array) -> Array:
            made = jnp.einsum("TD,FD->TF", x, pieces[slot, :, j].reshape(-1, D))
            return pre.at[:, :, j].set(made.reshape(len(x), parts, -1))

        empty = jnp.zeros((len(x), parts, n, each // n), jnp.result_type(x, w))
        return jax.lax.fori_loop(0, n, add, empty).reshape(len(x), F)

    def whole(w: Array) -> Array:
        return jnp.einsum("TD,FD->TF", x, w[slot])

    pre = jax.lax.platform_dependent(d.w_enc, cpu=blocks, default=whole) + d.b_enc[slot]
    return activate(d.cfg, pre, None if d.threshold is None else d.threshold[slot])


def sparse(
    f: Float[Array, "*X F"], n_slots: int
) -> tuple[Int[Array, "*X C"], Float[Array, "*X C"], Bool[Array, "*X C"]]:
    """The active features of `f`, by ascending index: (index, value, valid), padded to `n_slots`.

    Where more than `n_slots` are active the largest indices are lost; the caller compares `(f != 0).sum(-1)` with it.
    """
    n = f.shape[-1]
    # Whole numbers are exact in float32 below 2^24; XLA's CPU backend has a fast top-k for it alone (forty times).
    key = jnp.where(f != 0, n - jnp.arange(n, dtype=jnp.float32 if n < 1 << 24 else jnp.int32), 0)
    ranked, index = jax.lax.top_k(key, n_slots)
    valid = ranked > 0
    return jnp.where(valid, index, 0), jnp.where(valid, jnp.take_along_axis(f, index, -1), 0.0), valid


def decode(d: Transcoders, slot: Any, f: Float[Array, "L *X F"]) -> Float[Array, "*X D"]:
    """Output at `slot`, without the affine skip, from the features of all slots (it uses those that write there)."""
    assert d.w_dec is not None, "neurons decode through the model's own MLP"
    assert d.b_dec is not None
    if d.cfg.kind != "clt":
        return jnp.einsum("...F,FD->...D", f[slot], d.w_dec[slot]) + d.b_dec[slot]

    def add(i: Array, total: Array) -> Array:
        assert d.w_dec is not None
        return total + jnp.einsum("...F,FD->...D", f[i], d.w_dec[pair(d.cfg, i, slot)])

    start = jnp.broadcast_to(d.b_dec[slot], (*f.shape[1:-1], d.cfg.d_model)).astype(f.dtype)
    return jax.lax.fori_loop(0, slot + 1, add, start)


def reconstruct(d: Transcoders, x: Float[Array, "L *X D"]) -> Float[Array, "L *X D"]:
    """What all dictionaries write, from what they read (both stacked by slot)."""
    x, slots = jnp.asarray(x), jnp.arange(len(d.cfg.layers))
    f = jax.lax.map(lambda s: encode(d, s, x[s]), slots)

    def one(s: Array) -> Array:
        y = decode(d, s, f)
        return y if d.w_skip is None else y + jnp.einsum("...D,DE->...E", x[s], d.w_skip[s])

    return jax.lax.map(one, slots)

"""Influence of every active feature without a row of its own: a sketch with random probes that are 1-stable.

Influence sums absolute values along all paths, so no single backward pass gives it. But for independent standard Cauchy
variables c, sum_s c_s A_ts is Cauchy with scale sum_s |A_ts|, and E log|Cauchy(scale)| = log(scale). So:

1. Up: push R random combinations of *all* sources (tokens, errors, features, each with its own Cauchy factor) through
   the frozen linear network; what feature t reads has scale |row t|_1. All row totals come from one pass of R streams.
2. Down: start R random combinations of the targets, divided by their totals; at each layer, what feature s reads back,
   times its activation, has as scale its influence; add it again as a target, with a fresh Cauchy factor, influence /
   total as weight.

Both passes cost as much as two chunks of R targets. The estimate of log influence has standard deviation
(pi/2)/sqrt(R) a hop. The key is fixed, random bits do not depend on the mesh: the same features are selected on every
number of devices, ties and rounding aside.

Sources: 1-stable projections, Indyk 2006 (J. ACM 53, 307-323); their logarithmic estimator, Li et al. 2013 (arXiv
1312.6820) treat the wider family. Their use for influence is ours.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.descent import Descent
from tcircuits.attribution.frozen import Frozen, coverage, read_up, rows_in_slots, skip_up
from tcircuits.attribution.linear import norm_up, token_vectors
from tcircuits.attribution.targets import Targets
from tcircuits.models.config import ModelConfig
from tcircuits.models.params import Params
from tcircuits.numerics import wide
from tcircuits.parallel import Spread
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float

SEED = 20241122
PROBES = 64
FLOOR = 0.02
TOKENS, ERRORS, FEATURES, TARGETS, AGAIN = range(5)  # streams of random numbers


def cauchy(key: Array, stream: int, index: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Standard Cauchy variables, one reproducible block for each stream and layer, the same in every dtype."""
    own = jax.random.fold_in(jax.random.fold_in(key, stream), index)
    return jax.random.cauchy(own, shape, jnp.float32).astype(dtype)


def by_position(key: Array, stream: int, index: Any, shape: tuple[int, ...], dtype: Any) -> Float[Array, "T R C"]:
    """Cauchy variables [R, T, C], positions first."""
    return jnp.swapaxes(cauchy(key, stream, index, shape, dtype), 0, 1)


def scale(x: Float[Array, "*X R Y"]) -> Float[Array, "*X Y"]:
    """Scale of Cauchy samples along the last axis but one: the geometric mean of their absolute values; 0 if all are 0.

    A logarithm makes much of the rounding of a sample near 0, which one of thousands of nodes always has; so samples
    count as `FLOOR` of the scale at least, and what that adds on average, 2 / pi of it, is taken off again.
    """
    size = jnp.abs(x)
    rough = jnp.exp(jnp.log(size).mean(-2, keepdims=True))
    return jnp.exp(jnp.log(jnp.maximum(size, FLOOR * rough)).mean(-2) - 2 / jnp.pi * FLOOR)


def _feature_output(sweep: Descent, key: Array, i: Any, m: Any, R: int) -> Float[Array, "T R D"]:
    """What layer i's features, each with its random factor, write at layer m."""
    f = sweep.frozen
    c = by_position(key, FEATURES, i, (R, *f.value.shape[1:]), f.value.dtype) * f.value[i][:, None]
    if sweep.d.cfg.kind == "neurons":
        assert sweep.params.blocks.mlp is not None
        return c @ wide(sweep.params.blocks.mlp.w_out[m])
    return jnp.einsum("TRC,TCD->TRD", c, rows_in_slots(sweep.d, f, i, m))


def row_totals(
    sweep: Descent, key: Array, targets: Targets, R: int
) -> tuple[Float[Array, "L T C"], Float[Array, "Q B R D"]]:
    """Estimated |row|_1 of every feature, and the streams where each target reads them; R streams."""
    cfg, d, f = sweep.cfg, sweep.d, sweep.frozen
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    T, dtype = f.tokens.shape[0], f.value.dtype
    x = by_position(key, TOKENS, 0, (R, T, 1), dtype) * token_vectors(cfg, sweep.params, f.tokens)[:, None]

    def where_read(x: Array, m: Any, reads: Array) -> Array:
        """`reads`, with those of the targets at layer m."""
        return jnp.where((targets.layer == m)[:, None, None, None], x[targets.pos], reads)

    def step(carry: Any, m: Array) -> Any:
        x, reads = carry
        block, h = sweep.at(m)
        attn = sweep.attention_up(m, x)
        middle = x if cfg.parallel else x + attn
        totals = scale(sweep.features_up(m, middle))
        read = read_up(cfg, d, block.norm2, sweep.along(h.norm2), middle, False)
        out = by_position(key, ERRORS, m, (R, T, 1), dtype) * f.error[m][:, None]
        out = out + skip_up(d, slots[m], covered[m], read)
        if d.cfg.kind == "clt":
            out = jax.lax.fori_loop(0, m + 1, lambda i, o: o + _feature_output(sweep, key, i, m, R), out)
        else:
            out = out + _feature_output(sweep, key, m, m, R)
        if d.cfg.writes == "mlp_raw" and cfg.post_norm:
            out = norm_up(cfg, block.norm2_post, sweep.along(h.norm2_post), out)
        return (sweep.apart(x + attn + out), where_read(middle, m, reads)), totals

    none = jnp.zeros((*targets.pos.shape, R, x.shape[-1]), x.dtype)
    (x, reads), totals = jax.lax.scan(step, (sweep.apart(x), none), jnp.arange(cfg.n_layers))
    return totals, where_read(x, cfg.n_layers, reads)


def influence_sketch(
    cfg: ModelConfig,
    params: Params,
    dictionary: Transcoders,
    frozen: Frozen,
    targets: Targets,
    *,
    n_probes: int = PROBES,
    spread: Spread | None = None,
) -> Float[Array, "L T C"]:
    """Estimated influence of every active feature, as if all were expanded. Pure.

    Static are `n_probes` and `spread`, over which devices probes are spread.
    """
    with jax.default_matmul_precision("highest"):
        sweep = Descent(cfg, params, dictionary, frozen, frozen.tokens.shape[0], spread)
        key = jax.random.key(SEED)
        totals, reads = row_totals(sweep, key, targets, n_probes)

        def chunk(total: Array, item: tuple[Targets, Array]) -> tuple[Array, None]:
            return total + _descend(sweep, key, *item, totals, n_probes), None

        return jax.lax.scan(chunk, jnp.zeros_like(frozen.value), (targets, reads))[0]


def _descend(
    sweep: Descent, key: Array, t: Targets, reads: Float[Array, "B R D"], totals: Array, R: int
) -> Float[Array, "L T C"]:
    """Influence that starts at one chunk of B targets, which read the streams `reads`."""
    f = sweep.frozen
    B, shape, dtype = t.pos.shape[0], (R, *f.value.shape[1:]), f.value.dtype
    own = scale(jnp.einsum("BD,BRD->BR", t.vec, reads)[..., None])[:, 0]
    weight = jnp.where(own > 0, t.weight / jnp.where(own > 0, own, 1.0), 0.0)
    factor = cauchy(key, TARGETS, 0, (R, B), dtype) * weight

    def body(i: Array, carry: Any) -> Any:
        g, acc, influence = carry
        m = t.layer - 1 - i
        written = sweep.written(m, g)
        r, acc = sweep.reads(m, written, acc)
        here = scale(r)
        again = jnp.where(totals[m] > 0, here / jnp.where(totals[m] > 0, totals[m], 1.0), 0.0)
        entering = sweep.features(m, by_position(key, AGAIN, m, shape, dtype) * again[:, None])
        return sweep.below(m, g, written, lambda x: x + entering), acc, influence.at[m].set(here)

    g = sweep.apart(jnp.einsum("RB,TBD->TRD", factor, sweep.start(t.layer, t.pos, t.vec)))
    return jax.lax.fori_loop(0, t.layer, body, (g, sweep.accumulator(R), jnp.zeros_like(f.value)))[2]

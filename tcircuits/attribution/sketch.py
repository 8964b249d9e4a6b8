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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen, coverage, read_up, rows_in_slots, skip_up
from tcircuits.attribution.linear import block_up, norm_up, token_vectors
from tcircuits.attribution.rows import Sweep, accumulator, source_reads
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
    """Standard Cauchy variables, one reproducible block for each stream and layer."""
    return jax.random.cauchy(jax.random.fold_in(jax.random.fold_in(key, stream), index), shape, dtype)


def scale(x: Float[Array, "R *X"]) -> Float[Array, "*X"]:
    """Scale of Cauchy samples along the first axis: the geometric mean of their absolute values; 0 where all are 0.

    A logarithm makes much of the rounding of a sample near 0, which one of thousands of nodes always has; so samples
    count as `FLOOR` of the scale at least, and what that adds on average, 2 / pi of it, is taken off again.
    """
    size = jnp.abs(x)
    rough = jnp.exp(jnp.log(size).mean(0))
    return jnp.exp(jnp.log(jnp.maximum(size, FLOOR * rough)).mean(0) - 2 / jnp.pi * FLOOR)


def _feature_output(sweep: Sweep, key: Array, i: Any, m: Any, R: int) -> Float[Array, "R T D"]:
    """What layer i's features, each with its random factor, write at layer m."""
    f = sweep.frozen
    c = cauchy(key, FEATURES, i, (R, *f.value.shape[1:]), f.value.dtype) * f.value[i]
    if sweep.d.cfg.kind == "neurons":
        assert sweep.params.blocks.mlp is not None
        return jnp.einsum("RTC,CD->RTD", c, wide(sweep.params.blocks.mlp.w_out[m]))
    return jnp.einsum("RTC,TCD->RTD", c, rows_in_slots(sweep.d, f, i, m))


def _read_features(sweep: Sweep, m: Any, x: Float[Array, "R T D"]) -> Float[Array, "R T C"]:
    """What layer m's features read of streams before the MLP's norm; the transpose of `Sweep.features`."""
    probe = jnp.zeros((x.shape[0], *sweep.frozen.value.shape[1:]), x.dtype)
    return jax.linear_transpose(lambda r: sweep.features(m, r), probe)(x)[0]


def _apart(spread: Spread | None) -> Callable[[Array], Array]:
    """What spreads the first axis."""
    return lambda x: x if spread is None else spread(x, 0)


def row_totals(
    sweep: Sweep, key: Array, targets: Targets, R: int, spread: Spread | None = None
) -> tuple[Float[Array, "L T C"], Float[Array, "Q R B D"]]:
    """Estimated |row|_1 of every feature, and the streams where each target reads them; R streams, spread."""
    cfg, d, f = sweep.cfg, sweep.d, sweep.frozen
    slots, covered = (jnp.asarray(x) for x in coverage(d.cfg))
    T, dtype, apart = f.tokens.shape[0], f.value.dtype, _apart(spread)
    x = cauchy(key, TOKENS, 0, (R, T, 1), dtype) * token_vectors(cfg, sweep.params, f.tokens)

    def where_read(x: Array, m: Any, reads: Array) -> Array:
        """`reads`, with those of the targets at layer m."""
        here = jnp.moveaxis(x[:, targets.pos], 1, 0)
        return jnp.where((targets.layer == m)[:, None, None, None], here, reads)

    def step(carry: Any, m: Array) -> Any:
        x, reads = carry
        block, h = sweep.at(m)
        attn = jax.vmap(lambda x: block_up(cfg, block, h.pattern, h.norm1, h.norm1_post, x, False))(x)
        middle = x if cfg.parallel else x + attn
        totals = scale(_read_features(sweep, m, middle))
        read = jax.vmap(lambda x: read_up(cfg, d, block.norm2, h.norm2, x, False))(middle)
        out = cauchy(key, ERRORS, m, (R, T, 1), dtype) * f.error[m]
        out = out + jax.vmap(lambda x: skip_up(d, slots[m], covered[m], x) + jnp.zeros_like(x))(read)
        if d.cfg.kind == "clt":
            out = jax.lax.fori_loop(0, m + 1, lambda i, o: o + _feature_output(sweep, key, i, m, R), out)
        else:
            out = out + _feature_output(sweep, key, m, m, R)
        if d.cfg.writes == "mlp_raw" and cfg.post_norm:
            out = jax.vmap(lambda o: norm_up(cfg, block.norm2_post, h.norm2_post, o))(out)
        return (apart(x + attn + out), where_read(middle, m, reads)), totals

    none = jnp.zeros((targets.pos.shape[0], R, targets.pos.shape[1], x.shape[-1]), x.dtype)
    (x, reads), totals = jax.lax.scan(step, (apart(x), none), jnp.arange(cfg.n_layers))
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
        sweep, key = Sweep(cfg, params, dictionary, frozen), jax.random.key(SEED)
        totals, reads = row_totals(sweep, key, targets, n_probes, spread)

        def chunk(total: Array, item: tuple[Targets, Array]) -> tuple[Array, None]:
            return total + _descend(sweep, key, *item, totals, n_probes, spread), None

        return jax.lax.scan(chunk, jnp.zeros_like(frozen.value), (targets, reads))[0]


def _descend(
    sweep: Sweep, key: Array, t: Targets, reads: Array, totals: Array, R: int, spread: Spread | None
) -> Float[Array, "L T C"]:
    """Influence that starts at one chunk of targets, which read the streams `reads` [R, B, D]."""
    f, apart = sweep.frozen, _apart(spread)
    B, shape, dtype = t.pos.shape[0], (R, *f.value.shape[1:]), f.value.dtype
    own = scale(jnp.einsum("BD,RBD->RB", t.vec, reads))
    weight = jnp.where(own > 0, t.weight / jnp.where(own > 0, own, 1.0), 0.0)
    factor = cauchy(key, TARGETS, 0, (R, B), dtype) * weight

    def body(i: Array, carry: Any) -> Any:
        g, acc, influence = carry
        m = t.layer - 1 - i
        written = sweep.written(m, g)
        r, acc = source_reads(sweep, m, written, acc)
        here = scale(r * f.value[m])
        again = jnp.where(totals[m] > 0, here / jnp.where(totals[m] > 0, totals[m], 1.0), 0.0)
        entering = sweep.features(m, cauchy(key, AGAIN, m, shape, dtype) * again)
        return apart(sweep.below(m, g, written, entering)), acc, influence.at[m].set(here)

    g = apart(jnp.einsum("RB,BTD->RTD", factor, sweep.start(t.layer, t.pos, t.vec)))
    return jax.lax.fori_loop(0, t.layer, body, (g, accumulator(sweep, R), jnp.zeros_like(f.value)))[2]

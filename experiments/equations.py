"""Do the paper's equations hold? 6-8 and 18-28, each term from weights against autodiff of the replacement model.

    python -m experiments.equations

Dunefsky et al. 2024 (arXiv 2406.11944). Patterns, norm denominators and gates are those of a prompt. The gradient of a
target with patterns set to zero (direct paths), or to one entry of one head (a path through it), times a source's
activation is that path's attribution; the weights' side is activation * patterns * input-invariant weight, with the
denominators that the path meets. A gap is the largest difference over the largest attribution of its kind. On random
models of four families with four kinds of dictionary, and on the embedded model with its three sets.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments import autodiff as ad
from experiments.common import fresh, save, show
from experiments.toys import random_dictionary, random_model
from tcircuits.attribution import weights as w
from tcircuits.attribution.forward_weights import direct_logits, feature_reads, written_streams
from tcircuits.attribution.frozen import Frozen, freeze
from tcircuits.attribution.heads import head_sources, head_values
from tcircuits.attribution.linear import token_vectors
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Hold, mlp, unembed_matrix
from tcircuits.models.params import Params
from tcircuits.transcoders.dictionary import Transcoders

Chain = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]  # heads, and (to, from) positions of each


@dataclass(frozen=True)
class Places:
    """What is compared: a target feature, one on the way to it, two heads, their positions, a token's logit."""

    pos: int = 5
    top: int = 2
    feature: int = 3
    middle: int = 7
    heads: tuple[tuple[int, int], ...] = ((1, 2), (0, 1))
    past: int = 4
    first: int = 3
    token: int = 4


@dataclass(frozen=True)
class Config:
    """What to measure."""

    families: tuple[str, ...] = ("gpt2", "neox", "llama", "gemma2")
    """Random models."""
    kinds: tuple[str, ...] = ("plt-relu", "plt-skip", "clt-relu", "neurons")
    """Dictionaries on them."""
    sets: tuple[str, ...] = ("tiny-transcoders", "tiny-skip", "tiny-clt")
    """Of the embedded model."""
    prompt: str = "While Robert and James were working at the beach, Robert gave a drink to"
    """For the embedded model."""
    dtypes: tuple[str, ...] = ("float64", "float32")
    """Both are measured."""


def one_entry(frozen: Frozen, chain: Chain) -> jax.Array:
    """Patterns with one entry of each head."""
    pattern = jnp.zeros_like(ad.pattern_of(frozen))
    for (layer, head), (to, source) in zip(*chain, strict=True):
        pattern = pattern.at[layer, head, to, source].set(ad.pattern_of(frozen)[layer, head, to, source])
    return pattern


def along(cfg: ModelConfig, frozen: Frozen, chain: Chain, start: int) -> Hold:
    """Denominators on a path through heads: at each layer those of the position that the path has there."""
    hold = w.hold_of(frozen.hold, start)
    for (layer, _), (_, source) in zip(*chain, strict=True):
        below = w.hold_of(frozen.hold, source)
        upto = layer + (1 if cfg.parallel else 0)  # the MLP beside a parallel head is not on the path

        def join(a: Any, b: Any, n: int) -> Any:
            return None if a is None else jnp.concatenate([b[:n], a[n:]])

        hold = replace(
            hold,
            norm1=join(hold.norm1, below.norm1, layer + 1),
            norm1_post=join(hold.norm1_post, below.norm1_post, layer),
            norm2=join(hold.norm2, below.norm2, upto),
            norm2_post=join(hold.norm2_post, below.norm2_post, upto),
        )
    return hold


def chains(cfg: ModelConfig, at: Places) -> list[Chain]:
    """(heads, positions) of one head and of two, from the target down."""
    one: list[Chain] = [
        (at.heads[:1], ((at.pos, at.past),)),
        (at.heads[1:], ((at.pos, at.first),)),
        (at.heads, ((at.pos, at.past), (at.past, at.first))),
    ]
    return one if cfg.parallel else [*one, (((at.top, 0),), ((at.pos, at.first),))]


def numbers(
    cfg: ModelConfig, params: Params, d: Transcoders, tokens: jax.Array, at: Places = Places()
) -> tuple[dict[str, tuple[jax.Array, jax.Array]], dict[str, Any]]:
    """Both sides of every equation, {name: (from weights, from autodiff)}, and the parts of the sum rule."""
    frozen = freeze(cfg, params, d, tokens)
    acts = ad.features_of(d, frozen)
    hold, none = w.hold_of(frozen.hold, at.pos), jnp.zeros_like(ad.pattern_of(frozen))
    u = w.feature_covectors(cfg, params, d, hold, jnp.array([at.top]), jnp.array([at.feature]))
    embedded = token_vectors(cfg, params, tokens)

    def target(out: Any) -> jax.Array:
        return out[0][at.top, at.pos, at.feature]

    direct, to_token = ad.gradients(cfg, params, d, frozen, none, target)
    direct = direct * acts
    whole = ad.run(cfg, params, d, frozen, frozen.hold.pattern, acts, 0.0)[3]
    found = {"the oracle is the model": (whole, frozen.final)}
    pulled = [w.pullback(cfg, params, d, hold, u, at.top, i)[0] * acts[i, at.pos] for i in range(at.top)]
    found["7, 18 features"] = jnp.stack(pulled), direct[: at.top, at.pos]
    found["7, 18 token"] = (
        w.deembed(cfg, params, d, hold, u, at.top)[0, tokens[at.pos]],
        to_token[at.pos] @ embedded[at.pos],
    )
    for number, chain in enumerate(chains(cfg, at)):
        heads, positions = chain
        alpha = jnp.prod(
            jnp.stack([ad.pattern_of(frozen)[i, h, to, s] for (i, h), (to, s) in zip(heads, positions, strict=True)])
        )
        place, last, s = along(cfg, frozen, chain, at.pos), heads[-1][0], positions[-1][1]
        v = alpha * w.through_heads(cfg, params, d, place, u, at.top, heads)
        to_act, to_embed = ad.gradients(cfg, params, d, frozen, one_entry(frozen, chain), target)
        ours = [w.pullback(cfg, params, d, place, v, last, i)[0] * acts[i, s] for i in range(last)]
        if ours:
            found[f"8, 19-24, 27 chain {number} features"] = jnp.stack(ours), (to_act * acts)[:last, s]
        token = w.deembed(cfg, params, d, place, v, last)[0, tokens[s]]
        found[f"8, 19-24, 27 chain {number} token"] = token, to_embed[s] @ embedded[s]
    # 25, 28: the middle feature as a linear function of what it reads
    step = w.pullback(cfg, params, d, hold, u, at.top, 1, index=jnp.array([at.middle]))
    on = step * w.feature_covectors(cfg, params, d, hold, jnp.array([1]), jnp.array([at.middle]))
    ours = w.pullback(cfg, params, d, hold, on, 1, 0)[0] * acts[0, at.pos]

    def composed(first: jax.Array) -> jax.Array:
        given = acts.at[0].set(first)
        pre = ad.run(cfg, params, d, frozen, none, given, 0.0)[0]
        return target(
            ad.run(cfg, params, d, frozen, none, given.at[1, at.pos, at.middle].set(pre[1, at.pos, at.middle]), 0.0)
        )

    both = jax.grad(composed)(acts[0])[at.pos] * acts[0, at.pos]
    found["25, 28 through a feature"] = ours, both - direct[0, at.pos]
    found |= upwards(cfg, params, d, frozen, hold, u, at)
    return found, sum_rule(cfg, params, d, frozen, u, pulled, at)


def upwards(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, hold: Hold, u: jax.Array, at: Places
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Direct logits from above and below, and weights to later features, which must be those from earlier ones."""
    found, number, none = {}, jnp.arange(d.cfg.d_feature), jnp.zeros_like(ad.pattern_of(frozen))
    column = unembed_matrix(params)[:, at.token] - unembed_matrix(params).mean(1)
    last, _ = ad.gradients(cfg, params, d, frozen, none, lambda out: out[3][at.pos] @ column)
    out = w.output_covectors(cfg, params, hold, column[None])
    for i in range(cfg.n_layers):
        found[f"logit, down {i}"] = w.pullback(cfg, params, d, hold, out, cfg.n_layers, i)[0], last[i, at.pos]
        logits = direct_logits(cfg, params, d, hold, jnp.full(len(number), i), number)
        found[f"logit, up {i}"] = logits[:, at.token], last[i, at.pos]
    for i in range(at.top):
        streams = written_streams(cfg, params, d, hold, jnp.full(len(number), i), number)
        later = feature_reads(cfg, params, d, hold, at.top, streams[at.top])[:, at.feature]
        found[f"weights, up {i}"] = later, w.pullback(cfg, params, d, hold, u, at.top, i)[0]
        block = w.virtual_weights(cfg, params, d, hold, (at.top, jnp.array([0, at.feature])), (i, number[::-2]))
        found[f"weights, block {i}"] = block[1], later[::-2]
    return found


def sum_rule(
    cfg: ModelConfig, params: Params, d: Transcoders, frozen: Frozen, u: jax.Array, pulled: list[jax.Array], at: Places
) -> dict[str, Any]:
    """The parts of a pre-activation: features, heads x sources, all else (token, position, errors, constants)."""
    none = jnp.zeros_like(ad.pattern_of(frozen))
    acts = ad.features_of(d, frozen)
    heads = head_sources(
        cfg, params, d, frozen.hold, head_values(cfg, params, frozen.hold, frozen.tokens), at.top, at.pos, u[0]
    )
    blocks = params.blocks
    no_b_o = replace(blocks.attn, b_o=None if blocks.attn.b_o is None else 0 * blocks.attn.b_o)
    bare = replace(params, blocks=replace(blocks, attn=no_b_o))
    runs = {
        "value": (params, frozen.hold.pattern, acts),
        "rest": (params, none, 0 * acts),
        "rest without b_O": (bare, none, 0 * acts),
    }
    out = {
        k: ad.run(cfg, p, d, frozen, pattern, a, 0.0)[0][at.top, at.pos, at.feature]
        for k, (p, pattern, a) in runs.items()
    }
    return out | {"heads": heads.weight, "head bias": heads.bias, "features": jnp.stack(pulled)}


GROUPS = ("7, 18", "8, 19-24, 27", "25, 28", "logit", "weights")


def gaps_of(model: tc.Model, d: Transcoders, tokens: np.ndarray, at: Places) -> dict[str, float]:
    """The largest gap of each group of equations; of 26, of the sum's magnitudes."""
    run = jax.jit(lambda params, d, tokens: numbers(model.cfg, params, d, tokens, at))
    pairs, parts = jax.tree.map(np.asarray, run(model.params, d, jnp.asarray(tokens, jnp.int32)))
    out = {}
    for group in GROUPS:
        some = [(a, b) for name, (a, b) in pairs.items() if name.startswith(group)]
        out[group] = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in some if np.abs(b).max() > 0)
    terms = np.concatenate([parts[k].ravel() for k in ("features", "heads", "rest")])
    out["26"] = float(abs(terms.sum() - parts["value"]) / np.abs(terms).sum())
    return out | {"6": sae_contrast(model)}


def sae_contrast(model: tc.Model) -> float:
    """Equation 6: how much <enc, (dy/dx) dec> of one pair of random directions around an MLP varies with the input.

    Standard deviation over mean magnitude at random inputs; the transcoder's weight of equation 7 has 0.
    """
    cfg, rng = model.cfg, np.random.default_rng(0)
    dtype = model.params.embed.dtype
    enc, dec = (jnp.asarray(x, dtype) for x in rng.normal(size=(2, cfg.d_model)))
    block = jax.tree.map(lambda x: x[1], model.params.blocks.mlp)

    def slope(x: jax.Array) -> jax.Array:
        return jax.grad(lambda z: enc @ mlp(cfg, block, x + z * dec))(jnp.zeros((), dtype))

    slopes = np.asarray(jax.jit(jax.vmap(slope))(jnp.asarray(rng.normal(size=(64, cfg.d_model)), dtype)))
    return float(slopes.std() / np.abs(slopes).mean())


def random_cases(families: list[str], kinds: list[str], dtype: str) -> list[dict[str, Any]]:
    """Random models with random dictionaries."""
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is nearly all of its time
    rows = []
    for family in families:
        model = random_model(family, dtype=dtype)
        tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, 8)
        for kind in kinds:
            gaps = gaps_of(model, random_dictionary(model, kind, tokens), tokens, Places())
            rows.append({"model": family, "dictionary": kind, "dtype": dtype, **gaps})
    return rows


def embedded(sets: list[str], dtype: str, prompt: str) -> list[dict[str, Any]]:
    """The embedded model with its sets; the target is the strongest feature of its last layer but one."""
    jax.config.update("jax_disable_most_optimizations", True)
    model = tc.load_model("tiny", dtype=dtype)
    tokens, rows = np.asarray(model.encode(prompt)), []
    for name in sets:
        d = tc.load_transcoders(name, model=model)
        frozen = jax.jit(lambda p, d, t: freeze(model.cfg, p, d, t))(model.params, d, tokens)
        pos = len(tokens) - 1
        strongest = [int(frozen.index[m, pos, int(frozen.value[m, pos].argmax())]) for m in (2, 1)]
        at = Places(pos, 2, strongest[0], strongest[1], past=pos - 3, first=2, token=int(model.encode(" James")[0]))
        rows.append({"model": "tiny", "dictionary": name, "dtype": dtype, **gaps_of(model, d, tokens, at)})
    return rows


def main(cfg: Config) -> None:
    """Measure, print, write."""
    rows = []
    for dtype in cfg.dtypes:
        options = {"x64": dtype == "float64", "dtype": dtype}
        rows += fresh(MODULE, "random_cases", families=cfg.families, kinds=cfg.kinds, **options)
        rows += fresh(MODULE, "embedded", sets=cfg.sets, prompt=cfg.prompt, **options) if cfg.sets else []
    show("largest gaps by equation (6: how much the SAE's term varies with the input)", rows)
    names = (*GROUPS, "26")
    largest = {d: {g: max(r[g] for r in rows if r["dtype"] == d) for g in names} for d in cfg.dtypes}
    save("equations", cfg, {"largest": largest, "least_variation_of_6": min(r["6"] for r in rows), "cases": rows})


MODULE = "experiments.equations"

if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

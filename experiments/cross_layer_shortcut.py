"""Does a cross-layer transcoder skip a hop that the model takes? A Boolean network whose computation is known.

    python -m experiments.cross_layer_shortcut

Each of `circuits` circuits has four bits a, b, c, d in the stream. Layer 0 computes p = a AND b and q = c AND d, layer
1 computes p AND q from what layer 0 wrote: two hops. All are ReLU neurons in random orthogonal directions. A circuit is
present in a quarter of the samples; then its bits are on with probability 0.8. Per-layer and cross-layer transcoders
are trained with ReLU features and an L1 penalty weighed by decoder norms, on the same samples; the penalty trades
features of one layer against those of the other, as it does in published cross-layer transcoders. One feature of layer
0 that is a AND b AND c AND d may write p, q and the answer at once, and pays less than three features.

Four figures of layer 1's output, on new samples (5 seeds; mean and standard deviation):

- `fvu`: unexplained variance; `l0`: active features of both layers together;
- `skipped`: of what features account for, the part written by layer 0 (`tcircuits.transcoders.evaluation.hops`);
- `intervention`: p is taken out of the stream between the layers, where p AND q was on. The network's answer falls to
  zero. The replacement model's answer, as the share that is left: 0 is right, 1 means that the stream between the
  layers does not matter to it;
- `intervention_full`: the same share when p is taken out together with everything that layer 0's features write to
  layer 1 (what remains is layer 1's own).

The claim that is checked (peers' Boolean toy model): the sparsity penalty rewards a cross-layer transcoder for
rewriting two hops as a sum of single ones, and reconstruction alone does not show it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import save, show
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders, encode, pair
from tcircuits.transcoders.evaluation.hops import shares, skipped
from tcircuits.transcoders.training.presets import make
from tcircuits.transcoders.training.recipe import Recipe
from tcircuits.transcoders.training.step import init_state, result, train_step


@dataclass(frozen=True)
class Config:
    """The network and the dictionaries."""

    circuits: int = 16
    """Circuits, each of four bits."""
    features: int = 256
    """Of a dictionary, a layer."""
    l1: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Weights of the penalty."""
    steps: int = 3000
    """Of training."""
    batch: int = 1024
    """Samples of a step."""
    seeds: int = 5
    """Networks, each with its dictionaries."""
    held_out: int = 16_384
    """Samples of the figures."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """Directions [C, D] of the four bits (stacked), of p and q, and of the answer."""

    bits: jax.Array
    middle: jax.Array
    answer: jax.Array


def network(circuits: int, key: jax.Array) -> Network:
    """Random orthogonal directions; the stream has 8 dimensions a circuit, of which 7 are used."""
    directions = jax.random.orthogonal(key, 8 * circuits)
    bits, middle, answer, _ = jnp.split(directions, np.cumsum([4 * circuits, 2 * circuits, circuits]))
    return Network(bits.reshape(4, circuits, -1), middle.reshape(2, circuits, -1), answer)


def samples(net: Network, key: jax.Array, n: int) -> jax.Array:
    """Bits [4, n, C]."""
    one, two = jax.random.split(key)
    present = jax.random.bernoulli(one, 0.25, (n, net.bits.shape[1]))
    return (jax.random.bernoulli(two, 0.8, (4, *present.shape)) & present).astype(jnp.float32)


def run(net: Network, bits: jax.Array, without: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """What both MLPs read and write [2, n, D]; where `without` [n, C] is 1 p is taken out of the stream in between."""
    start = jnp.einsum("bnc,bcd->nd", bits, net.bits)
    p, q = bits[0] * bits[1], bits[2] * bits[3]
    first = p @ net.middle[0] + q @ net.middle[1]
    between = start + first
    if without is not None:
        between = between - (p * without) @ net.middle[0]
    seen = between @ net.middle[0].T, between @ net.middle[1].T
    second = jax.nn.relu(seen[0] + seen[1] - 1) @ net.answer
    return jnp.stack([start, between]), jnp.stack([first, second])


def recipe(cfg: Config, kind: Any, l1: float) -> Recipe:
    """ReLU and L1, free decoders, for both kinds."""
    d = TranscoderConfig(kind, 2, 8 * cfg.circuits, cfg.features, (0, 1), "relu")
    settings = {"objective": {"l1": l1}, "optimizer": {"lr": 3e-3}, "decoder_norm": "free"}
    return make(d, tokens=cfg.steps * cfg.batch, batch=cfg.batch, **settings)


@partial(jax.jit, static_argnums=(0, 1))
def trained(recipe: Recipe, cfg: Config, net: Network, key: jax.Array) -> Transcoders:
    """A dictionary, trained on new samples in every step."""
    state = init_state(recipe, *run(net, samples(net, key, cfg.batch)))

    def step(state: Any, i: jax.Array) -> tuple[Any, None]:
        x, y = run(net, samples(net, jax.random.fold_in(key, i), cfg.batch))
        return train_step(recipe, state, x, y)[0], None

    state, _ = jax.lax.scan(step, state, jnp.arange(cfg.steps))
    return result(recipe, state, "shortcut")


def parts(d: Transcoders, read: jax.Array) -> list[jax.Array]:
    """What the features of layer 0, and those of layer 1, write to layer 1's output [n, D], and the bias."""
    assert d.w_dec is not None
    assert d.b_dec is not None
    f = [encode(d, i, read[i]) for i in range(2)]
    if d.cfg.kind == "clt":
        return [f[i] @ d.w_dec[pair(d.cfg, i, 1)] for i in range(2)] + [d.b_dec[1]]
    return [jnp.zeros_like(read[1]), f[1] @ d.w_dec[1], d.b_dec[1]]


@partial(jax.jit, static_argnums=2)
def figures(d: Transcoders, net: Network, n: int, key: jax.Array) -> dict[str, jax.Array]:
    """The figures of one dictionary."""
    bits = samples(net, key, n)
    x, y = run(net, bits)
    guess = jnp.asarray(sum(parts(d, x)))
    f = [encode(d, i, x[i]) for i in range(2)]
    share = shares(d, x, y)
    on = bits.prod(0)
    x_without, y_without = run(net, bits, on)
    early, late, bias = parts(d, x_without)

    def answer(written: jax.Array) -> jax.Array:
        """The mean answer where it was on, above what the bias gives."""
        return jnp.sum(((written @ net.answer.T) - bias @ net.answer.T) * on) / on.sum()

    clean = answer(guess)
    return {
        "fvu": jnp.sum((y[1] - guess) ** 2) / jnp.sum((y[1] - y[1].mean(0)) ** 2),
        "l0": (f[0] != 0).sum(-1).mean() + (f[1] != 0).sum(-1).mean(),
        "skipped": skipped(share)[1],
        "intervention": answer(early + late + bias) / clean,
        "intervention_full": answer(late + bias) / clean,
        "network": jnp.sum((y_without[1] @ net.answer.T) * on) / jnp.sum((y[1] @ net.answer.T) * on),
    }


def main(cfg: Config) -> None:
    """Train, intervene, write."""
    found: list[dict[str, Any]] = []
    for l1 in cfg.l1:
        for kind in ("transcoder", "clt"):
            runs = []
            for seed in range(cfg.seeds):
                key = jax.random.key(seed)
                net = network(cfg.circuits, key)
                d = trained(recipe(cfg, kind, l1), cfg, net, jax.random.fold_in(key, 1))
                runs.append(figures(d, net, cfg.held_out, jax.random.fold_in(key, 2)))
            values = {name: np.asarray([float(r[name]) for r in runs]) for name in runs[0]}
            row: dict[str, Any] = {"kind": kind, "l1": l1} | {name: float(v.mean()) for name, v in values.items()}
            spread = {name: float(v.std(ddof=1)) if len(v) > 1 else None for name, v in values.items()}
            found.append({"row": row, "sd": spread})
            print(row, flush=True)
    show("layer 1 of the Boolean network", [f["row"] for f in found])
    save("cross_layer_shortcut", cfg, {"rows": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

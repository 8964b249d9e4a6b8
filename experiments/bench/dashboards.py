"""What does a pass for the statistics of all features cost, against running the model and its dictionaries alone?

    python -m experiments.bench.dashboards
    python -m experiments.bench.dashboards --tokens 1015808 --batch 32    (on a GPU)

A random model with the shape of GPT-2 small, and random ReLU transcoders of 24,576 features in each of its 12 layers,
float32. Encoders are random; each feature's bias puts its density where that of a trained transcoder could be: one in
ten is dead, one in seven dense (log10 about -1.8), the rest sparse (about -3.2), scaled so that 60 would be on for a
token were pre-activations normal; they are not quite, so more are (`l0`). Tokens are random, by Zipf's law, in rows of
128.

- `pass` runs `feature_statistics`' own steps over all tokens. `alone` is one program that runs the model and encodes
  all features in the same batches and precision, and does nothing with them; it is timed after every fifth step of the
  pass (`every`) and scaled to all tokens. `ratio` is pass over alone; the pass includes the step that is compiled anew
  and repeated where a part has more active features than there is room for (`room`: by token, at the end).
- `first` and `last` are the ratios of the first and the last quarter of the steps: the first batches fill the lists.
- `one_feature` is the reference's way, one pass for each feature: the model up to its layer and one column of the
  encoder, timed for the middle layer on some batches. It is fairer than the reference, which encodes all features of
  the layer each time. `one_by_one_days` is that for all features and tokens; `speedup` is against the pass.
- `state_gb` is the size of the state; `peak_gb` the most memory of the process, `before_gb` before the first step.

On a GPU (`bench_dashboards_gpu`) products are in float32 proper, not TF32, as `feature_statistics` makes them unless
told otherwise; `device_gb` is the most of the GPU's memory that was in use, `peak_gb` and `before_gb` are the host's.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

import tcircuits as tc
from experiments.common import peak_rss_gb, save, show
from experiments.toys import random_model
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.corpus import corpus
from tcircuits.transcoders.evaluation.replacement import features
from tcircuits.transcoders.statistics.keeping import Keeping
from tcircuits.transcoders.statistics.run import Pass, state_bytes
from tcircuits.transcoders.training.harvest import buffers, gathered

GPT2: dict[str, Any] = {
    "n_layers": 12, "d_model": 768, "n_heads": 12, "n_kv_heads": 12, "d_head": 64, "d_mlp": 3072, "d_vocab": 50_257,
    "n_ctx": 1024,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "n_layers": 2, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "d_head": 16, "d_mlp": 64, "d_vocab": 300, "n_ctx": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What to measure."""

    tokens: int = 102_400
    """Tokens of the corpus."""
    context: int = 128
    """Tokens of a row."""
    features: int = 24_576
    """Features of a layer."""
    active: float = 60.0
    """Features that should be on for a token; more are (`l0`), as pre-activations are not quite normal."""
    batch: int = 8
    """Rows that are encoded at once."""
    parts: int = 4
    """So many times `batch` rows are a step."""
    every: int = 5
    """Of so many steps one is followed by the programs that the pass is compared with."""
    small: bool = False
    """Two narrow layers instead, to see that it runs."""


def densities(n: int, active: float, rng: np.random.Generator) -> np.ndarray:
    """How often features should be on: two modes and dead ones, `active` in all."""
    log10 = np.where(rng.random(n) < 1 / 7, rng.normal(-1.8, 0.3, n), rng.normal(-3.2, 0.5, n))
    density = np.where(rng.random(n) < 0.1, 0.0, 10.0**log10)
    return np.clip(density * active / density.sum(), 0, 0.4)


def texts(cfg: Config, vocabulary: int) -> np.ndarray:
    """Rows of tokens by Zipf's law, each beginning with token 0."""
    chance = 1 / np.arange(1, vocabulary + 1)
    rows = np.random.default_rng(2).choice(
        vocabulary, (cfg.tokens // cfg.context, cfg.context), p=chance / chance.sum()
    )
    rows[:, 0] = 0
    return rows.astype(np.int32)


def dictionaries(model: tc.Model, cfg: Config, rows: np.ndarray) -> Transcoders:
    """Random encoders whose biases make the wanted densities, as far as pre-activations are normal."""
    m, F, rng = model.cfg, cfg.features, np.random.default_rng(3)
    c = TranscoderConfig("transcoder", m.n_layers, m.d_model, F, tuple(range(m.n_layers)))
    w = np.empty((m.n_layers, F, m.d_model), np.float32)
    b = np.empty((m.n_layers, F), np.float32)
    x = jax.jit(lambda p, t: gathered(m, p, ("mlp_in",), c.layers, t))(model.params, rows[:16])["mlp_in"]
    for layer in range(m.n_layers):
        w[layer] = rng.standard_normal((F, m.d_model), np.float32) / np.float32(m.d_model**0.5)
        pre = np.asarray(x[layer]) @ w[layer].T
        quantile = ndtri(1 - np.maximum(densities(F, cfg.active, rng), 1e-12))
        b[layer] = -(pre.mean(0) + pre.std(0) * quantile)
    encoder = jnp.asarray(w)
    return Transcoders(c, "random", encoder, jnp.asarray(b), encoder, jnp.zeros((m.n_layers, m.d_model)), None, None)


def alone(run: Pass) -> Any:
    """The program that only runs the model and encodes; it returns the last features, so that none is left out."""
    m, d = run.model.cfg, run.d

    @jax.jit
    def program(params: Any, d: Transcoders, tokens: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(run.precision):
            x = buffers(m, params, ("mlp_in",), d.cfg.layers, tokens)["mlp_in"]
            x = x.reshape(len(x), len(tokens), -1, x.shape[-1])

            def slot(last: jax.Array, item: Any) -> tuple[jax.Array, None]:
                number, x = item
                encoded = partial(features, m, params, d, number, number)
                return jax.lax.fori_loop(0, len(x), lambda i, _: encoded(x[i]), last), None

            last = jnp.zeros((x.shape[2], d.cfg.d_feature), x.dtype)
            return jax.lax.scan(slot, last, (jnp.arange(len(x)), x))[0]

    return lambda tokens: program(run.model.params, d, tokens)


def one_feature(run: Pass) -> Any:
    """The reference's way, for one feature of the middle layer."""
    m, d, layer = run.model.cfg, run.d, run.model.cfg.n_layers // 2

    @jax.jit
    def program(params: Any, d: Transcoders, tokens: jax.Array) -> jax.Array:
        assert d.w_enc is not None
        assert d.b_enc is not None
        with jax.default_matmul_precision(run.precision):
            x = buffers(m, params, ("mlp_in",), (layer,), tokens)["mlp_in"][0]
            return jax.nn.relu(x @ d.w_enc[layer, 0] + d.b_enc[layer, 0]).reshape(-1, tokens.shape[-1] - 1)

    return lambda tokens: program(run.model.params, d, tokens)


def seconds(f: Any, *args: Any) -> tuple[float, Any]:
    """Wall time of a call, and what it returned."""
    start = time.perf_counter()
    value = jax.block_until_ready(f(*args))
    return time.perf_counter() - start, value


def measure(cfg: Config) -> dict[str, Any]:
    """Steps of the pass, and between them the programs that it is compared with."""
    model = random_model("gpt2", **(SMALL if cfg.small else GPT2))
    rows = texts(cfg, model.cfg.d_vocab)
    d = dictionaries(model, cfg, rows)
    run = Pass.begin(model, d, corpus(model.cfg, rows, None), Keeping(), cfg.batch, cfg.parts, "highest")
    base, single, size = alone(run), one_feature(run), run.batch * run.parts
    blocks = [rows[i : i + size].reshape(run.parts, run.batch, -1) for i in range(0, len(rows) - size + 1, size)]
    before, state = peak_rss_gb(), run.start()
    jax.block_until_ready(run.step(state, 0))  # compiles, and finds how much room it needs
    jax.block_until_ready((base(blocks[0]), single(blocks[0])))
    took, bases, singles = [], [], []
    for i, block in enumerate(blocks):
        found, state = seconds(run.step, state, i * size)
        took.append(found)
        if i % cfg.every == 0:
            bases.append(seconds(base, block)[0])
            singles.append(seconds(single, block)[0])
    return figures(run, state, took, bases, singles) | {"before_gb": before, "peak_gb": peak_rss_gb()}


def figures(run: Pass, state: Any, took: list[float], bases: list[float], singles: list[float]) -> dict[str, Any]:
    """Times for all tokens, and ratios."""
    n, c, base = len(took), run.d.cfg, float(np.mean(bases))
    tokens = n * run.batch * run.parts * run.text.context
    quarter = max(1, n // 4)
    count = np.asarray(state.count).sum(-1)
    positions = n * run.batch * run.parts * (run.text.context - 1)
    one = float(np.mean(singles)) * n
    return {
        "tokens": tokens,
        "features": len(c.layers) * c.d_feature,
        "l0": float(count.sum() / positions / len(c.layers)),
        "dead": float((count == 0).mean()),
        "room": run.most,
        "pass": sum(took),
        "alone": base * n,
        "alone_batches": len(bases),
        "ratio": sum(took) / n / base,
        "first": float(np.mean(took[:quarter])) / base,
        "last": float(np.mean(took[-quarter:])) / base,
        "tokens_per_second": tokens / sum(took),
        "one_feature": one,
        "one_by_one_days": one * count.size / 86_400,
        "speedup": one * count.size / sum(took),
        "state_gb": state_bytes(run.d) / 1e9,
    }


def main(cfg: Config) -> None:
    """Measure, print, write."""
    found, variant = measure(cfg), ""
    if jax.default_backend() == "gpu":
        found["device_gb"], variant = jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9, "gpu"
    show("all features in one pass", [found])
    save("bench.dashboards", cfg, found, variant=variant)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

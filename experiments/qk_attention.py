"""Why does a head look where it looks? Scores as pairs of sources: do they balance, and what do they say?

    python -m experiments.qk_attention

1. Random models with rotary embeddings, grouped keys, query and key norms, biases, windows and dictionaries of several
   kinds: the sum over all pairs against the forward pass's score, as a share of the sum of |pairs|, for every head of
   every layer at several positions; float64 and float32. Layer 0 has a handful of pairs, which may cancel inside one
   dot product: `attention_report` computes it in float64 (`layer0`); `layer0_core` is what the compiled core gives.
2. The embedded model on held-out induction texts (random words, repeated). The head that looks most from a word's
   second occurrence to the word after the first one. Its scores there are split by the kind of source on each side, and
   by where the source stands, seen from the query or key (here, one before, earlier), which is exact, as the score is
   bilinear; beside it the mean and the best score at all other keys. Then the pairs that recur over the texts.
3. Test by intervention: the same scores with the word before the key (in the first copy only) replaced by another. If
   the key is recognised by what precedes it, the score falls, and by less with the word before that one replaced.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import fresh, save, show
from experiments.toys import random_dictionary, random_model
from tcircuits.attribution.corpus import slots_for
from tcircuits.attribution.frozen import Frozen, freeze
from tcircuits.attribution.qk import head_scores, head_side, qk_pairs, source_place
from tcircuits.tasks import grammars
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.transcoders.evaluation.intervals import interval, resampled

BOUND = {"float32": 1e-6, "float64": 1e-12}
WINDOWS = {"gemma3": {"windows": (6, 6, 0)}}  # one a layer


@dataclass(frozen=True)
class Config:
    """What to measure."""

    families: tuple[str, ...] = ("gpt2", "neox", "llama", "qwen3", "gemma3", "olmo2")
    """Random models."""
    kinds: tuple[str, ...] = ("plt-skip", "clt-relu")
    """Dictionaries on them."""
    dtypes: tuple[str, ...] = ("float64", "float32")
    """Of the random models."""
    texts: int = 24
    """Induction texts."""
    length: int = 30
    """Tokens of each, so that one program serves all."""
    transcoders: str = "tiny-transcoders"
    """Of the embedded model."""
    top: int = 40
    """Pairs listed for each text."""


def balance(families: list[str], kinds: list[str], dtype: str) -> list[dict[str, Any]]:
    """Largest gaps of each random model with each dictionary."""
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is nearly all of its time
    out = []
    for family in families:
        model = random_model(family, dtype=dtype, n_layers=3, **WINDOWS.get(family, {}))
        tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, 8)
        for kind in kinds:
            d = random_dictionary(model, kind, tokens, d_feature=48)
            found = gaps(model, d, tokens)
            within = max(found["gap"], found["layer0"]) <= BOUND[dtype]
            out.append({"family": family, "dictionary": kind, "dtype": dtype} | found | {"within": within})
    return out


def gaps(model: tc.Model, d: Transcoders, tokens: np.ndarray) -> dict[str, Any]:
    """Largest gaps of layers from 1 on, of layer 0 as `attention_report` gives it, and as the compiled core does."""
    cfg = model.cfg
    heads = [(m, h) for m in range(cfg.n_layers) for h in range(cfg.n_heads)]
    at = [(*head, q, k) for head in heads for q, k in ((7, 2), (5, 5), (6, 0))]

    @jax.jit
    def run(params: Any, d: Transcoders, tokens: Any, at: Any) -> Any:
        frozen = freeze(cfg, params, d, tokens)
        pairs = jax.lax.map(lambda a: qk_pairs(cfg, params, d, frozen, (a[0], a[1]), a[2], a[3], n=8), at)
        return pairs.total, pairs.mass, pairs.score

    total, mass, score = map(np.asarray, run(model.params, d, jnp.asarray(tokens), jnp.asarray(at)))
    gap, first = np.abs(total - score) / mass, np.array([a[0] == 0 for a in at])
    report = [tc.attention_report(model, d, tokens, a[:2], a[2], a[3])["gap"] for a in np.asarray(at)[first].tolist()]
    found = {"scores": len(at), "gap": float(gap[~first].max()), "layer0": max(report)}
    return found | {"layer0_core": float(gap[first].max())}


def texts(model: tc.Model, n: int, length: int) -> list[tuple[np.ndarray, int, int]]:
    """(tokens, query, key): the query is a word's second occurrence, the key the position after its first one."""
    rng, found = np.random.default_rng(0), []
    while len(found) < n:
        example = grammars.draw("induction", rng, held_out=True)
        ids = model.encode(example.prompt, bos="add")
        if len(ids) != length or len(example.prompt.split()) != length - 1:
            continue  # one token a word
        query = length - 1
        key = ids.index(ids[query]) + 1
        if 3 < key < query - 3:
            found.append((np.asarray(ids, np.int32), query, key))
    return found


def best_head(model: tc.Model, some: list[tuple[np.ndarray, int, int]]) -> tuple[tuple[int, int], np.ndarray]:
    """The head that looks most from query to key, and every head's mean attention there [L, H]."""
    rows = jnp.asarray(np.stack([ids for ids, _, _ in some]))
    pattern = jax.jit(lambda p, rows: tc.forward(model.cfg, p, rows, sites=("pattern",)).acts["pattern"])
    look = np.asarray(pattern(model.params, rows))  # [L, B, H, T, T]
    mean = np.mean([look[:, i, :, q, k] for i, (_, q, k) in enumerate(some)], 0)
    layer, head = np.unravel_index(int(mean.argmax()), mean.shape)
    return (int(layer), int(head)), mean


@partial(jax.jit, static_argnames=("cfg", "n", "n_slots"))
def _explain(
    cfg: Any, params: Any, d: Transcoders, tokens: Any, head: Any, query: Any, key: Any, n: int, n_slots: int
) -> tuple[Any, ...]:
    frozen = freeze(cfg, params, d, tokens, n_slots=n_slots)
    sides = [head_side(cfg, params, d, frozen, head, p, key=k).flat() for p, k in ((query, False), (key, True))]
    scores = head_scores(cfg, params, tokens, head)[query]
    return frozen, sides, qk_pairs(cfg, params, d, frozen, head, query, key, n=n), scores


def groups(frozen: Frozen, own: int) -> list[str]:
    """For every source, its kind, and for those of a position how far back it is from `own`: 0, -1 or earlier."""
    L, T, C = frozen.index.shape
    out = []
    for i in range(L * T * C + L * T + T + 2):
        kind, _, pos, _ = source_place((L, T, C), i)
        where = "" if pos < 0 else " here" if pos == own else " before" if pos == own - 1 else " earlier"
        out.append(kind + where)
    return out


def tabulate(sides: Any, names: list[list[str]]) -> dict[tuple[str, str], float]:
    """The score by groups of sources of both sides: exact, as it is bilinear."""
    summed = []
    for side, labels in zip(sides, names, strict=True):
        order = sorted(set(labels))
        member = np.array([order.index(x) for x in labels])
        total = np.zeros((len(order), side.shape[1]))
        np.add.at(total, member, np.asarray(side, np.float64))
        summed.append((order, total))
    (a, x), (b, y) = summed
    table = x @ y.T
    return {(a[i], b[j]): float(table[i, j]) for i in range(len(a)) for j in range(len(b))}


def feature_pairs(model: tc.Model, frozen: Frozen, pairs: Any, query: int, key: int) -> list[str]:
    """Listed pairs by name, positions relative to query and key."""

    def name(number: int, own: int) -> str:
        L, T, C = frozen.index.shape
        kind, layer, pos, slot = source_place((L, T, C), number)
        if kind == "feature":
            return f"L{layer} f{int(frozen.index[layer, pos, slot])} @{pos - own}"
        return kind if pos < 0 else f"{kind} @{pos - own}" if layer < 0 else f"{kind} L{layer} @{pos - own}"

    return [f"{name(int(i), query)} x {name(int(j), key)}" for i, j in zip(pairs.query, pairs.key, strict=True)]


def induction(transcoders: str, n: int, length: int, top: int) -> dict[str, Any]:
    """Parts 2 and 3."""
    model = tc.load_model("tiny")
    d, some = tc.load_transcoders(transcoders, model=model), texts(model, n, length)
    head, attention = best_head(model, some)
    slots = slots_for(model, d, np.stack([ids for ids, _, _ in some]))
    tables: list[dict[tuple[str, str], float]] = []
    recur: Counter[str] = Counter()
    adds: defaultdict[str, float] = defaultdict(float)
    gaps, margins, shown, broken = [], [], [], []
    for ids, query, key in some:
        at = (jnp.asarray(head), jnp.asarray(query), jnp.asarray(key))
        frozen, sides, pairs, scores = _explain(model.cfg, model.params, d, ids, *at, n=top, n_slots=slots)
        scores = np.asarray(scores, np.float64)[: query + 1]
        gaps.append(abs(float(pairs.total - pairs.score)) / float(pairs.mass))
        margins.append([scores[key], np.delete(scores, key).mean(), np.delete(scores, key).max()])
        tables.append(tabulate(sides, [groups(frozen, query), groups(frozen, key)]))
        names = feature_pairs(model, frozen, pairs, query, key)
        recur.update(names)
        for name, value in zip(names, pairs.value, strict=True):
            adds[name] += float(value)
        shown.append(float(np.abs(pairs.value).sum() / pairs.mass))
        broken.append(replaced(model, head, ids, query, key))
    keys = sorted({k for t in tables for k in t}, key=lambda k: -abs(np.mean([t.get(k, 0.0) for t in tables])))
    by_group = [
        {"query side": a, "key side": b, "adds": float(np.mean([t.get((a, b), 0.0) for t in tables]))} for a, b in keys
    ]
    margin, drop = np.asarray(margins), np.asarray(broken)
    return {
        "head": list(head),
        "attention": float(attention[head]),
        "texts": len(some),
        "largest_gap": max(gaps),
        "score_at_key": _interval(margin[:, 0]),
        "mean_elsewhere": _interval(margin[:, 1]),
        "best_elsewhere": _interval(margin[:, 2]),
        "by_group": by_group,
        "mass_of_listed_pairs": float(np.mean(shown)),
        "recurring": [{"pair": p, "texts": c, "adds": adds[p] / c} for p, c in recur.most_common(25)],
        "word_before_replaced": _interval(drop[:, 0]),
        "other_word_replaced": _interval(drop[:, 1]),
    }


def replaced(model: tc.Model, head: tuple[int, int], ids: np.ndarray, query: int, key: int) -> tuple[float, float]:
    """By how much the score changes when the word before the key is another, and when the one before that is."""
    rng = np.random.default_rng(int(ids.sum()))
    new = int(rng.choice(np.setdiff1d(ids[1:], ids[key - 2 : key + 1])))
    rows = np.stack([ids] * 3)
    rows[1, key - 1] = rows[2, key - 2] = new
    scores = [float(_score(model.cfg, model.params, row, jnp.asarray(head))[query, key]) for row in rows]
    return scores[1] - scores[0], scores[2] - scores[0]


_score = jax.jit(head_scores, static_argnames=("cfg",))


def _interval(x: np.ndarray) -> dict[str, float | None]:
    found = interval(float(x.mean()), resampled(x[:, None])[:, 0], len(x))
    return {"value": found.value, "low": found.low, "high": found.high}


def main(cfg: Config) -> None:
    """Measure, print, write."""
    cases = []
    for dtype in cfg.dtypes:
        options = {"families": cfg.families, "kinds": cfg.kinds, "dtype": dtype, "x64": dtype == "float64"}
        cases += fresh("experiments.qk_attention", "balance", **options)
    show("random models: |sum over pairs - score| / sum of |pairs|", cases)
    found = induction(cfg.transcoders, cfg.texts, cfg.length, cfg.top)
    show(f"head {found['head']}: its score from a repeated word to the word after the first, by sources",
         found["by_group"][:16])  # fmt: skip
    show("pairs that recur", found["recurring"])
    shown = ("score_at_key", "mean_elsewhere", "best_elsewhere", "word_before_replaced", "other_word_replaced")
    show("score", [{"figure": k, **found[k]} for k in shown])
    names = ("gap", "layer0", "layer0_core")
    largest = {d: {n: max(c[n] for c in cases if c["dtype"] == d) for n in names} for d in cfg.dtypes}
    save("qk_attention", cfg, {"largest_gap": largest, "random": cases, "induction": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

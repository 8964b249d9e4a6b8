"""Do people find features of transcoders as interpretable as those of SAEs? A blind rating, prepared and tallied.

    python -m experiments.blind_rating --out rating
    python -m experiments.blind_rating --out rating --ratings ratings.json [more.json ...]

The paper's section 4.1 (Dunefsky et al. 2024, Table 1: 41, 8 and 1 of 50 transcoder features rated interpretable,
maybe, and not, against 38, 8 and 4 of 50 SAE features; 6 and 16 context-free). The first command draws live features of
two sets of dictionaries at random, from all layers together, mixes them, and writes `rate.html`, on which a person sees
examples and nothing else (no number, no name, no kind), and `key.json`, which says what each item is: keep it from who
rates. The second counts what was saved on that page, with intervals, and how far raters agree.

Without `--first` and `--second` the sets are a transcoder and an SAE of `experiments.known_variables` (embedded model,
equal k), so that the same features can be rated by people and by known variables. `--model`, `--first`, `--second` and
`--corpus` take any model, sets and text.
"""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

import tcircuits as tc
from experiments.common import ROOT, plain, show
from experiments.lm import rows, sweeps
from experiments.lm.measure import wilson
from tcircuits.transcoders.evaluation.data import open_rows
from tcircuits.transcoders.statistics.contexts import windows
from tcircuits.transcoders.statistics.result import Statistics
from tcircuits.types import InputError
from tcircuits.view.page import write_html
from tcircuits.view.rating import RATINGS, Example, Item, rating_page

LARGEST = 2**24  # bytes of a file of ratings


@dataclass(frozen=True)
class Config:
    """Features of two sets to rate, or ratings to count."""

    out: Path = Path("rating")
    """A new folder for the page and the key; with `ratings` the folder that has the key."""
    ratings: tuple[Path, ...] = ()
    """Files that were saved on the page, one for each person, to be counted."""
    model: str = "tiny"
    """Any model that the package loads."""
    first: str | None = None
    """Transcoders; default: those of the studies, seed 0."""
    second: str | None = None
    """What they are compared with; default: SAEs, seed 0."""
    corpus: str | None = None
    """Text or tokens, as for `tcircuits features`; default: held-out text of the embedded model."""
    n: int = 50
    """Features of each set."""
    least: int = 4
    """Tokens at which a feature must be on."""
    top: int = 10
    """Strongest examples of a feature."""
    drawn: int = 8
    """Examples drawn at random from all of its activations."""
    tokens: int = 131_072
    """Of the corpus."""
    width: int = 10
    """Tokens on either side of an example."""
    seed: int = 0
    """Of the draw and the order."""
    work: Path = ROOT / "build/studies"
    """Where the studies' dictionaries are trained."""


def drawn_features(found: Statistics, n: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """Random live features of all layers: (slot, feature), [n, 2].

    Raises:
        InputError: fewer than `n` are live.
    """
    live = np.argwhere(found.n_active >= least)
    if len(live) < n:
        raise InputError(
            f"{found.dictionary}: {len(live)} features are on at {least} tokens or more, {n} are asked for"
        )
    return live[rng.choice(len(live), n, replace=False)]


def examples(
    cfg: Config, model: tc.Model, d: tc.Transcoders, text: Any, found: Statistics, chosen: np.ndarray
) -> list[tuple[Example, ...]]:
    """The examples of each chosen feature: the strongest, then those drawn at random, by falling activation."""
    slot, feature, token, owner = [], [], [], []
    for i, (s, f) in enumerate(chosen.tolist()):
        own = found.tokens_of(found.cfg.layers[s], f)
        for t in dict.fromkeys([*own["top"][: cfg.top].tolist(), *own["drawn"][: cfg.drawn].tolist()]):
            slot.append(s), feature.append(f), token.append(t), owner.append(i)
    where = np.asarray(slot), np.asarray(feature), np.asarray(token)
    around = windows(model, d, text, found, *where, width=cfg.width)
    out: list[list[Example]] = [[] for _ in chosen]
    for i in np.lexsort((-around[:, cfg.width], owner)):
        largest = float(found.largest[where[0][i], where[1][i]])
        out[owner[i]].append(_example(model, text, found, int(token[i]), around[i] / largest))
    return [tuple(e) for e in out]


def _example(model: tc.Model, text: Any, found: Statistics, token: int, parts: np.ndarray) -> Example:
    row, pos = divmod(token, found.context)
    ids, middle = np.asarray(text[row])[: found.context], len(parts) // 2
    first, last = max(0, pos - middle), min(found.context, pos + middle + 1)
    shown = np.clip(parts[first - pos + middle : last - pos + middle], 0, 1)
    words = tuple(model.token(int(t)).encode(errors="replace").decode() for t in ids[first:last])
    return Example(words, tuple(shown.tolist()), pos - first)


def prepare(cfg: Config) -> None:
    """Write `rate.html` and `key.json`.

    Raises:
        InputError: a folder that exists, sets without enough live features.
    """
    if cfg.out.exists():
        raise InputError(f"{cfg.out} exists; give a new folder with --out")
    model = tc.load_model(cfg.model)
    sets = _sets(cfg, model)
    rng, key, items = np.random.default_rng(cfg.seed), [], []
    text = _text(cfg, model)
    for label, d in sets.items():
        found = tc.feature_statistics(model, d, text, top=cfg.top, drawn=cfg.drawn, seed=cfg.seed)
        chosen = drawn_features(found, cfg.n, cfg.least, rng)
        items += examples(cfg, model, d, text, found, chosen)
        key += [{"set": label, "layer": found.cfg.layers[s], "feature": f} for s, f in chosen.tolist()]
    order = rng.permutation(len(items))
    names = [f"{i + 1:03d}" for i in range(len(items))]
    page = f"{rng.integers(2**32):08x}"
    shown = [Item(name, items[i]) for name, i in zip(names, order, strict=True)]
    told = {"page": page, "model": model.name, "items": {n: key[i] for n, i in zip(names, order, strict=True)}}
    cfg.out.mkdir(parents=True)
    (cfg.out / "key.json").write_text(json.dumps(told, indent=1, default=plain) + "\n", encoding="utf-8")
    print(f"rate on {write_html(rating_page(shown, page), cfg.out / 'rate.html')}; keep {cfg.out / 'key.json'} closed")


def _sets(cfg: Config, model: tc.Model) -> dict[str, tc.Transcoders]:
    if (cfg.first is None) != (cfg.second is None):
        raise InputError("give both --first and --second, or neither")
    if cfg.first is not None and cfg.second is not None:
        return {s: tc.load_transcoders(s, model=model) for s in (cfg.first, cfg.second)}
    if cfg.model != "tiny":
        raise InputError("give --first and --second: only the embedded model's dictionaries are trained here")
    made = sweeps.standard(model, cfg.work)
    return {"transcoder": made["transcoder", 0], "sae": made["sae", 0]}


def _text(cfg: Config, model: tc.Model) -> np.ndarray:
    """Rows [n, T] to look for examples in."""
    context = min(sweeps.CONTEXT, model.cfg.n_ctx)
    if cfg.corpus is None:
        return rows.held_out(rows.text_of(sweeps.ASSETS), cfg.tokens // context, context, seed=11)
    with open_rows(cfg.corpus, model, context=context) as source:
        return np.asarray(source.rows(0, min(source.n, cfg.tokens // context)))


def read_ratings(path: Path, key: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What one person said, by item; items that were not rated are left out.

    Raises:
        InputError: no such file, one that is no rating, or of another page.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes; a file of ratings has at most {LARGEST:,}")
        saved = json.loads(path.read_text(encoding="utf-8"))
        page, ratings = saved["page"], dict(saved["ratings"])
        rated = {n: {"rating": r["rating"], "context_free": bool(r["context_free"])} for n, r in ratings.items()}
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a file that was saved on rate.html"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no ratings ({error!r}); give what rate.html saved") from error
    if page != key["page"]:
        raise InputError(f"{path} is of page {page}, the key of page {key['page']}: give what belongs together")
    wrong = sorted(n for n, r in rated.items() if n not in key["items"] or r["rating"] not in (*RATINGS, None))
    if wrong:
        raise InputError(f"{path}: items {wrong[:5]} are not of this page, or have a rating that does not exist")
    return {n: r for n, r in rated.items() if r["rating"] is not None}


def counted(key: dict[str, Any], ratings: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each set: how many of each rating, the share of "yes" with Wilson's interval, context-free ones."""
    labels = list(dict.fromkeys(item["set"] for item in key["items"].values()))
    out = []
    for label in sorted(labels):
        own = [r for n, r in ratings.items() if key["items"][n]["set"] == label]
        counts = Counter(r["rating"] for r in own)
        yes = wilson(np.asarray([r["rating"] == "yes" for r in own])) if own else None
        free = sum(r["context_free"] for r in own if r["rating"] == "yes")
        out.append({"set": label, "rated": len(own), **{r: counts[r] for r in RATINGS}, "context_free": free,
                    "yes_share": yes})  # fmt: skip
    return out


def difference(table: list[dict[str, Any]]) -> dict[str, float]:
    """Share of "yes", the second set's less the first's, with Newcombe's interval; and Fisher's exact p."""
    first, second = table
    (p, low, high), (q, down, up) = (
        (t["yes_share"]["value"], t["yes_share"]["low"], t["yes_share"]["high"]) for t in (first, second)
    )
    cells = [[t["yes"], t["rated"] - t["yes"]] for t in table]
    return {
        "difference": q - p,
        "low": q - p - float(np.hypot(q - down, high - p)),
        "high": q - p + float(np.hypot(up - q, p - low)),
        "fisher_p": float(scipy.stats.fisher_exact(cells).pvalue),
    }


def kappa(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> float | None:
    """Cohen's kappa of two people on the items that both rated; None where chance alone would agree."""
    both = [(a[n]["rating"], b[n]["rating"]) for n in a.keys() & b.keys()]
    if not both:
        return None
    agree = np.mean([x == y for x, y in both])
    chance = sum(np.mean([x == r for x, _ in both]) * np.mean([y == r for _, y in both]) for r in RATINGS)
    return None if chance == 1 else float((agree - chance) / (1 - chance))


def tally(cfg: Config) -> None:
    """Print counts of every person, the difference of the sets, and agreement."""
    try:
        key = json.loads((cfg.out / "key.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{cfg.out} has no key that can be read ({error}); give the folder of rate.html") from error
    people = {path: read_ratings(path, key) for path in cfg.ratings}
    for path, ratings in people.items():
        table = counted(key, ratings)
        flat = [{k: v for k, v in row.items() if k != "yes_share"} | _share(row["yes_share"]) for row in table]
        show(str(path), flat)
        if len(table) == 2 and all(row["rated"] for row in table):
            found = difference(table)
            print(f"  {table[1]['set']} less {table[0]['set']}: "
                  f"{found['difference']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}], "
                  f"Fisher's p {found['fisher_p']:.2f}")  # fmt: skip
    for (one, a), (other, b) in combinations(people.items(), 2):
        told = kappa(a, b)
        print(f"Cohen's kappa of {one} and {other}: {'undefined' if told is None else f'{told:.2f}'}")


def _share(yes: dict[str, float] | None) -> dict[str, Any]:
    return {k: None if yes is None else yes[k] for k in ("value", "low", "high")}


def main(cfg: Config) -> None:
    """Prepare or tally."""
    (tally if cfg.ratings else prepare)(cfg)


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Config))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None

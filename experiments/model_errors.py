"""Do circuits make the model's mistakes too?

    python -m experiments.model_errors

A circuit that keeps what the model gets right may still be another computation; where the model is wrong, does the
circuit choose the same wrong token? A_ok and A_err are the shares of prompts whose likeliest token is the model's own,
where that is right and where it is wrong; chance for A_err is not 0: a prompt names few candidates, so the nulls
(nothing kept, random circuits of the same profile) stand beside. On the embedded model's induction task, which it gets
wrong often enough for 200 errors; units are scored on the attribution split, sizes are shares of all units and the size
that `discover` chooses on the selection split; ablation by resampling.

Published: automatic circuits of GPT-2's IOI keep 97.3 to 99.5 % of the right choices and 11.4 to 51.4 % of the errors.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import tcircuits as tc
from experiments.common import save, show
from tcircuits.circuits import metrics
from tcircuits.circuits.discover import score
from tcircuits.circuits.learning import Kind
from tcircuits.circuits.scores import POINTS, Method

STANDARD: Any = {"ablation": "resample", "errors": "keep"}


@dataclass(frozen=True)
class Config:
    """What to compare."""

    model: str = "tiny"
    """A built-in name, a folder, or a hub id."""
    task: str = "induction"
    """Of `tcircuits.tasks.TASKS`."""
    prompts: int = 1400
    """Of the report split."""
    units: tuple[str, ...] = ("edge", "head,feature")
    """Kinds of units, joined by commas."""
    transcoders: str = "neurons"
    """The dictionary of features."""
    methods: tuple[Method | Kind, ...] = ("ig", "eap-ig", "gradient", "relp", "topk", "activation")
    """Of `tc.discover`; eap-ig for edges only."""
    shares: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Of all units."""
    random: int = 3
    """Random circuits of each size's profile."""
    seed: int = 0
    """Of prompts and random circuits."""


def case(cfg: Config, model: tc.Model, behaviour: tc.Behaviour, kinds: str) -> list[dict[str, Any]]:
    """One kind of units."""
    d = tc.load_transcoders(cfg.transcoders, model=model) if "feature" in kinds else None
    edges = kinds == "edge"
    units = tc.edges_of(model.cfg) if edges else tc.units_of(model.cfg, kinds.split(","), None if d is None else d.cfg)
    how: Any = {"dictionary": d}
    methods = [m for m in cfg.methods if edges or m != "eap-ig"]
    circuit, _, _ = tc.discover(model, behaviour, units, method="ig", seed=cfg.seed, **how)
    counts = np.append(metrics.counts_of(cfg.shares, units.n), circuit.size)
    named, masks = [], []
    for method in methods:
        s = score(model, behaviour, units, method, points=POINTS, seed=cfg.seed, **STANDARD, **how)
        masks.append(metrics.nested(s.values, counts, signed=True))
        named += [(method, int(count)) for count in counts]
    for row, count in zip(masks[0].copy(), counts, strict=True):
        masks.append(metrics.matched(row, units.groups(), cfg.random, cfg.seed))
        named += [("random", int(count))] * cfg.random
    masks.append(np.zeros((1, units.n), bool))
    runs = tc.run_circuits(model, behaviour, np.concatenate(masks), units, batch=50, **how)
    rows = []
    for i, (method, count) in enumerate([*named, ("nothing", 0)]):
        about = {"units": kinds, "of": units.n, "method": method, "kept": count, "chosen": count == circuit.size}
        rows.append(about | _figures(runs, i))
    return _pooled(rows)


def _figures(runs: tc.circuits.Runs, at: int) -> dict[str, Any]:
    found, full = runs.circuits, runs.model
    f = metrics.faithfulness(found.metric[at : at + 1], full.metric, found.metric[-1])[0]
    kept = {"a_ok": full.right, "a_err": ~full.right}
    shares = {
        name: asdict(metrics.agreement(found.choice[at], full.choice, where, metrics.LEAST_ERRORS))
        for name, where in kept.items()
    }
    return {"faithfulness": float(f), "kl": float(found.kl[at].mean())} | shares


def _pooled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Random circuits of one size as one row: means, and the largest A_err."""
    found = [r for r in rows if r["method"] != "random"]
    for count in sorted({r["kept"] for r in rows if r["method"] == "random"}):
        same = [r for r in rows if r["method"] == "random" and r["kept"] == count]
        plain = {name: float(np.mean([r[name] for r in same])) for name in ("faithfulness", "kl")}
        shares: dict[str, Any] = {}
        for name in ("a_ok", "a_err"):
            values = [r[name]["share"]["value"] for r in same]
            shares[name] = {"n": same[0][name]["n"], "share": {"value": float(np.mean(values)), "low": min(values)}}
            shares[name]["share"]["high"] = max(values)
        found.append(same[0] | plain | shares)
    return found


def main(cfg: Config) -> None:
    """Measure, print, write."""
    model = tc.load_model(cfg.model)
    sizes = {"report": cfg.prompts}
    behaviour, found = tc.make_behaviour(model, cfg.task, sizes=sizes, seed=cfg.seed), []
    for kinds in cfg.units:
        found += case(cfg, model, behaviour, kinds)
        save("model_errors", cfg, {"rows": found})
        show(f"{cfg.task}, {kinds}", [_line(r) for r in found if r["units"] == kinds])


def _line(row: dict[str, Any]) -> dict[str, Any]:
    short = {name: row[name] for name in ("method", "kept", "of", "faithfulness", "kl")}
    for name in ("a_ok", "a_err"):
        share = row[name]["share"]
        short |= {f"{name} n": row[name]["n"], name: share["value"], f"{name} low": share["low"]}
    return short


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

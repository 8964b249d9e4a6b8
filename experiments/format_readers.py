"""Do the tools that own a format read what is saved here, and is what they write read here as they mean it?

    python -m experiments.format_readers --circuit-tracer PYTHON --sae-lens PYTHON --sparsify PYTHON

Each PYTHON is an interpreter of an environment of its own, made so (the first as `tests/golden/make_circuit_tracer.py`
says):

    pip install torch==2.13.0 && pip install sae-lens==6.54.12
    pip install torch==2.13.0 && pip install eai-sparsify==1.3.3

A tool without an interpreter is left out. Random dictionaries of every kind, in float32 and bfloat16, go three ways:

    saved      `tc.save_transcoders` writes, the tool loads
    loaded     the tool writes, `tc.load_transcoders` loads
    published  files in Gemma Scope's layouts, which both load

Both sides then compute features f and outputs y of the same inputs in float64, from what they loaded and, on the side
that wrote, from what was in memory. A case is `same` when the same features are active, the sites have the same names,
and f and y differ by no more than rounding can make them: 2 n u S for each output, where S is the sum of the absolute
values of the products that make it up, n the number of additions on the longest path to it, u = 2^-53. Where it is not,
it may be `same without k` or `same without skip`: the tool's reader ignores that; or `same as it reads back`: its
writer does. Such exceptions are known (`format_cases.EXPECTED`, `WHY`), all else must be `same`.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import run, save, show
from experiments.format_cases import DTYPES, EXPECTED, WHY, D, F, L, Sides, T, load, published, saved, write_jobs
from tcircuits.transcoders.dictionary import Transcoders, decode, encode
from tcircuits.transcoders.formats.hooks import READS, WRITES

Values = tuple[np.ndarray, np.ndarray]  # features and outputs


@dataclass(frozen=True)
class Config:
    """Which tools to ask."""

    circuit_tracer: Path | None = None
    """An interpreter that has circuit-tracer."""
    sae_lens: Path | None = None
    """An interpreter that has SAELens."""
    sparsify: Path | None = None
    """An interpreter that has sparsify."""
    dtypes: tuple[str, ...] = DTYPES
    """Of the files."""


def computed(d: Transcoders, x: np.ndarray) -> Values:
    """Features [L,T,F] and outputs [L,T,D]."""
    slots = range(len(d.cfg.layers))
    f = jnp.stack([encode(d, s, x[s]) for s in slots])
    skip = [0.0 if d.w_skip is None else x[s] @ d.w_skip[s] for s in slots]
    return np.asarray(f), np.stack([np.asarray(decode(d, s, f) + skip[s]) for s in slots])


def rounding(d: Transcoders, x: np.ndarray) -> Values:
    """How far two computations of f and y in float64, in any order of additions, may lie apart.

    A bias that is subtracted from the input (sparsify) is folded into the encoder's here; it is `b_dec` there, and its
    products count too.
    """
    size: Any = jax.tree.map(abs, replace(d, cfg=replace(d.cfg, activation="relu", k=None, signed_topk=False)))
    inputs = abs(x) + abs(np.asarray(d.b_dec))[:, None]
    f, y = computed(replace(size, threshold=None), inputs)
    n, unit = 2 * D + len(x) * F + 5, np.finfo(np.float64).eps / 2
    return 2 * (D + 2) * unit * f, 2 * n * unit * y


def alternatives(d: Transcoders) -> Iterator[tuple[str, Transcoders]]:
    """The dictionary, and what is left of it for a reader that ignores something."""
    yield "same", d
    if d.cfg.activation == "topk":
        yield "same without k", replace(d, cfg=replace(d.cfg, activation="relu", k=None))
    if d.w_skip is not None:
        yield "same without skip", replace(d, cfg=replace(d.cfg, skip=False), w_skip=None)


def measure(d: Transcoders, x: np.ndarray, theirs: Values) -> dict[str, Any]:
    """How far the tool is from a dictionary here.

    `of_rounding` is the largest difference over what rounding can explain; `other_active` counts features that are
    active on one side only.
    """
    ours = computed(d, x)
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return {
        "active": float((ours[0] != 0).mean()),
        "other_active": int(((ours[0] != 0) != (theirs[0] != 0)).sum()),
        "max_difference": float(max(a.max() for a in apart)),
        "relative": float(max(a.max() / abs(b).max() for a, b in zip(apart, ours, strict=True))),
        "of_rounding": max(float((a / r).max()) for a, r in zip(apart, rounding(d, x), strict=True)),
    }


def judge(d: Transcoders, x: np.ndarray, theirs: Values, back: Values | None) -> dict[str, Any]:
    """Verdict, and the figures of what it is the same as (else those of the whole dictionary)."""
    trials = [(verdict, measure(other, x, theirs)) for verdict, other in alternatives(d)]
    if back is not None:
        trials.append(("same as it reads back", measure(d, x, back)))
    same = [(verdict, f) for verdict, f in trials if f["of_rounding"] <= 1 and not f["other_active"]]
    verdict, figures = same[0] if same else ("differs", trials[0][1])
    return {"verdict": verdict} | figures


def sites(d: Transcoders) -> tuple[str, str]:
    """Names that the tools have for what a dictionary reads and writes."""
    reads = next(name for name, site in READS.items() if site == d.cfg.reads)
    return reads, next(name for name, site in WRITES.items() if site == d.cfg.writes)


def row(tool: str, side: Sides, said: dict[str, Any], folder: Path, x: np.ndarray) -> dict[str, Any]:
    """One case: verdict, figures, and whether it is what it should be."""
    key = (tool, side.way, side.case)
    about = {"tool": tool, "way": side.way, "case": side.case, "dtype": side.dtype}
    figures: dict[str, Any] = dict.fromkeys(("active", "other_active", "max_difference", "relative", "of_rounding"))
    error = side.refused or said["error"]
    if error is not None:
        figures |= {"verdict": "refused here" if side.refused else "refused there"}
    else:
        assert side.ours is not None
        with np.load(folder / f"{side.job.name}.npz") as file:
            back = (file["f_back"], file["y_back"]) if "f_back" in file else None
            figures |= judge(side.ours, x[list(side.job.layers)], (file["f"], file["y"]), back)
        stated = tuple(said["sites"])
        # The functions for Gemma Scope are told the sites, or call what the stream is before the norm the input.
        if side.way != "published" and None not in stated and stated != sites(side.ours):
            error = figures["verdict"] = f"differs in sites: {stated} there, {sites(side.ours)} here"
    expected = EXPECTED.get(key, "same")
    figures |= {"error": error, "expected": expected, "why": WHY.get(key)}
    return about | figures | {"as_expected": figures["verdict"] == expected}


def compare(tool: str, python: Path, dtypes: tuple[str, ...] = DTYPES) -> dict[str, Any]:
    """All cases of a tool, and its versions."""
    with tempfile.TemporaryDirectory() as name, jax.enable_x64(True):
        folder, x = Path(name), np.random.default_rng(99).normal(size=(L, T, D))
        np.save(folder / "x.npy", x)
        sides = [*saved(tool, folder, dtypes), *published(tool, folder)]
        writes = list(write_jobs(tool, dtypes))
        jobs = [side.job for side in sides] + [job for _, job in writes]
        (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]), encoding="utf-8")
        done = run([python, "-m", "experiments.rival_readers", tool, folder], HF_HUB_OFFLINE="1")
        found = json.loads(done.stdout.splitlines()[-1])
        sides += [load(job, folder, "loaded", case) for case, job in writes]
        rows = [row(tool, side, found["jobs"][side.job.name], folder, x) for side in sides]
    return {"versions": found["versions"], "rows": rows}


def main(cfg: Config) -> None:
    """Compare, print, write."""
    pythons = {"circuit-tracer": cfg.circuit_tracer, "sae-lens": cfg.sae_lens, "sparsify": cfg.sparsify}
    found = {tool: compare(tool, python, cfg.dtypes) for tool, python in pythons.items() if python is not None}
    for tool, result in found.items():
        keys = ("way", "case", "dtype", "verdict", "active", "max_difference", "of_rounding", "as_expected")
        show(f"{tool} {result['versions']}", [{k: r[k] for k in keys} for r in result["rows"]])
    for tool in sorted(pythons.keys() - found.keys()):
        print(f"\n{tool} was not asked: give --{tool}, an interpreter that has it")
    rows = [r for result in found.values() for r in result["rows"]]
    summary = {
        "cases": len(rows),
        "same": sum(r["verdict"] == "same" for r in rows),
        "as_expected": sum(r["as_expected"] for r in rows),
        "largest_of_rounding": max((r["of_rounding"] for r in rows if r["verdict"] == "same"), default=None),
        "largest_difference": max((r["max_difference"] for r in rows if r["verdict"] == "same"), default=None),
    }
    sizes = {"n_layers": L, "d_model": D, "d_feature": F, "positions": T}
    save("format_readers", cfg, {"summary": summary, "sizes": sizes, "tools": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

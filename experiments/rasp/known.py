"""Which edges of a compiled program are its circuit, by enumeration.

    python -m experiments.rasp.known

An edge is true under an ablation if removing it alone changes an answer on some input: under `resample`, the reader
hears the edge's writer as on some other input, for every ordered pair of inputs; under `mean` and `zero`, as on average
or not at all, for every input. The circuit is the set of true edges if keeping it alone leaves every answer as it was.
Where it does not (two edges stand in for each other), all smallest sets of further edges that make it so are found and
each gives one circuit; a method is right if it finds one of them.

Most edges carry nothing their reader hears, or always the same: these need no run. The rest is run in
`experiments.rasp.oracle`. The result is `known.json` beside this file; structure is counted beside it: edges whose
writer writes a dimension of the stream, by the compiler's weights, that the reader hears.
"""

import itertools
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import say
from experiments.rasp.network import Network, load, names
from experiments.rasp.oracle import Plain

FILE = Path(__file__).parent / "known.json"
ABLATIONS = ("resample", "mean", "zero")
Edge = tuple[str, str]
MOST = 20_000  # pairs of inputs; with more inputs, fixed shifts of all inputs are paired
SHIFTS = 24
PART = 1024  # pairs that are run together
LARGEST = 4  # edges that may have to be added to the true ones
STILL = 1e-9  # a smaller difference of what a reader hears is none


@dataclass(frozen=True)
class Config:
    """What to enumerate."""

    only: tuple[str, ...] = ()
    """Names of programs; all if empty."""


@dataclass
class Questions:
    """All cases of one program under one ablation, and the answers to keep."""

    plain: Plain
    ablation: str

    def __post_init__(self) -> None:
        net = self.plain.net
        outputs, self.clean = self.plain.run(net.tokens)
        self.answers = self.plain.chosen(outputs)
        assert (self.answers == net.right)[net.asked].all(), f"{net.name} does not compute its answers"
        n = len(net.tokens)
        if self.ablation == "resample":
            turns = range(1, n) if n * n <= MOST else np.random.default_rng(0).permutation(np.arange(1, n))[:SHIFTS]
            self.cases = np.concatenate([np.stack([np.arange(n), (np.arange(n) + t) % n], 1) for t in turns])
        else:
            self.cases = np.stack([np.arange(n)] * 2, 1)
        weight = net.asked.sum(1) / net.asked.sum()  # the mean over questions, as the harness takes it
        self.mean = {name: np.tensordot(weight, out, 1)[None] for name, out in self.clean.items()}
        self.suspects = np.zeros((0, 2), int)

    def reference(self, others: np.ndarray) -> dict[str, np.ndarray]:
        """What removed writers are heard as."""
        match self.ablation:
            case "resample":
                return {name: out[others] for name, out in self.clean.items()}
            case "mean":
                return self.mean
            case _:
                return {name: np.zeros_like(mean) for name, mean in self.mean.items()}

    def fails(self, removed: frozenset[Edge], cases: np.ndarray) -> np.ndarray:
        """The first part of cases, of those in which an answer changes."""
        net = self.plain.net
        for start in range(0, len(cases), PART):
            clean, other = cases[start : start + PART].T
            chosen = self.plain.chosen(self.plain.run(net.tokens[clean], removed, self.reference(other))[0])
            wrong = ((chosen != net.right[clean]) & net.asked[clean]).any(1)
            if wrong.any():
                return cases[start : start + PART][wrong]
        return cases[:0]

    def kept(self, circuit: Iterable[Edge]) -> bool:
        """Whether a circuit alone leaves all answers as they were; cases that told others apart are tried first."""
        removed = frozenset(self.plain.edges) - frozenset(circuit)
        for cases in (self.suspects, self.cases):
            found = self.fails(removed, cases)
            if len(found):
                if cases is self.cases:
                    self.suspects = np.concatenate([self.suspects, found[:: max(1, len(found) // 8)]])[-128:]
                return False
        return True

    def carries(self, edge: Edge) -> bool:
        """Whether a reader ever hears a difference when this edge alone is removed."""
        writer, reader = edge
        heard = self.clean[writer] @ self.plain.reads(reader)
        if self.ablation == "resample":
            return bool((np.ptp(heard, 0) > STILL).any())
        there = self.reference(np.zeros(1, int))[writer] @ self.plain.reads(reader)
        return bool((np.abs(heard - there) > STILL).any())

    def matters(self, edge: Edge) -> bool:
        """Whether removing this edge alone changes an answer."""
        return self.carries(edge) and len(self.fails(frozenset([edge]), self.cases)) > 0


def circuits(q: Questions) -> dict[str, Any]:
    """The known circuits of a program under an ablation; see the module's docstring."""
    start, plain = time.perf_counter(), q.plain
    structural = [e for e in plain.edges if plain.shares_dimension(e).any()]
    true = [e for e in plain.edges if q.matters(e)]
    assert set(true) <= set(structural), "an edge matters whose reader cannot hear its writer"
    found: list[tuple[Edge, ...]] = []
    pool = [e for e in structural if e not in true]
    for size in range(LARGEST + 1):
        for more in itertools.combinations(pool, size):
            if not any(set(f) <= set(more) for f in found) and q.kept([*true, *more]):
                found.append(more)
        if found:
            break
    sets = [sorted([*true, *more], key=plain.edges.index) for more in found]
    return {
        "edges": len(plain.edges),
        "structural": len(structural),
        "true": len(true),
        "circuits": [[f"{w} -> {r}" for w, r in s] for s in sets],
        "minimal": [bool(s) and not any(q.kept([e for e in s if e != f]) for f in s) for s in sets],
        "cases": len(q.cases),
        "seconds": round(time.perf_counter() - start, 2),
    }


def known(net: Network) -> dict[str, Any]:
    """The circuits of a program, by ablation."""
    return {ablation: circuits(Questions(Plain(net), ablation)) for ablation in ABLATIONS}


def read() -> dict[str, Any]:
    """What `main` wrote."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def main(cfg: Config) -> None:
    """Enumerate, write after each program."""
    found = read() if cfg.only and FILE.exists() else {}
    for name in cfg.only or names():
        found[name] = known(load(name))
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        told = (f"{a} {[len(c) for c in f['circuits']]} of {f['edges']}" for a, f in found[name].items())
        say(f"{name}: {', '.join(told)}, {sum(f['seconds'] for f in found[name].values()):.0f} s")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

"""Do the loaders withstand files from strangers?

    python -m experiments.fuzz_loaders --each 20000 --seed 0      # of every kind; --n: over all kinds together

Small valid files of every kind (`fuzz.subjects`) are damaged (`fuzz.mutations`: cut off, bits flipped, lengths and
places overwritten, stretches doubled, moved or deleted, huge shapes, zip and gzip bombs, pickles with dangerous calls)
and loaded through the public entry points in processes that are watched (`fuzz.worker`). A file fails

- if anything but `InputError` is raised, or the process dies, or it computes for more than `timeout` seconds;
- if anything is run, imported or written (audit events, and a file that every dangerous call would leave);
- if memory exceeds what the process held before by more than 64 MiB + 3 times the decoded size.

The same seed makes the same files; each failure is stored with its seed in `--keep`. `--subjects` takes some kinds
only, and `--merge` then keeps the others' rows of the stored result; every row names the commit whose loaders it is of.
"""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import common
from experiments.common import ROOT, save, show
from experiments.fuzz.subjects import SUBJECTS

KINDS = ("loaded", "refused", "failed")
MEMORY = "/dev/shm"  # where files need no disk
SHOWN = 50  # failures that a result names
PROGRESS = 5000  # files between two lines


@dataclass(frozen=True)
class Config:
    """What to load."""

    n: int = 20_000
    """Files over all subjects, by their weights."""
    each: int = 0
    """Files of every subject, instead of `n`."""
    seed: int = 0
    """Of the damage."""
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    """Kinds of files."""
    workers: int = 2
    """Processes."""
    timeout: float = 30.0
    """Seconds of processor time for one file."""
    keep: Path = Path("fuzz_failures")
    """Where files that fail are stored; the folder is made when the first one does."""
    merge: bool = False
    """Keep the rows of the stored result for subjects that this run leaves out; `each` and `seed` must be its own."""


class Worker:
    """One process, started again when it dies or hangs."""

    def __init__(self, base: Path, scratch: Path, subjects: tuple[str, ...]) -> None:
        self.command = [sys.executable, "-m", "experiments.fuzz.worker", str(base), str(scratch), ",".join(subjects)]
        self.scratch = scratch
        self.process: subprocess.Popen[str] | None = None

    def answer(self, timeout: float) -> Any:
        """One line of the process; None if it died, or computed for too long."""
        assert self.process is not None
        assert self.process.stdout is not None
        limit, line = self.computed() + timeout, ""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            for _ in range(20):  # on a busy machine, waiting is not counted, up to a point
                if selector.select(timeout):
                    line = self.process.stdout.readline()
                    break
                if self.computed() > limit:
                    break
        return json.loads(line) if line.endswith("\n") else None

    def computed(self) -> float:
        """Seconds of processor time that the process has taken."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def start(self) -> None:
        """Start the process and wait until it has loaded every valid file.

        Raises:
            RuntimeError: it cannot.
        """
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        if self.answer(600) != "ready":
            raise RuntimeError("a worker cannot load the valid files; see its error above")

    def run(self, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The outcome of one file."""
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        start = time.perf_counter()
        found = self.answer(timeout)
        if found is None:
            wrong = "the process died"
            try:
                self.process.wait(2)  # its pipe closes a moment before it ends
            except subprocess.TimeoutExpired:
                wrong = f"more than {timeout} seconds"
            self.stop()
            seconds = time.perf_counter() - start
            found = {"outcome": "failed", "wrong": [wrong], "message": "", "seconds": seconds, "peak": 0, "how": []}
        return found

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def make_base(folder: Path, subjects: tuple[str, ...]) -> None:
    """The valid files of all subjects."""
    for name in subjects:
        (folder / name).mkdir(parents=True)
        SUBJECTS[name].make(folder / name)


def jobs(cfg: Config) -> Iterator[dict[str, Any]]:
    """One job a file: one subject after the other, or in random order in proportion to their weights."""
    order = list(SUBJECTS)
    if cfg.each:
        for name in cfg.subjects:
            yield from ({"subject": name, "seed": [cfg.seed, order.index(name), i]} for i in range(cfg.each))
        return
    weights = np.array([SUBJECTS[name].weight for name in cfg.subjects])
    draws = np.random.default_rng(cfg.seed).choice(len(weights), cfg.n, p=weights / weights.sum())
    for i, k in enumerate(draws):
        yield {"subject": cfg.subjects[k], "seed": [cfg.seed, order.index(cfg.subjects[k]), i]}


@dataclass
class Tally:
    """What is kept of the outcomes of one subject, however many there are."""

    counts: Counter[str] = field(default_factory=Counter)
    damage: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, outcome: dict[str, Any]) -> None:
        """Count one outcome."""
        self.counts[outcome["outcome"]] += 1
        self.damage.update(outcome["how"][1:])
        self.peak = max(self.peak, outcome["peak"])
        self.seconds += outcome["seconds"]
        self.slowest = max(self.slowest, outcome["seconds"])
        if outcome["outcome"] == "failed" and len(self.failures) < SHOWN:
            self.failures.append({k: outcome[k] for k in ("subject", "seed", "how", "wrong")})

    def row(self, subject: str, git: str) -> dict[str, Any]:
        """Its figures."""
        return {
            "subject": subject,
            "files": sum(self.counts.values()),
            **{kind: self.counts[kind] for kind in KINDS},
            "peak_mib": round(self.peak / 2**20, 1),
            "seconds": round(self.seconds, 1),
            "slowest_s": round(self.slowest, 2),
            "git": git,
            "damage": dict(sorted(self.damage.items())),
        }


def run_all(cfg: Config, folder: Path) -> dict[str, Tally]:
    """Load all files; what is kept of them by subject. Interrupted, it gives the subjects that were done."""
    make_base(folder / "base", cfg.subjects)
    waiting, lock = jobs(cfg), threading.Lock()
    tallies = {name: Tally() for name in cfg.subjects}
    errors: list[BaseException] = []
    start = time.perf_counter()

    def count(outcome: dict[str, Any]) -> None:
        tallies[outcome["subject"]].add(outcome)
        counts = sum((t.counts for t in tallies.values()), Counter[str]())
        if counts.total() % PROGRESS == 0:
            total = cfg.each * len(cfg.subjects) if cfg.each else cfg.n
            print(f"{time.perf_counter() - start:.0f} s: {counts.total()} of {total}, {dict(counts)}", flush=True)

    def work(number: int) -> None:
        worker = Worker(folder / "base", folder / f"scratch{number}", cfg.subjects)
        try:
            while not errors:
                with lock:
                    job = next(waiting, None)
                if job is None:
                    break
                found = job | worker.run(job, cfg.timeout)
                if found["outcome"] == "failed":
                    _keep(cfg, worker.scratch, found)
                with lock:
                    count(found)
        except BaseException as error:
            errors.append(error)
        finally:
            worker.stop()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(cfg.workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        errors.append(KeyboardInterrupt())
        for thread in threads:
            thread.join()
        if not cfg.each:
            raise
    if errors and not isinstance(errors[0], KeyboardInterrupt):
        raise errors[0]
    return {name: t for name, t in tallies.items() if not cfg.each or t.counts.total() == cfg.each}


def _keep(cfg: Config, scratch: Path, outcome: dict[str, Any]) -> None:
    """Store a file that failed, and what it did."""
    into = cfg.keep / "-".join([outcome["subject"], *map(str, outcome["seed"])])
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(scratch, into, dirs_exist_ok=True)
    (into / "outcome.json").write_text(json.dumps(outcome, indent=1), encoding="utf-8")


def stored_rows(cfg: Config) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and failures of the stored result for the subjects that this run leaves out.

    Raises:
        ValueError: it is of other files than this run's.
    """
    found = json.loads((common.RESULTS / "fuzz_loaders.json").read_text(encoding="utf-8"))
    if not cfg.each or any(found["config"].get(name) != getattr(cfg, name) for name in ("each", "seed")):
        raise ValueError("--merge: the stored result is of another --each or --seed; run all subjects again")
    rest = [[x for x in found["figures"][key] if x["subject"] not in cfg.subjects] for key in ("subjects", "failures")]
    return rest[0], rest[1]


def figures(rows: list[dict[str, Any]], failures: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over subjects; the most memory that a file took; the first failures."""
    return {
        "files": sum(row["files"] for row in rows),
        "outcomes": {kind: sum(row[kind] for row in rows) for kind in KINDS},
        "least_of_a_subject": min(row["files"] for row in rows),
        "subjects": sorted(rows, key=lambda row: row["subject"]),
        "peak_mib": max(row["peak_mib"] for row in rows),
        "loading_seconds": round(sum(row["seconds"] for row in rows), 1),
        "failures": sorted(failures, key=lambda f: (f["subject"], f["seed"]))[:SHOWN],
    }


def main(cfg: Config) -> dict[str, Any]:
    """Load all files, print a table, write the result."""
    rows, failures = stored_rows(cfg) if cfg.merge else ([], [])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commit = common.commit()
    git = f"{commit['commit'] or 'none':.12}{'+' * bool(commit['dirty'])}"
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        tallies = run_all(cfg, Path(folder))
    rows += [tally.row(name, git) for name, tally in tallies.items() if tally.counts]
    if not rows:
        raise RuntimeError("it was interrupted before any subject was done")
    failures += [failure for tally in tallies.values() for failure in tally.failures]
    found = figures(rows, failures)
    show("damaged files", [{k: v for k, v in row.items() if k != "damage"} for row in found["subjects"]])
    for failure in found["failures"]:
        print(f"{failure['subject']} {failure['seed']} {failure['how']}: {failure['wrong']}")
    save("fuzz_loaders", replace(cfg, subjects=tuple(row["subject"] for row in found["subjects"])), found)
    return found


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Config))["outcomes"]["failed"] > 0)

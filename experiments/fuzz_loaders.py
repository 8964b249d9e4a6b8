"""Do the loaders withstand files from strangers?

    python -m experiments.fuzz_loaders --n 20000 --seed 0

Small valid files of every kind (`fuzz.subjects`) are damaged (`fuzz.mutations`: cut off, bits flipped, lengths and
places overwritten, stretches doubled, moved or deleted, huge shapes, zip and gzip bombs, pickles with dangerous calls)
and loaded through the public entry points in processes that are watched (`fuzz.worker`). A file fails

- if anything but `InputError` is raised, or the process dies, or it computes for more than `timeout` seconds;
- if anything is run, imported or written (audit events, and a file that every dangerous call would leave);
- if memory exceeds what the process held before by more than 64 MiB + 3 times the decoded size.

The same seed makes the same files; each failure is stored with its seed in `--keep`.
"""

import json
import os
import queue
import selectors
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import ROOT, save, show
from experiments.fuzz.subjects import SUBJECTS


@dataclass(frozen=True)
class Config:
    """What to load."""

    n: int = 20_000
    """Files, over all subjects."""
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


def jobs(cfg: Config) -> list[dict[str, Any]]:
    """One job a file, in random order of subjects, in proportion to their weights."""
    weights = np.array([SUBJECTS[name].weight for name in cfg.subjects])
    draws = np.random.default_rng(cfg.seed).choice(len(weights), cfg.n, p=weights / weights.sum())
    order = list(SUBJECTS)
    return [
        {"subject": cfg.subjects[k], "seed": [cfg.seed, order.index(cfg.subjects[k]), i]} for i, k in enumerate(draws)
    ]


def run_all(cfg: Config, folder: Path) -> list[dict[str, Any]]:
    """Load all files; the outcomes carry their jobs."""
    make_base(folder / "base", cfg.subjects)
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for job in jobs(cfg):
        waiting.put(job)
    outcomes: list[dict[str, Any]] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        worker = Worker(folder / "base", folder / f"scratch{number}", cfg.subjects)
        try:
            while not errors:
                job = waiting.get_nowait()
                found = worker.run(job, cfg.timeout)
                outcomes.append(job | found)
                if found["outcome"] == "failed":
                    _keep(cfg, worker.scratch, job | found)
                if len(outcomes) % 2000 == 0:
                    counts = Counter(o["outcome"] for o in outcomes)
                    print(f"{len(outcomes)} of {cfg.n}: {dict(counts)}", flush=True)
        except queue.Empty:
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            worker.stop()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(cfg.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return outcomes


def _keep(cfg: Config, scratch: Path, outcome: dict[str, Any]) -> None:
    """Store a file that failed, and what it did."""
    into = cfg.keep / "-".join([outcome["subject"], *map(str, outcome["seed"])])
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(scratch, into, dirs_exist_ok=True)
    (into / "outcome.json").write_text(json.dumps(outcome, indent=1), encoding="utf-8")


def figures(outcomes: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Counts by outcome, subject and damage; the most memory and time that a file took."""
    by_subject = []
    for name in sorted({o["subject"] for o in outcomes}):
        some = [o for o in outcomes if o["subject"] == name]
        counts = Counter(o["outcome"] for o in some)
        by_subject.append(
            {
                "subject": name,
                "files": len(some),
                **{kind: counts[kind] for kind in ("loaded", "refused", "failed")},
                "peak_mib": round(max(o["peak"] for o in some) / 2**20, 1),
                "slowest_s": round(max(o["seconds"] for o in some), 2),
            }
        )
    counts = Counter(o["outcome"] for o in outcomes)
    failures = [{k: o[k] for k in ("subject", "seed", "how", "wrong")} for o in outcomes if o["outcome"] == "failed"]
    return {
        "files": len(outcomes),
        "outcomes": {kind: counts[kind] for kind in ("loaded", "refused", "failed")},
        "subjects": by_subject,
        "damage": dict(sorted(Counter(how for o in outcomes for how in o["how"][1:]).items())),
        "peak_mib": round(max(o["peak"] for o in outcomes) / 2**20, 1),
        "seconds": round(seconds, 1),
        "failures": sorted(failures, key=lambda f: (f["subject"], f["seed"]))[:50],
    }


def main(cfg: Config) -> dict[str, Any]:
    """Load all files, print a table, write the result."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_all(cfg, Path(folder))
    found = figures(outcomes, time.perf_counter() - start)
    show("damaged files", found["subjects"])
    for failure in found["failures"]:
        print(f"{failure['subject']} {failure['seed']} {failure['how']}: {failure['wrong']}")
    save("fuzz_loaders", cfg, found)
    return found


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Config))["outcomes"]["failed"] > 0)

"""One process that damages files and loads them, watched from inside.

    python -m experiments.fuzz.worker BASE SCRATCH SUBJECTS

reads jobs (JSON lines) from its input and answers each with one line. Watched are: what is raised, what the interpreter
is asked to run or to write (audit events), and how much memory is taken over what was held before.
"""

import gc
import importlib
import json
import os
import re
import resource
import shutil
import socket
import sys
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fuzz.mutations import mutate
from experiments.fuzz.subjects import SUBJECTS
from tcircuits.types import InputError

MIB = 1 << 20
TRACED = 8  # of so many files, one is loaded with every allocation traced, which takes ten times as long
RENAMED = 0.06  # share of files in folders whose name is damaged, not what is in them
INSIDE = 0.4  # share of files in folders that have another way to be damaged
LARGEST = 8 << 30  # what the process may take at most, so that no file can harm the machine
RESERVED = 512 * MIB  # address space without memory behind it, as threads and arenas reserve it; more counts as memory
FOREIGN = {
    "torch", "sae_training", "transformer_lens", "circuit_tracer", "sae_lens", "antigravity", "runpy", "pty", "pydoc",
    "webbrowser", "timeit", "code", "nt",
}  # fmt: skip
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "os.putenv",
    "os.kill", "subprocess.Popen", "socket.", "shutil.", "pty.", "webbrowser.", "ctypes.", "code.",
    "pickle.find_class", "urllib.", "ftplib.", "http.", "smtplib.", "telnetlib.", "sys.addaudithook", "builtins.input",
)  # fmt: skip
CHANGES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
    "os.truncate",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Audit events while a file is loaded."""

    def __init__(self, allowed: Path) -> None:
        self.allowed, self.on = str(allowed.resolve()), False
        self.code = tuple({str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, os.getcwd())})
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an event that no loader needs."""
        if not self.on:
            return
        if event == "socket.__new__" and arguments[1] == socket.AF_UNIX:
            return  # event loops talk to themselves through a pair; connecting is another event
        if event.startswith(FORBIDDEN) or self.foreign(event, arguments) or self.outside(event, arguments):
            self.on = False  # formatting may raise events
            self.seen.append(f"{event} {str(arguments)[:200]}")
            self.on = True

    def foreign(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Code or modules that are none of Python's, of the packages or of ours."""
        if event == "import":
            return str(arguments[0]).split(".")[0] in FOREIGN
        if event == "exec":
            file = getattr(arguments[0], "co_filename", "?")
            return not file.startswith((*self.code, "<frozen", "<string>", "<__array_function__"))
        return False

    def outside(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Changes to files outside of the scratch folder."""
        if event == "open":
            path, _, flags = arguments
            written = isinstance(flags, int) and flags & WRITING and isinstance(path, str | bytes)
        else:
            path, written = arguments[0] if arguments else "", event in CHANGES
        text = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        return bool(written) and text != os.devnull and not os.path.abspath(text).startswith(self.allowed)


def _status(name: str) -> int:
    """A figure of this process in bytes: VmHWM is the most memory since `_reset`, VmRSS what is held."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def _reset() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def unpacked(path: Path) -> int:
    """Bytes of a file, decoded where gzip packed it."""
    if not path.is_file():
        return sum(unpacked(p) for p in path.rglob("*") if p.is_file())
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return size
        file.seek(0)
        stream, total = zlib.decompressobj(31), 0
        while block := file.read(1 << 18):
            try:
                while block:
                    total += len(stream.decompress(block, 1 << 20))
                    block = stream.unused_data if stream.eof else stream.unconsumed_tail
                    stream = zlib.decompressobj(31) if stream.eof and block else stream
            except zlib.error:
                break
    return max(size, total)


def renamed(file: Path, rng: np.random.Generator) -> str:
    """Give a file or folder a name with another number in it, or an altogether other one."""
    number = ("7", "00", "9" * 9, "9" * 19, "1" * 120, "-1", "x")[int(rng.integers(7))]
    name = re.sub(r"\d+", number, file.name, count=1)
    name = name if name != file.name else number + file.name
    if not (file.parent / name).exists():
        file.rename(file.parent / name)
    return "rename"


class Runner:
    """Damages copies of the valid files and loads them."""

    def __init__(self, base: Path, scratch: Path, watch: Watch) -> None:
        self.base, self.scratch, self.watch = base, scratch, watch
        self.noted = 0

    def note(self, n: int) -> None:
        """Bytes that are going to be decoded."""
        self.noted += n

    def damaged(self, subject: str, seed: list[int]) -> tuple[Path, list[str]]:
        """A damaged copy of one of a subject's variants, and what was done to it."""
        rng = np.random.default_rng(seed)
        variants = sorted((self.base / subject).iterdir())
        variant = variants[int(rng.integers(len(variants)))]
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        path = self.scratch / variant.name
        shutil.copytree(variant, path, copy_function=os.link) if variant.is_dir() else os.link(variant, path)
        inside = SUBJECTS[subject].inside
        if inside is not None and rng.random() < INSIDE:
            return path, inside(path, rng)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        file = files[int(rng.integers(len(files)))]
        if path.is_dir() and rng.random() < RENAMED:
            return path, [file.name, renamed(file if rng.random() < 0.5 or file.parent == path else file.parent, rng)]
        data, how = mutate(file.name, file.read_bytes(), rng)
        file.unlink()  # it is a link to the valid one
        file.write_bytes(data)
        return path, [file.name, *how]

    def run(self, subject: str, seed: list[int]) -> dict[str, Any]:
        """The outcome for one file."""
        path, how = self.damaged(subject, seed)
        return self.load(subject, path, trace=seed[-1] % TRACED == 0) | {"how": how}

    def load(self, subject: str, path: Path, *, trace: bool) -> dict[str, Any]:
        """Load a file and say what happened; `trace` counts allocations that are never touched too."""
        gc.collect()
        _reset()
        held, largest, size = _status("VmRSS"), _status("VmPeak"), _status("VmSize")
        if trace:
            tracemalloc.start()
        self.noted, self.watch.seen, start = 0, [], time.perf_counter()
        cwd = os.getcwd()
        os.chdir(self.scratch)
        self.watch.on = True
        outcome, message = "loaded", ""
        try:
            SUBJECTS[subject].load(path, self.note)
        except InputError as error:
            outcome, message = "refused", str(error)
        except BaseException as error:  # what a loader must never raise, SystemExit among it
            outcome, message = "failed", f"{type(error).__module__}.{type(error).__name__}: {error}"
        self.watch.on = False
        os.chdir(cwd)
        seconds = time.perf_counter() - start
        taken, reserved = _status("VmHWM") - held, _status("VmPeak") - size if _status("VmPeak") > largest else 0
        if trace:
            taken = max(taken - tracemalloc.get_tracemalloc_memory(), tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        peak = max(taken, reserved - RESERVED)
        allowed = 64 * MIB + 3 * self.noted
        if peak > allowed:
            allowed = 64 * MIB + 3 * max(self.noted, unpacked(path))
        wrong = [f"ran: {event}" for event in self.watch.seen]
        if list(self.scratch.rglob("CANARY")):
            wrong.append("ran: the file CANARY is there")
        if peak > allowed:
            wrong.append(f"memory: {peak} bytes, {allowed} allowed")
        if outcome == "refused" and (not message.strip() or len(message) > 4000):
            wrong.append(f"message: {len(message)} letters")
        if message.encode(errors="replace").decode() != message:
            wrong.append("message: cannot be printed")
        if outcome == "failed":
            wrong.append(message)
        return {
            "outcome": "failed" if wrong else outcome, "wrong": wrong, "message": message[:500], "seconds": seconds,
            "peak": peak,
        }  # fmt: skip


def _warm(runner: Runner, subjects: list[str]) -> None:
    """Load everything once as it is, so that imports and compiled programs are not counted or complained about."""
    for subject in subjects:
        for variant in sorted((runner.base / subject).iterdir()):
            SUBJECTS[subject].load(variant, runner.note)
            for seed in range(3):
                runner.run(subject, [seed, 0, 0])


def main(base: Path, scratch: Path, subjects: list[str]) -> None:
    """Answer jobs until the input ends."""
    importlib.import_module("yaml")
    resource.setrlimit(resource.RLIMIT_DATA, (LARGEST, LARGEST))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    runner = Runner(base, scratch, Watch(scratch))
    _warm(runner, subjects)
    gc.collect()
    gc.freeze()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(runner.run(job["subject"], job["seed"])), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","))

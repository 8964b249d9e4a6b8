"""What every experiment needs: measure time and memory, know the machine, write one result file.

A result is `experiments/results/NAME.json` with the keys of `KEYS`. It is written to a temporary name and renamed, so
that an interrupted run leaves the old one.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of `ru_maxrss`
KEYS = ("experiment", "command", "config", "figures", "versions", "hardware", "git")


@dataclass(frozen=True)
class Timed:
    """Seconds of the first call, which compiles, and of the best of the others; and what the call returned."""

    first: float
    best: float
    value: Any


def timed(f: Callable[[], Any], repeats: int = 3) -> Timed:
    """Time a function of no arguments, once and then `repeats` times; waits for the device each time."""
    seconds, value = [], None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        value = jax.block_until_ready(f())
        seconds.append(time.perf_counter() - start)
    return Timed(seconds[0], min(seconds[1:], default=seconds[0]), value)


def matmul_peak(
    size: int = 4096, repeats: int = 5, dtype: str = "float32", precision: str | None = "highest", chain: int = 1
) -> float:
    """The most FLOP/s that this process reaches in products of two [size, size] matrices.

    `precision` is `jnp.matmul`'s (None: the backend's default, TF32 for float32 on a GPU). Of a `chain` of products in
    one program each takes the last one's result, which hides what it costs to start a program; beyond 8 it overflows.
    """
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)

    def several(a: Any) -> Any:
        b = a
        for _ in range(chain):
            b = jnp.matmul(b, a, precision=precision)
        return b

    product = jax.jit(several)
    return 2 * size**3 * chain / timed(lambda: product(x), repeats).best


def peak_rss_gb() -> float:
    """The most memory that this process has held so far, in GB."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):  # unlike `getrusage`, without what the parent held when it started this process
            return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / 1e9


@dataclass(frozen=True)
class Finished:
    """What a command printed, and what it took: seconds of wall time and of all cores, memory in GB."""

    stdout: str
    wall: float
    cpu: float
    peak_rss_gb: float


# A small process starts the command, since a child's peak counts from what its parent held.
_LAUNCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
wall = time.perf_counter() - start
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
"""


def run(command: Sequence[str | Path], *, echo: bool = False, **env: str) -> Finished:
    """Run a command from the top of the repository and measure it alone.

    `echo` lets what it says (standard error) through as it comes.

    Raises:
        RuntimeError: it failed; without `echo` the message ends with what it said.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    words = [str(word) for word in command]
    with tempfile.NamedTemporaryFile("r") as usage:
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, usage.name, *words]
        environment = os.environ | {"PYTHONPATH": path} | env
        pipe = subprocess.PIPE
        done = subprocess.run(
            launch, cwd=ROOT, env=environment, stdout=pipe, stderr=None if echo else pipe, text=True, check=False
        )
        text = usage.read()
    code, wall, cpu, rss = json.loads(text) if text else (done.returncode, 0.0, 0.0, 0)
    if code or done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {code}\n{(done.stderr or '')[-3000:]}")
    return Finished(done.stdout, wall, cpu, rss * RSS_UNIT / 1e9)


_CALL = """
import importlib, json, sys
from experiments.common import plain
module, function, arguments = json.loads(sys.argv[1])
print(json.dumps(getattr(importlib.import_module(module), function)(**arguments), default=plain))
"""


def fresh(
    module: str, function: str, *, x64: bool = False, echo: bool = False, platform: str = "", **arguments: Any
) -> Any:
    """Call a function in a Python of its own: arguments and result are JSON values.

    `x64` enables float64 arrays; `echo` is that of `run`; `platform` is another than JAX's choice.
    """
    call = json.dumps([module, function, arguments])
    where = {"JAX_PLATFORMS": platform} if platform else {}
    done = run([sys.executable, "-c", _CALL, call], echo=echo, JAX_ENABLE_X64=str(int(x64)), **where)
    return json.loads(done.stdout.splitlines()[-1])


def versions() -> dict[str, str]:
    """Releases of what the numbers depend on."""
    own = tcircuits.__version__
    return {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__, "tcircuits": own}


def hardware() -> dict[str, Any]:
    """Processor, memory and JAX device of this machine, and how busy it is (runnable tasks, mean of a minute)."""
    info, cpu = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    device = jax.devices()[0]
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory, 1),
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def commit() -> dict[str, Any]:
    """The commit that is checked out, and whether files other than results differ from it; None outside of git.

    A copy of the tree is told by the variable TCIRCUITS_COMMIT which commit it is a copy of.
    """

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    told = os.environ.get("TCIRCUITS_COMMIT")
    if told:
        return {"commit": told, "dirty": False}
    try:
        changed = git("status", "--porcelain", "--", ".", ":!experiments/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}
    except OSError:  # no git on this machine
        return {"commit": None, "dirty": None}


def save(
    module: str, cfg: Any, figures: dict[str, Any], *, variant: str = "", machine: dict[str, Any] | None = None
) -> Path:
    """Write the result of an experiment; `module` is its name below `experiments`, such as `bench.attribution`.

    `variant` is added to the file's name, and told in it. `machine` is what `hardware` said in the process that
    measured; without it this process is asked, which starts its JAX backend.

    Raises:
        ValueError: a figure that is NaN or infinite.
    """
    config = {k: v for k, v in asdict(cfg).items() if not isinstance(v, Path)}  # paths belong to one machine
    result = {
        "experiment": module,
        "command": f"python -m experiments.{module}",
        "config": config,
        "figures": figures,
        "versions": versions(),
        "hardware": machine or hardware(),
        "git": commit(),
    } | ({"variant": variant} if variant else {})
    text = json.dumps(result, indent=1, allow_nan=False, default=plain) + "\n"
    path = result_path(module, variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    print(f"-> {os.path.relpath(path)}")
    return path


def result_path(module: str, variant: str = "") -> Path:
    """The file of an experiment's result."""
    return RESULTS / f"{'_'.join(filter(None, [module.replace('.', '_'), variant]))}.json"


def plain(x: Any) -> Any:
    """NumPy scalars and arrays as JSON values."""
    if isinstance(x, np.ndarray | np.generic):
        return x.tolist()
    raise TypeError(f"{type(x).__name__} is no JSON value")


def say(text: str) -> None:
    """Progress of a process whose output is its result."""
    print(f"  {text}", file=sys.stderr, flush=True)


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a plain table; every row has the same keys."""
    print(f"\n{title}")
    if not rows:
        return
    head = list(rows[0])
    cells = [head, *([_cell(row[k]) for k in head] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for line in cells:
        left, *right = (
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(["", left, *right]))


def _cell(x: Any) -> str:
    if isinstance(x, float):
        return f"{x:.2e}" if x and not 1e-3 <= abs(x) < 1e5 else f"{x:.4g}"
    return "-" if x is None else f"{x:,}" if isinstance(x, int) and not isinstance(x, bool) else str(x)

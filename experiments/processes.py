"""Calls of an experiment in processes of their own, with as many CPU devices as it wants; two that work together."""

import os
import socket
import subprocess
import sys

from experiments.common import ROOT


def python(module: str, call: str, devices: int, **env: str) -> subprocess.Popen:
    """A call of a module's function in a process of its own; `call` may use `Path`."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    shared = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | env
    program = f"from pathlib import Path; import {module} as m; m.{call}"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=shared, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def finished(*processes: subprocess.Popen, seconds: float = 1200) -> list[str]:
    """What processes printed, once all have ended.

    Raises:
        RuntimeError: one failed.
    """
    try:
        said = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, words in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(words[-3000:])
    return said


def two(module: str, call: str) -> list[str]:
    """A call in two processes of two devices each that work together."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{s.getsockname()[1]}"
    shared = {"TCIRCUITS_COORDINATOR": place, "TCIRCUITS_NUM_PROCESSES": "2"}
    return finished(*[python(module, call, 2, TCIRCUITS_PROCESS_ID=str(i), **shared) for i in range(2)])

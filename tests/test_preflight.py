"""The preflight as two processes on one machine."""

import re
import socket
import subprocess
import sys

import pytest

from tests.conftest import python_env


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(root, *args, devices=2, **env):
    return subprocess.Popen(
        [sys.executable, "tpu/preflight.py", *map(str, args)],
        cwd=root,
        env=python_env(devices, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_see_all_devices_and_get_the_same_graph(root):
    place = f"127.0.0.1:{free_port()}"
    both = [start(root, "--coordinator", place, "--num-processes", 2, "--process-id", i) for i in range(2)]
    try:
        outputs = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], outputs
    for i, (out, _) in enumerate(outputs):
        assert re.search(rf"process {i + 1} of 2 on \S+: 2 of 4 devices", out), out
    lead = outputs[0][0]
    assert re.search(r"preflight passed: 4 devices, \d+ features, replacement score \d\.\d{4}", lead), lead
    assert "passed" not in outputs[1][0]


def test_half_an_address_is_an_error(root):
    process = start(root, "--coordinator", "127.0.0.1:1")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "TCIRCUITS_PROCESS_ID" in error

"""The preflight as two processes on one machine, and what the TPU scripts ask of gcloud (a stand-in writes it down)."""

import os
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


SCRIPTS = [
    (
        ["create.sh", "v5litepod-16", "--spot"],
        "create slice --zone=zone-b --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot",
    ),
    (["create.sh", "v4-32"], "create slice --zone=zone-b --accelerator-type=v4-32 --version=tpu-ubuntu2204-base"),
    (["delete.sh"], "delete slice --zone=zone-b --quiet"),
]


@pytest.fixture
def gcloud(tmp_path):
    """A `gcloud` that appends its arguments to a file; environment to run a script with it."""
    program = tmp_path / "gcloud"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{tmp_path}/calls"\n')
    program.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")}
    return {**env, "PATH": f"{tmp_path}:{env['PATH']}", "TPU_NAME": "slice", "TPU_ZONE": "zone-b"}


def run_script(root, env, *command):
    return subprocess.run(
        ["bash", root / "tpu" / command[0], *command[1:]], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("command", "wanted"), SCRIPTS)
def test_scripts_call_gcloud_once(root, gcloud, tmp_path, command, wanted):
    done = run_script(root, gcloud, *command)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text() == f"compute tpus tpu-vm {wanted}\n"


def test_run_quotes_the_command_for_every_host(root, gcloud, tmp_path):
    done = run_script(
        root, {**gcloud, "TPU_PROJECT": "mine"}, "run.sh", "tcircuits", "trace", "it's a $HOME", "--out", "x"
    )
    assert done.returncode == 0, done.stderr
    call = (tmp_path / "calls").read_text()
    assert call.startswith(
        "compute tpus tpu-vm ssh slice --zone=zone-b --project=mine --worker=all --command=cd tcircuits"
    )
    program = call.split("TCIRCUITS_DISTRIBUTED=1 && ")[1]
    shown = subprocess.run(
        ["bash", "-c", f"printf '[%s]' {program}"], capture_output=True, text=True, check=True
    ).stdout
    assert shown == "[tcircuits][trace][it's a $HOME][--out][x]"


@pytest.mark.parametrize(
    ("drop", "command", "message"),
    [("TPU_NAME", ["delete.sh"], "TPU_NAME"), ("", ["run.sh"], "command"), ("", ["create.sh", "v99-8"], "TPU_IMAGE")],
)
def test_what_is_missing_is_said_and_nothing_is_called(root, gcloud, tmp_path, drop, command, message):
    done = run_script(root, {k: v for k, v in gcloud.items() if k != drop}, *command)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "calls").exists()

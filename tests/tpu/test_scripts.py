"""What the TPU scripts ask of gcloud (a stand-in writes it down), and a run that they bring to its end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.training_meshes import CFG
from tcircuits.transcoders.training import folder as run_folder
from tests.conftest import python_env

HERE = Path(__file__).parent
CALL = "compute tpus tpu-vm"
QUEUE = "compute tpus queued-resources"
AT = "slice --zone=zone-b"
SCRIPTS = [
    (
        ["create.sh", "v5litepod-16", "--spot"],
        [f"{CALL} create {AT} --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot"],
    ),
    (["create.sh", "v4-32"], [f"{CALL} create {AT} --accelerator-type=v4-32 --version=tpu-ubuntu2204-base"]),
    (
        ["create.sh", "v6e-16", "--queued", "--spot"],
        [f"{QUEUE} create {AT} --node-id=slice --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot"],
    ),
    (["delete.sh"], [f"{QUEUE} describe {AT} --format=value(state.state)", f"{CALL} delete {AT} --quiet"]),
]


@pytest.fixture
def gcloud(tmp_path):
    """The environment to run a script with the stand-in, whose folder is `tmp_path`."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{HERE / "gcloud.py"}" "$@"\n')
    program.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")}
    ours = {"PATH": f"{program.parent}:{env['PATH']}", "FAKE": str(tmp_path), "TPU_POLL": "0.05"}
    return env | ours | {"TPU_NAME": "slice", "TPU_ZONE": "zone-b"}


def run(root, env, *command, **options):
    words = ["bash", root / "tpu" / command[0], *command[1:]]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=300, **options)


def calls(env):
    """What gcloud was asked so far."""
    path = Path(env["FAKE"]) / "calls"
    return path.read_text().splitlines() if path.exists() else []


def ready(env):
    """A slice with the checkout on it."""
    (Path(env["FAKE"]) / "state").write_text("READY")
    for i in range(2):
        home = Path(env["FAKE"]) / f"host{i}" / "tcircuits"
        (home / ".venv/bin").mkdir(parents=True)
        (home / ".venv/bin/activate").write_text("")


@pytest.mark.parametrize(("command", "wanted"), SCRIPTS)
def test_scripts_call_gcloud(root, gcloud, command, wanted):
    done = run(root, gcloud, *command)
    assert done.returncode == 0, done.stderr
    assert calls(gcloud) == wanted


def test_run_quotes_the_command_for_every_host(root, gcloud):
    ready(gcloud)
    env = gcloud | {"TPU_PROJECT": "mine"}
    done = run(root, env, "run.sh", "printf", "[%s]", "it's a $HOME", "--out", "x")
    assert done.returncode == 0, done.stderr
    assert done.stdout == 2 * "[it's a $HOME][--out][x]"
    (call,) = calls(gcloud)
    assert call.startswith(f"{CALL} ssh {AT} --project=mine --worker=all --command=cd tcircuits")
    assert "TCIRCUITS_DISTRIBUTED=1" in call


def test_a_queued_slice_is_waited_for_and_deleted_with_its_request(root, gcloud):
    assert run(root, gcloud, "create.sh", "v5p-16", "--queued").returncode == 0
    done = run(root, gcloud, "wait.sh")
    assert done.returncode == 0, done.stderr
    assert "slice ABSENT, request WAITING_FOR_RESOURCES" in done.stderr
    assert run(root, gcloud, "delete.sh").returncode == 0
    assert calls(gcloud)[-1] == f"{QUEUE} delete {AT} --quiet --force"
    assert run(root, gcloud, "status.sh").stdout == "slice ABSENT\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "neither a slice nor a request"),
        ({"state": "PREEMPTED"}, "the slice ended"),
        ({"request": "FAILED"}, "the request ended"),
        ({"state": "CREATING"}, "still not there after 0 seconds"),
    ],
)
def test_a_slice_that_will_not_come(root, gcloud, tmp_path, files, words):
    for name, value in files.items():
        (tmp_path / name).write_text(value)
    done = run(root, gcloud | {"TPU_PATIENCE": "0"}, "wait.sh")
    assert done.returncode == 1
    assert words in done.stderr


def test_a_command_is_started_followed_and_not_started_twice(root, gcloud, tmp_path):
    ready(gcloud)
    assert run(root, gcloud, "status.sh").stdout.count("nothing is running") == 2
    words = ("bash", "-c", "echo it\\'s $TCIRCUITS_PROCESS_ID; while [ ! -e go ]; do sleep 0.05; done; exit 3")
    assert run(root, gcloud, "start.sh", *words).returncode == 0
    again = run(root, gcloud, "start.sh", *words)
    assert again.returncode == 3
    assert "one is running already" in again.stderr
    assert run(root, gcloud, "status.sh").stdout.count("running") == 2
    for i in range(2):
        (tmp_path / f"host{i}" / "tcircuits" / "go").touch()
    assert run(root, gcloud, "logs.sh", "1").stdout == "it's 1\n"
    assert run(root, gcloud, "logs.sh").stdout == "it's 0\n"
    assert run(root, gcloud, "status.sh").stdout.count("ended with exit code 3") == 2


def test_a_command_that_fails_by_itself_is_given_up(root, gcloud):
    ready(gcloud)
    done = run(root, gcloud | {"TPU_RETRIES": "1"}, "keep.sh", "v4-8", "--", "bash", "-c", "exit 7")
    assert done.returncode == 7
    assert done.stderr.count("on a slice that is there") == 1
    assert not [c for c in calls(gcloud) if " create " in c or " delete " in c]


@pytest.mark.slow
def test_a_run_whose_slice_is_taken_ends_as_one_that_was_not(root, gcloud, tmp_path):
    """Two real processes train; one is killed in the middle, the slice is made anew, the command goes on."""

    def kept(name, killed):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{s.getsockname()[1]}"
        joined = {"TCIRCUITS_COORDINATOR": place, "TCIRCUITS_NUM_PROCESSES": "2"}
        cheap = {
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        env = gcloud | python_env(1, **joined, **cheap) | {"PATH": gcloud["PATH"]}
        slice_ = ("v5litepod-8", "--queued", "--spot", "--")
        done = run(root, env, "keep.sh", *slice_, "python", HERE / "worker.py", tmp_path / name, killed)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    never = tmp_path / "never"
    never.touch()
    assert "taken" not in kept("whole", never).stderr
    assert kept("taken", tmp_path / "killed").stderr.count("the slice was taken: again") == 1
    assert (tmp_path / "killed").exists()
    made = [c for c in calls(gcloud) if " create " in c]
    assert len(made) == 2, "the first run's slice was used again, then another was asked for"
    whole, taken = (run_folder.read_metrics(tmp_path / name) for name in ("whole", "taken"))
    assert [row["step"] for row in taken] == [row["step"] for row in whole]
    assert [row["loss"] for row in taken] == [row["loss"] for row in whole]
    assert len(whole[0]["loss"]) == CFG.n_layers


@pytest.mark.parametrize(
    ("drop", "command", "message"),
    [
        ("TPU_NAME", ["delete.sh"], "TPU_NAME"),
        ("", ["run.sh"], "command"),
        ("", ["start.sh"], "command"),
        ("", ["keep.sh", "v4-8"], "then the command"),
        ("", ["keep.sh", "--", "python"], "then the command"),
        ("", ["create.sh", "v99-8"], "TPU_IMAGE"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_called(root, gcloud, drop, command, message):
    done = run(root, {k: v for k, v in gcloud.items() if k != drop}, *command)
    assert done.returncode != 0
    assert message in done.stderr
    assert calls(gcloud) == []

"""A stand-in for gcloud: writes down what it is asked, keeps a slice's state in files, runs ssh commands right here.

In the folder FAKE: `calls`, one line each; `state` of the slice and `request` of the queue, absent where there is none.
A queued request is answered after `POLLS` looks at it. A slice has two hosts, the folders `host0` and `host1`; where
one of their commands dies by a signal, the slice is taken: the other's is killed, the state is PREEMPTED.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

FAKE = Path(os.environ["FAKE"])
POLLS = 2
WORKER = "--worker="
COMMAND = "--command="


def told(name: str) -> str | None:
    path = FAKE / name
    return path.read_text() if path.exists() else None


def tell(name: str, value: str | None) -> None:
    (FAKE / name).unlink(missing_ok=True) if value is None else (FAKE / name).write_text(value)


def install() -> None:
    """What tpu/setup.sh leaves: a checkout with an environment on every host."""
    for i in range(2):
        home = FAKE / f"host{i}" / "tcircuits"
        (home / ".venv/bin").mkdir(parents=True, exist_ok=True)
        (home / ".venv/bin/activate").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")


def ssh(arguments: list[str]) -> int:
    worker = next(a.removeprefix(WORKER) for a in arguments if a.startswith(WORKER))
    command = next(a.removeprefix(COMMAND) for a in arguments if a.startswith(COMMAND))
    if "uv pip install" in command or '"$uv" pip install' in command:
        install()
        return 0
    hosts = range(2) if worker == "all" else [int(worker)]
    running = []
    for i in hosts:
        home = FAKE / f"host{i}"
        home.mkdir(exist_ok=True)
        env = os.environ | {"TCIRCUITS_PROCESS_ID": str(i)}
        running.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=env, start_new_session=True))
    while any(p.poll() is None for p in running):
        if any((p.poll() or 0) in (-9, 137) for p in running):
            tell("state", "PREEMPTED")
            for p in running:
                if p.poll() is None:
                    os.killpg(p.pid, 9)
        time.sleep(0.02)
    return max(abs(p.returncode) for p in running)


def queued(verb: str) -> int:
    if verb == "create":
        tell("request", "0")
    elif verb == "delete":
        tell("request", None)
        tell("state", None)
    else:
        polls = told("request")
        if polls is None:
            return 1
        ready = polls.isdecimal() and int(polls) >= POLLS
        print("ACTIVE" if ready else "WAITING_FOR_RESOURCES" if polls.isdecimal() else polls)
        if polls.isdecimal():
            tell("request", str(int(polls) + 1))
            if ready and told("state") is None:
                tell("state", "READY")
    return 0


def main(words: list[str]) -> int:
    with (FAKE / "calls").open("a") as file:
        file.write(" ".join(words) + "\n")
    *_, kind, verb = words[:4]
    if kind == "queued-resources":
        return queued(verb)
    if verb == "create":
        tell("state", "READY")
    elif verb == "delete":
        tell("state", None)
    elif verb == "describe":
        state = told("state")
        print(state or "", end="\n" if state else "")
        return 0 if state else 1
    elif verb == "ssh":
        return ssh(words[4:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

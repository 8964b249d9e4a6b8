"""Does a training run that was killed again and again end with the bits of one that was not?

    python -m experiments.training_resume

A run of a small random model goes on in a process of its own. It is killed (SIGKILL) `kills` times: while a checkpoint
is being written, while rows are being read for the next buffer, and at random moments, start-up among them; after each
kill it is started again. Where a kill fell is proven, not guessed: the process is stopped (SIGSTOP) first, and killed
only if the unfinished checkpoint, or the mark that the corpus sets while it is being read, is there.

Then what a disk does to a run: the newest checkpoint cut in half, both cut in half, a disk that is full for a while,
and one that stays full (a small file system in memory, in a name space of its own; Linux). Compared are all arrays of
the last checkpoint (weights, moments, counters), the dictionary's files, and the figures of every fill.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import ROOT, fresh, save, show
from tcircuits import checkpoint
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.models.params import init
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.training import folder
from tcircuits.transcoders.training.harvest import Fill
from tcircuits.transcoders.training.recipe import Objective, Optimizer, Recipe
from tcircuits.transcoders.training.run import Outcome, train
from tcircuits.transcoders.training.step import init_state
from tcircuits.types import InputError

CFG = ModelConfig("llama", 2, 16, 2, 1, 8, 32, 30, 32, rotary_dim=8)
FILL = Fill(context=17, rows=4, steps=4)
RECIPE = Recipe(
    TranscoderConfig("transcoder", 2, 16, 96, (0, 1), "batchtopk", skip=True),
    Objective(k=4, error="fvu", auxk=1 / 32, dead_after=300),
    Optimizer(lr=1e-2, warmup=20),
    batch=32,
    pre_bias=True,
)
EVERY = 2  # fills between checkpoints
MARK = "reading"


@dataclass(frozen=True)
class Config:
    """How often, and where."""

    saves: int = 7
    """Kills inside a save."""
    refills: int = 7
    """Kills while rows are read for a buffer."""
    anywhere: int = 6
    """Kills at random moments: every second one counted from the start of the process, the others while it trains."""
    fills: int = 240
    """Length of the run that is killed."""
    short: int = 24
    """Length of the runs on a bad disk, in fills."""
    pause_ms: int = 30
    """The corpus takes so long to read rows."""
    seed: int = 0
    """Of the random moments."""


class Numbers:
    """Rows that are a function of their number; `mark` exists while they are read."""

    def __init__(self, mark: Path | None = None, ms: int = 0):
        self.mark, self.ms = mark, ms

    def rows(self, first: int, n: int) -> np.ndarray:
        """Rows first .. first + n."""
        if self.mark is not None:
            self.mark.touch()
            time.sleep(self.ms / 1000)
        made = [np.random.default_rng(i).integers(0, CFG.d_vocab, FILL.context) for i in range(first, first + n)]
        if self.mark is not None:
            self.mark.unlink(missing_ok=True)
        return np.stack(made).astype(np.int32)

    def describe(self) -> dict[str, Any]:
        """What decides the rows."""
        return {"context": FILL.context, "vocabulary": CFG.d_vocab}


def small_model() -> Model:
    """Two layers of width 16, random."""
    return Model(CFG, init(CFG, jax.random.key(0)), None, "small")


def recipe(fills: int) -> Recipe:
    """The recipe for a run of so many fills."""
    return replace(RECIPE, steps=fills * FILL.steps)


def work(run: str, fills: int, ms: int = 0, watch: Any = lambda row: None) -> Outcome:
    """Train, or go on training."""
    corpus = Numbers(mark=Path(run) / MARK if ms else None, ms=ms)
    Path(run).mkdir(parents=True, exist_ok=True)
    return train(small_model(), recipe(fills), corpus, Path(run), fill=FILL, checkpoint_every=EVERY, watch=watch)


def begin(run: Path, fills: int, ms: int) -> subprocess.Popen:
    """`work` in a process of its own."""
    program = f"from experiments.training_resume import work; work({str(run)!r}, {fills}, {ms})"
    log = (run.parent / f"{run.name}.log").open("a")
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=log, stderr=log)


def log_of(run: Path) -> str:
    """The end of what a run's processes printed."""
    return (run.parent / f"{run.name}.log").read_text()[-2000:]


def unfinished(run: Path, since: float) -> list[str]:
    """Checkpoints that are being written, or were when their process died, but not what lay there before."""
    found = []
    for path in (run / "checkpoints").glob("*"):
        with suppress(FileNotFoundError):
            whole = path.name.isdecimal() and checkpoint.is_checkpoint(path)
            found += [path.name] if not whole and path.stat().st_mtime > since else []
    return found


def lines(run: Path) -> int:
    """Fills that the run has reported."""
    path = run / folder.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_when(process: subprocess.Popen, there: Any, skip: int) -> bool:
    """Kill while `there()` holds, for the `skip + 1`-th time; False where the process ended first."""
    before = False
    while process.poll() is None:
        now = bool(there())
        if now and not before:
            skip -= 1
        before = now
        if not now or skip >= 0:
            time.sleep(0.0005)
            continue
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.005)  # until every thread stands still
        if there():
            process.kill()
            process.wait()
            return True
        process.send_signal(signal.SIGCONT)
        before, skip = False, 0
    return False


def kill_at(process: subprocess.Popen, seconds: float) -> bool:
    """Kill after so long; False where the process ended first."""
    time.sleep(seconds)
    running = process.poll() is None
    process.kill()
    process.wait()
    return running


def kill(kind: str, process: subprocess.Popen, run: Path, rng: np.random.Generator, start: float) -> bool:
    """One kill of a kind."""
    if kind == "save":  # what a start removes counts as the first
        return kill_when(process, lambda: unfinished(run, start), int(rng.integers(1, 4)))
    if kind == "refill":
        return kill_when(process, (run / MARK).exists, int(rng.integers(0, 7)))
    if kind == "training":
        old = {p.name for p in folder.checkpoints(run)}
        while process.poll() is None and {p.name for p in folder.checkpoints(run)} <= old:
            time.sleep(0.002)
        return kill_at(process, float(rng.uniform(0, 0.8)))
    return kill_at(process, float(rng.uniform(0, 8)))


def killed(run: Path, cfg: Config) -> list[dict[str, Any]]:
    """Start and kill until all kills are done, then let the run end: a row for each kill."""
    rng = np.random.default_rng(cfg.seed)
    kinds = ["save"] * cfg.saves + ["refill"] * cfg.refills + ["start", "training"] * (cfg.anywhere // 2)
    rng.shuffle(kinds)
    found = []
    for kind in kinds:
        (run / MARK).unlink(missing_ok=True)
        before, start = lines(run), time.time()
        process = begin(run, cfg.fills, cfg.pause_ms)
        if not kill(kind, process, run, rng, start):
            raise RuntimeError(f"the run ended before its kill ({kind}): {log_of(run)}")
        newest = [int(p.name) for p in folder.checkpoints(run)][:1]
        row = {"aim": kind, "fills_before": before, "fills_after": lines(run), "newest": newest[0] if newest else 0}
        found.append(row | {"in_save": bool(unfinished(run, start)), "in_refill": (run / MARK).exists()})
        print(found[-1], flush=True)
    (run / MARK).unlink(missing_ok=True)
    if begin(run, cfg.fills, cfg.pause_ms).wait():
        raise RuntimeError(log_of(run))
    return found


def digests(run: Path, fills: int) -> dict[str, str]:
    """A hash for each array of the last state, each file of the dictionary, and the figures without their speed."""
    acts = jax.ShapeDtypeStruct((2, FILL.rows, CFG.d_model), jnp.float32)
    abstract = jax.eval_shape(partial(init_state, recipe(fills)), acts, acts)
    newest = folder.checkpoints(run)[0]
    state = checkpoint.load(newest, abstract)
    parts = {jax.tree_util.keystr(k): np.asarray(a).tobytes() for k, a in jax.tree.leaves_with_path(state)}
    files = (run / "transcoders").rglob("*")
    parts |= {str(p.relative_to(run)): p.read_bytes() for p in files if p.suffix == ".safetensors"}
    rows = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in folder.read_metrics(run)]
    parts |= {"figures": json.dumps(rows).encode(), "step": newest.name.encode()}
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}


def unequal(a: dict[str, str], b: dict[str, str]) -> list[str]:
    """Names of what differs."""
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def halve(path: Path) -> None:
    """Cut the largest file of a checkpoint in half."""
    data = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def said(run: Path, fills: int, watch: Any = lambda row: None) -> tuple[str, list[str]]:
    """How a run ended, and what it warned of (without its folder)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = work(str(run), fills, watch=watch)
            end = f"{outcome.status} at step {outcome.step}"
        except InputError as error:
            end = f"InputError: {error}"
    words = [str(w.message).replace(f"{run}/", "")[:160] for w in caught]
    return end.replace(f"{run}/", ""), words


def cut_checkpoints(home: str, fills: int) -> dict[str, Any]:
    """Runs whose newest one or two checkpoints are cut in half before they go on."""
    found, whole = {}, Path(home) / "whole"
    work(str(whole), fills)
    expected = digests(whole, fills)
    for name, count in (("newest_cut_in_half", 1), ("both_cut_in_half", 2)):
        run = Path(home) / name
        shutil.copytree(whole, run)
        shutil.rmtree(run / "transcoders")
        for path in folder.checkpoints(run)[:count]:
            halve(path)
        end, words = said(run, fills)
        found[name] = {"end": end, "said": words, "unequal": unequal(digests(run, fills), expected)}
    return found


def full_disk(home: str, fills: int, expected: dict[str, str]) -> dict[str, Any]:
    """Runs in a folder whose disk is filled after a third of them, and freed after two thirds, or after their end."""
    ballast, third, found = Path(home) / "ballast", fills // 3 * FILL.steps, {}

    def fill_up() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                os.fsync(file.fileno())

    def watch(frees: bool, row: dict[str, Any]) -> None:
        if row["step"] == third:
            fill_up()
        if frees and row["step"] == 2 * third:
            ballast.unlink()

    for name, frees in (("full_for_a_while", True), ("full_to_the_end", False)):
        run = Path(home) / name
        end, words = said(run, fills, partial(watch, frees))
        row = {"end": end, "said": len(words), "examples": words[:2], "kept": [p.name for p in folder.checkpoints(run)]}
        ballast.unlink(missing_ok=True)
        if not frees:
            row["after_it_was_freed"] = said(run, fills)[0]
        lacking = set(unequal(digests(run, fills), expected))
        found[name] = row | {"figures_complete": "figures" not in lacking, "unequal": sorted(lacking - {"figures"})}
        shutil.rmtree(run)
    return found


def on_a_small_disk(cfg: Config, expected: dict[str, str], megabytes: int = 8) -> dict[str, Any]:
    """`full_disk` in a file system of a few megabytes that only its process sees."""
    with tempfile.TemporaryDirectory() as place:
        program = (
            f"import json; from experiments.training_resume import full_disk; "
            f"print(json.dumps(full_disk({place!r}, {cfg.short}, {expected!r})))"
        )
        mounted = f'mount -t tmpfs -o size={megabytes}m none {place} && exec "$0" -c "$1"'
        command = ["unshare", "-rm", "sh", "-c", mounted, sys.executable, program]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main(cfg: Config) -> None:
    """Kill, compare, write."""
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "killed").mkdir()
        kills = killed(home / "killed", cfg)
        if begin(home / "whole", cfg.fills, 0).wait():
            raise RuntimeError(log_of(home / "whole"))
        apart = unequal(digests(home / "killed", cfg.fills), digests(home / "whole", cfg.fills))
        arrays = len(digests(home / "whole", cfg.fills))
        disks = fresh("experiments.training_resume", "cut_checkpoints", home=str(home / "disks"), fills=cfg.short)
        disks |= on_a_small_disk(cfg, digests(home / "disks" / "whole", cfg.short))
    figures = {
        "kills": len(kills),
        "in_save": sum(k["in_save"] for k in kills),
        "in_refill": sum(k["in_refill"] for k in kills),
        "compared": arrays,
        "unequal": apart,
        "equal": not apart,
        "where": kills,
        "disks": disks,
    }
    show("kills", kills)
    show("disks", [{"case": k, "end": v["end"][:60], "unequal": len(v["unequal"])} for k, v in disks.items()])
    print(f"{len(kills)} kills; unequal: {apart or 'nothing'} of {arrays}")
    save("training_resume", cfg, figures)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

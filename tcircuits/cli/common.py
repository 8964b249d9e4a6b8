"""What commands share: how options are repeated, JSON is printed, JAX is started, files are written."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import tyro

from tcircuits.types import InputError

Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
MODEL = "tiny"  # comes with the package, so every command works at once


def print_json(found: dict[str, Any]) -> None:
    """One object on one line; characters are escaped where the stream cannot show all of them."""
    everything = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(found, ensure_ascii=not everything))


def start_jax() -> None:
    """Join the other hosts of a run, if any, and keep compiled programs on disk, so that a second run is fast."""
    import jax

    from tcircuits.parallel import initialize

    folder = os.environ.get("TCIRCUITS_CACHE", str(Path.home() / ".cache" / "tcircuits"))
    jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    initialize()


def check_folder(path: Path, name: str) -> None:
    """Raise where a folder cannot be made or written, before anything is computed; nothing is left behind."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{name} {path} is a file; give a folder")
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as problem:
        raise InputError(f"{name} {path} cannot be written: {problem.strerror or problem}") from None


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)

"""Files that appear whole or not at all: written beside their place under another name, then renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tcircuits.types import InputError


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends without an error.

    Whatever goes wrong, `path` is as it was before and nothing else is left in its folder.

    Raises:
        InputError: `path` is a folder, its folder is missing, the disk is full, or the system refuses for another
            reason.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the path of a file")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # some systems tell only now that the disk is full
        os.replace(temporary, path)
    except BaseException as problem:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(problem, OSError) and not isinstance(problem, InputError):
            reason = problem.strerror or str(problem)
            raise InputError(
                f"cannot write {path}: {reason}; nothing was written, make room or choose another folder"
            ) from problem
        raise

"""Where the files of a set lie: a local folder or file, a folder on the hub, or a list of addresses.

A format sees names only, and gets a file when it needs it: of a repository with hundreds of variants nothing is
downloaded but what is loaded.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tcircuits.types import InputError

DEEP, MANY = 6, 100_000  # folders below each other, and files, beyond which nobody publishes dictionaries


class UnreachableError(InputError):
    """The hub cannot be reached, and what is asked for is not in the local cache."""


@dataclass(frozen=True)
class Place:
    """Files by name.

    Attributes:
        where: the folder, file or address, for messages.
        names: names of the files in it, with `/` between folders, sorted.
        get: the local path of one; downloads it where it must.
        single: whether it is one file that the caller named, not a folder.
        listed: whether its names are those of layers 0, 1 ..., in this order.
    """

    where: str
    names: tuple[str, ...]
    get: Callable[[str], Path]
    single: bool = False
    listed: bool = False

    def below(self, folder: str) -> tuple[str, ...]:
        """Names of the files directly in a folder of it ('' is its top), without the folder."""
        lead = f"{folder}/" if folder else ""
        rest = (name.removeprefix(lead) for name in self.names if name.startswith(lead))
        return tuple(name for name in rest if "/" not in name)


def local_place(path: Path) -> Place:
    """A folder with everything below it, or a single file.

    Raises:
        InputError: a folder that holds far more than dictionaries.
    """
    if path.is_file():
        return Place(str(path), (path.name,), lambda name: path.with_name(name), single=True)
    names: list[str] = []
    for folder, below, files in os.walk(path):
        inside = Path(folder).relative_to(path)
        below[:] = [] if len(inside.parts) >= DEEP else sorted(d for d in below if not d.startswith("."))
        names += [(inside / name).as_posix() for name in files if not name.startswith(".")]
        if len(names) > MANY:
            raise InputError(f"{path} has more than {MANY} files below it: give the folder of the dictionaries")
    return Place(str(path), tuple(sorted(names)), lambda name: path / name)

"""Arrays larger than the memory: pages of a file, of which the machine holds those that are used while there is room.

The file has no name and is gone with the array. On the CPU JAX takes the pages over as they are. Up to JAX 0.10 its
compiler widens bfloat16 arrays that a loop looks rows up in to float32, whole; so bfloat16 numbers are kept as their
bits, and a row is widened once it is read (`numerics.wide`).
"""

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.types import InputError


def check_scratch(folder: Path, dtype: Any, mesh: Any) -> None:
    """Raise where arrays cannot lie in files of a folder.

    Raises:
        InputError: devices other than one CPU, a dtype that rows are not widened from, no such folder.
    """
    wrong = []
    if mesh is not None or jax.default_backend() != "cpu":
        wrong.append("scratch is for one CPU device; elsewhere spread decoders over devices with a mesh")
    if np.dtype(dtype) not in (jnp.bfloat16, np.float32, np.float64):
        wrong.append(f"dtype={np.dtype(dtype).name} with scratch; give float32 or bfloat16")
    if not folder.is_dir():
        wrong.append(f"scratch={folder} is no folder; make it, on a disk with room for the decoders")
    if wrong:
        raise InputError("; ".join(wrong))


def in_file(folder: Path, shape: tuple[int, ...], dtype: Any, fill: Callable[[np.ndarray], None]) -> jax.Array:
    """An array in a file of `folder`, which `fill` writes; bfloat16 as uint16.

    Raises:
        InputError: the disk has no room for it.
    """
    wanted, size = np.dtype(dtype), math.prod(shape) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"decoders of the active features take {size / 1e9:,.1f} GB and {folder} has {free / 1e9:,.1f} GB free: "
            "give a scratch folder on another disk"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))  # a full disk is told here, not in the middle
        pages = np.asarray(np.memmap(file, np.uint8, "r+", shape=(size,)))
    fill(pages.view(wanted).reshape(shape))
    bits = np.uint16 if wanted == jnp.bfloat16 else wanted
    return jax.device_put(pages.view(bits).reshape(shape))

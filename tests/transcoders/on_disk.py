"""Sets that stay on disk, opened with a block of any size."""

from pathlib import Path
from typing import Any

from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.lazy import BLOCK_BYTES, LazyTranscoders, open_lazy
from tcircuits.transcoders.loading import open_source
from tcircuits.transcoders.opening import Opened
from tcircuits.transcoders.options import Options
from tcircuits.transcoders.saving import save_transcoders


def lazily(
    folder: Path, model: ModelConfig | None = None, dtype: Any = "float32", block_bytes: int = BLOCK_BYTES, **more: Any
) -> LazyTranscoders:
    """The set in a folder; `more` as for `open_lazy`."""
    opened = open_source(str(folder), model, Options())
    assert isinstance(opened, Opened)
    return open_lazy(opened, str(folder), dtype, block_bytes=block_bytes, **more)


def saved(transcoders: Any, folder: Path, block_bytes: int = BLOCK_BYTES) -> LazyTranscoders:
    """A set written to a new folder, and opened there."""
    save_transcoders(transcoders, folder)
    return lazily(folder, block_bytes=block_bytes)

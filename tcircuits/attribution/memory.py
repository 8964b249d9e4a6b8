"""Will a graph fit? An estimate before anything expensive is run."""

import os
from pathlib import Path

from tcircuits.models.config import ModelConfig
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.types import InputError

BYTES_PER_EDGE = 25  # int32 source and float32 weight; where zeros are taken out, both again and each edge's new place


LEAN_BYTES = 2e9
"""Patterns that would take more are not kept."""
CPU_ROWS, ROWS_BYTES = 4e9, 32e9
"""The same of decoder rows of active features, on CPUs and elsewhere: devices of a mesh would fetch them every time."""
STREAM_BYTES = 2.4e9
"""Of one array of streams, or cotangents, [T, B, D] that a sweep carries: some of them live at once."""


def lean(cfg: ModelConfig, d: TranscoderConfig, length: int, slots: int, platform: str) -> bool:
    """Whether patterns and decoder rows are made where they are used (`freeze(lean=)`): they would fill the memory."""
    pairs = 0 if d.kind == "neurons" else outputs(d)
    rows = 4.0 * pairs * length * slots * cfg.d_model
    patterns = 4.0 * cfg.n_layers * cfg.n_heads * length**2
    return patterns > LEAN_BYTES or rows > (CPU_ROWS if platform == "cpu" else ROWS_BYTES)


def outputs(d: TranscoderConfig) -> int:
    """Decoder matrices: pairs of a source and an output layer."""
    S = len(d.layers)
    return S * (S + 1) // 2 if d.kind == "clt" else S


def carried(cfg: ModelConfig, d: TranscoderConfig, slots: int) -> int:
    """Numbers that a sweep carries at a position for each target: its cotangent, and sums of cross-layer reads."""
    return cfg.d_model + (cfg.n_layers * slots if d.kind == "clt" else 0)


def streams(length: int, numbers: int) -> int:
    """How many streams of so many positions and numbers are carried together at most; a power of two, at least 8."""
    return max(8, 1 << int(STREAM_BYTES / (4.0 * length * numbers)).bit_length() >> 1)


def free_gb() -> float:
    """Memory that the machine can still give, in GB (Linux; elsewhere all physical memory)."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def graph_gb(n: int, n_layers: int, length: int) -> float:
    """Upper estimate for a graph of n features: a quarter of n^2 edges is causal and between different layers."""
    edges = n * n * (n_layers - 1) / max(2 * n_layers, 1) * (length + 1) / (2 * length)
    leaves = n * (n_layers * length + length)
    return (edges + leaves) * BYTES_PER_EDGE / 1e9


def check_memory(
    n: int, n_active: int | None, n_layers: int, length: int, limit: float | None, graphs: int = 1
) -> None:
    """Refuse graphs that cannot fit, with the number of features that would.

    Raises:
        InputError: the estimate is above the limit.
    """
    allowed = 0.6 * free_gb() if limit is None else limit
    need = graphs * graph_gb(n, n_layers, length)
    if need <= allowed:
        return
    fits = n
    while fits > 1 and graphs * graph_gb(fits, n_layers, length) > allowed:
        fits = int(fits * 0.9)
    what = f"{n:,}" if n_active is None else f"{n:,} of {n_active:,} active"
    raise InputError(
        f"expanding {what} features{f' of {graphs} prompts' if graphs > 1 else ''} takes about {need:,.1f} GB; "
        f"{allowed:,.1f} GB are allowed here: give max_features (about {fits:,} fit), the rest stays in the graph as "
        "leaves with exact sums"
    )

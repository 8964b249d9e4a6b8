"""Makes tests/golden/rival_folders/{tool}/{name}: dictionaries as SAELens 6.54.12 and sparsify 1.3.3 write them.

Run from the top of the repository, once for each tool, in environments of their own (`experiments.format_readers` says
how to make them):

    python -m tests.golden.make_rival_folders sae-lens
    python -m tests.golden.make_rival_folders sparsify

Each folder holds what the tool's own writer wrote, one folder a layer, and `reconstruction.npz`: inputs `x [L,T,D]`,
and in float64 features `f [L,T,F]` and outputs `y [L,T,D]` by the tool's own forward pass.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.rival_readers import TOOLS, Job

OUT = Path(__file__).parent / "rival_folders"
L, D, F, T = 2, 4, 12, 7
FOLDERS: dict[str, dict[str, tuple[dict[str, Any], str]]] = {
    "sae-lens": {
        "transcoder": ({"architecture": "transcoder"}, "float32"),
        "skip": ({"architecture": "skip_transcoder"}, "bfloat16"),
        "jumprelu": ({"architecture": "jumprelu_transcoder"}, "float32"),
        "jumprelu-skip": ({"architecture": "jumprelu_skip_transcoder"}, "float32"),
    },
    "sparsify": {
        "transcoder": ({"k": 3, "transcode": True}, "bfloat16"),
        "skip-transcoder": ({"k": 3, "transcode": True, "skip_connection": True}, "float32"),
        "skip-without-transcode": ({"k": 3, "skip_connection": True}, "float32"),
    },
}


def main(tool: str) -> None:
    """All folders of a tool."""
    for seed, (name, (switches, dtype)) in enumerate(FOLDERS[tool].items()):
        torch.manual_seed(seed)
        x = torch.randn(L, T, D, dtype=torch.float64)
        job = Job(name, "write", f"{tool}/{name}", tuple(range(L)), F, dtype, seed, switches)
        with torch.no_grad():
            done = TOOLS[tool][0](OUT, job, x)
        arrays = {"x": x.numpy(), "f": done.f.numpy(), "y": done.y.numpy()}
        np.savez_compressed(OUT / job.path / "reconstruction.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])

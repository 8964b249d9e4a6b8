"""Makes tests/golden/circuit_tracer_folders/*: dictionaries as circuit-tracer 0.5.0 writes and reconstructs them.

Run from the top of the repository, in the environment that `make_circuit_tracer.py` describes:

    python -m tests.golden.make_circuit_tracer_folders

Each folder holds the files of `to_safetensors`, a `config.yaml`, and `reconstruction.npz`: inputs `x [L,T,D]`, features
`f [L,T,F]` and outputs `y [L,T,D]`. circuit-tracer writes no skip of a cross-layer transcoder (release 0.5.0), so none
is here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder

OUT = Path(__file__).parent / "circuit_tracer_folders"
L, D, F, T = 3, 4, 12, 7
HOOKS = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}


def randomise(module: torch.nn.Module) -> None:
    """Fill all parameters with normals, thresholds with their absolute values."""
    for name, p in module.named_parameters():
        value = torch.randn(p.shape, dtype=torch.float32).to(p.dtype)
        p.data = value.abs() if name.endswith("threshold") else value


def per_layer(jumprelu: bool, skip: bool, dtype: torch.dtype) -> TranscoderSet:
    """A set of random per-layer transcoders."""
    layers = {}
    for i in range(L):
        function: Any = JumpReLU(torch.zeros(F, dtype=dtype), 0.1) if jumprelu else torch.nn.functional.relu
        layers[i] = SingleLayerTranscoder(D, F, function, i, skip, device=torch.device("cpu"), dtype=dtype)
    return TranscoderSet(layers, **HOOKS, scan="tiny")


def cross_layer(jumprelu: bool) -> CrossLayerTranscoder:
    """A random cross-layer transcoder."""
    name = "jump_relu" if jumprelu else "relu"
    place = torch.device("cpu")
    return CrossLayerTranscoder(L, F, D, name, False, False, False, **HOOKS, device=place, dtype=torch.float32)


def write(name: str, transcoder: Any) -> None:
    """The folder of one transcoder."""
    torch.manual_seed(len(name))
    randomise(transcoder)
    folder = OUT / name
    transcoder.to_safetensors(str(folder))
    clt = isinstance(transcoder, CrossLayerTranscoder)
    fields = {"model_name": "tiny", "model_kind": "cross_layer_transcoder" if clt else "transcoder_set", **HOOKS}
    (folder / "config.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    x = torch.randn(L, T, D)
    with torch.no_grad():
        f = transcoder.encode(x)
        y = transcoder.decode(f.to_sparse() if clt else f, x.to(f.dtype))
    assert y.shape == x.shape
    arrays = {"x": x, "f": f.float(), "y": y.float()}
    np.savez_compressed(folder / "reconstruction.npz", **{key: value.numpy() for key, value in arrays.items()})


def main() -> None:
    """All folders."""
    write("plt-relu", per_layer(False, False, torch.float32))
    write("plt-jumprelu-skip", per_layer(True, True, torch.float32))
    write("plt-skip-bfloat16", per_layer(False, True, torch.bfloat16))
    write("clt-relu", cross_layer(False))
    write("clt-jumprelu", cross_layer(True))


if __name__ == "__main__":
    main()

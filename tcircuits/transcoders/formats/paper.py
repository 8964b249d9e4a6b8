"""The transcoder paper's own checkpoints: a pickled configuration and `state_dict` in a PyTorch file.

    f = relu((x - b_dec) W_enc + b_enc),    y = f W_dec + b_dec_out

with W_enc [D,F], W_dec [F,D]: `b_dec` is subtracted from the input. Without `b_dec_out`, `b_dec` is also added to the
output: so that code computes an autoencoder. Files are named
`{final|n_tokens}_sparse_autoencoder_{model}_blocks.{layer}.{site}_{F}.pt` (or .pkl, .pkl.gz), and beside each lies
`..._log_feature_sparsity.pt`, log10 of how often each feature is on. Source: Dunefsky et al. 2024 (arXiv 2406.11944),
github.com/jacobdunefsky/transcoder_circuits.

They were trained on a model whose norms are folded and whose writing weights are centred: they read the normalised
stream before gain and bias, which is the same in a raw model, and miss the mean over dimensions of what the MLP writes,
which no LayerNorm sees.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.opening import open_tensors
from tcircuits.transcoders.formats.found import Layout, Said, Unit, Units
from tcircuits.transcoders.formats.hooks import READS, WRITES, site_of
from tcircuits.transcoders.formats.place import Place
from tcircuits.transcoders.options import Options
from tcircuits.types import InputError

NAME = "transcoder_circuits"
SPARSITY = "_log_feature_sparsity"
FILE = r"(?:.*/)?[^/]*blocks\.(\d{1,4})\.[^/]*\.(?:pt|pth|pkl|pkl\.gz)"


def _about(about: Any, problems: list[str]) -> tuple[int | None, Said]:
    """What the pickled configuration says."""
    cfg = about.get("cfg") if isinstance(about, dict) else None
    if not isinstance(cfg, dict):
        return None, Said(reads="normalized", writes="mlp_out", activation="relu")
    layer, reads = site_of(cfg.get("hook_point"), READS)
    target, writes = site_of(cfg.get("out_hook_point"), WRITES)
    if cfg.get("is_transcoder") is False:
        problems.append(f"it is a sparse autoencoder of {cfg.get('hook_point')!r}, not a transcoder")
    elif reads is None or writes is None:
        problems.append(
            f"it reads {cfg.get('hook_point')!r} and writes {cfg.get('out_hook_point')!r}; read are "
            f"blocks.LAYER.{{{', '.join(READS)}}} and blocks.LAYER.{{{', '.join(WRITES)}}}"
        )
    elif layer != target:
        problems.append(f"it reads layer {layer} and writes layer {target}; only one layer's MLP can be replaced")
    d_in, d_out = cfg.get("d_in"), cfg.get("d_out")
    if None not in (d_in, d_out) and d_in != d_out:
        problems.append(f"it reads {d_in!r} dimensions and writes {d_out!r}; an MLP has as many of both")
    model = cfg.get("model_name")
    return layer, Said("transcoder", reads, writes, "relu", model=model if isinstance(model, str) else None)


def _named(biases: Mapping[str, tuple[str, str]], prefix: str = "state_dict.") -> Layout:
    tensors = {"W_enc": ("w_enc", "DF"), "b_enc": ("b_enc", "F"), "W_dec": ("w_dec", "FD"), **biases}
    return Layout(NAME, {prefix + theirs: ours for theirs, ours in tensors.items()}, about=_about)


_BIASES = {"b_dec": ("pre_bias", "D"), "b_dec_out": ("b_dec", "D")}
LAYOUT = _named(_BIASES)
ONE_BIAS = _named({"b_dec": ("b_dec+pre_bias", "D")})
BARE = _named(_BIASES, "")  # the state dict alone


def marks(name: str) -> bool:
    """Whether a file of this name is one of the paper's."""
    return re.fullmatch(FILE, name) is not None and SPARSITY not in name


def find(place: Place, options: Options, problems: list[str]) -> Units | None:
    """The layers of a folder of the paper's files."""
    names = [(int(match[1]), name) for name in place.names if marks(name) and (match := re.fullmatch(FILE, name))]
    units = tuple(Unit(layer, ((name, ()),)) for layer, name in names)
    return Units(NAME, "transcoder", units)


def log_frequency(path: str | os.PathLike[str]) -> np.ndarray:
    """How often each feature is on, as log10 of the share of tokens: a `_log_feature_sparsity.pt` file, [F].

    Both published forms are read: the bare tensor, and a pickled `{"freqs": tensor}`. Dead features have -10.

    Raises:
        InputError: a file that is damaged, or holds anything but one such tensor.
    """
    file = open_tensors(Path(path))
    names = [name for name, header in file.headers.items() if len(header.shape) == 1]
    if len(file.headers) != 1 or len(names) != 1:
        raise InputError(f"{path} holds {', '.join(file.headers) or 'no tensors'}; it must be one tensor [F]")
    value = file.read(names[0], None).astype(np.float32)
    return np.log10(value + 1e-10) if (value >= 0).all() and "freqs" in names[0] else value

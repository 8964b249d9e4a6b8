"""GGUF files: dequantised, renamed, and with their conventions undone, so that they look like a published folder.

Files of architecture `llama` store the rows of queries and keys for interleaved rotary pairs (2i, 2i + 1); ours are
half-split pairs (i, i + K/2). Those of Gemma store the gains of norms, where a folder has their distance from one.
"""

import math
from pathlib import Path

import numpy as np

from tcircuits.files.tensor_file import Header
from tcircuits.models.gguf_architectures import architecture_of, config_of
from tcircuits.models.gguf_header import TensorInfo, read_header
from tcircuits.models.gguf_tokenizers import from_gguf
from tcircuits.models.source import Source, need
from tcircuits.types import InputError


def half_split(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows [n_heads * K, ...] from interleaved rotary pairs to half-split ones."""
    return w.reshape(n_heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def open_gguf(path: Path, name: str | None = None) -> Source:
    """A GGUF file.

    Raises:
        InputError: it is damaged or cut off, or of another architecture; the package `gguf` is missing.
    """
    gguf = need("gguf", "'tcircuits[demo]' (or gguf)")

    def n_bytes(t: TensorInfo) -> int:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(t.kind)]
        if not t.shape or t.shape[-1] % block:
            raise InputError(f"{t.name:.60} has shape {t.shape!s:.80}, no multiple of the {block} values of a block")
        return math.prod(t.shape) // block * size

    fields, stored = read_header(path, n_bytes)
    data = np.memmap(path, np.uint8, "r")

    def dequantised(t: TensorInfo) -> np.ndarray:
        raw, kind = data[t.start : t.start + n_bytes(t)], gguf.GGMLQuantizationType(t.kind)
        whole = {"F32": np.float32, "F16": np.float16}.get(kind.name)
        return np.asarray(raw).view(whole or np.uint8) if whole else gguf.dequantize(np.asarray(raw), kind)

    freqs = stored.pop("rope_freqs.weight", None)
    try:
        about = architecture_of(fields)
        tensors = {about.hf_name(old): t for old, t in stored.items()}
        headers = {new: Header(t.shape, "F32") for new, t in tensors.items()}
        config = config_of(fields, headers, None if freqs is None else dequantised(freqs))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    heads = config.get("num_attention_heads")
    rotated = {".q_proj.": heads, ".k_proj.": config.get("num_key_value_heads") or heads} if about.interleaved else {}

    def read(tensor: str) -> np.ndarray:
        w = dequantised(tensors[tensor]).reshape(tensors[tensor].shape)
        if about.gain_offset and tensor.endswith("norm.weight"):
            return w.astype(np.float64) - about.gain_offset  # in float64, where adding it again gives the same number
        n_heads = next((n for part, n in rotated.items() if part in tensor), None)
        return w if n_heads is None else half_split(w, n_heads)

    return Source(name or path.stem, str(path), config, headers, read, lambda: from_gguf(fields))

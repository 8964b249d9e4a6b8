"""What is in a graph file of circuit-tracer (`Graph.to_pt`), checked; read without PyTorch, nothing of it is run.

The file is a pickled dict in PyTorch's zip. Its keys, of all times:

| key | value |
|---|---|
| `adjacency_matrix` | [N, N] edges, rows targets, columns sources: features, errors by layer, tokens, targets |
| `active_features` | [A, 3] layer, position, feature; `activation_values` [A], absent or None: not known |
| `selected_features` | [n] rows of `active_features` that are nodes; absent: all |
| `logit_targets` | named tuples (text, id); for a while a tensor of ids; before that `logit_tokens`, such a tensor |
| `logit_probabilities` | [k] |
| `input_string`, `input_tokens` | the prompt, and its ids [T] |
| `vocab_size` | an id from here on is no token, but a direction; absent: `cfg.d_vocab` |
| `cfg` | the model's configuration, an instance of one of several classes |
| `scan` | name of the dictionaries, a list of names, or None; later `scan_name` |
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.attribution.graph_check import raise_problems
from tcircuits.files import torch_zip, zip_archive
from tcircuits.files.opening import open_tensors
from tcircuits.files.storage import MalformedError, of_file
from tcircuits.files.strided import DTYPES
from tcircuits.files.tensor_file import TensorFile

FLOATS, INTEGERS = ("F64", "F32", "F16", "BF16"), ("I64", "I32")
TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "adjacency_matrix": (FLOATS, ("N", "N")),
    "active_features": (INTEGERS, ("A", "3")),
    "input_tokens": (INTEGERS, ("T",)),
    "logit_probabilities": (FLOATS, ("k",)),
    "selected_features": (INTEGERS, ("n",)),
    "activation_values": (FLOATS, ("A",)),
    "logit_targets": (INTEGERS, ("k",)),
    "logit_tokens": (INTEGERS, ("k",)),
}
OPTIONAL = ("selected_features", "activation_values", "logit_targets", "logit_tokens")
IDS = ("logit_targets", "logit_tokens")
FAILED = "of circuit-tracer cannot be loaded"


@dataclass(frozen=True)
class Saved:
    """The contents of a file; floats as wide as the file has them, halves as float32.

    Attributes:
        targets: text ("" where the file has none) and id of each target.
        active, selected: [A, 3] and [n], as in the file.
        activations: [A], or None.
        matrix: [N, N] in the file's own type.
    """

    model: str
    tokenizer: str | None
    prompt: str
    scan: str | list[str] | None
    n_layers: int
    d_vocab: int
    targets: list[tuple[str, int]]
    probabilities: np.ndarray
    tokens: np.ndarray
    active: np.ndarray
    selected: np.ndarray
    activations: np.ndarray | None
    matrix: np.ndarray


def is_saved_by_torch(path: str | Path) -> bool:
    """Whether a file is a zip archive of PyTorch's, whatever is in it; False where it cannot be read."""
    try:
        return torch_zip.is_torch(zip_archive.members(of_file(Path(path)), None))
    except (MalformedError, OSError):
        return False


def read_saved(path: str | Path) -> Saved:
    """Everything in a file; sizes are compared before anything large is read.

    Raises:
        InputError: no such file, damaged, foreign or hostile (all problems in one message).
    """
    file = open_tensors(path)
    about = file.about if isinstance(file.about, Mapping) else {}
    raise_problems(path, FAILED, [*_value_problems(file, about), *_tensor_problems(file)])
    listed = _listed(file, about)
    raise_problems(path, FAILED, _size_problems(file, about["cfg"]["n_layers"], listed))

    def integers(name: str) -> np.ndarray:
        return file.read(name, None).astype(np.int64)

    active, tokens = integers("active_features"), integers("input_tokens")
    selected = integers("selected_features") if "selected_features" in file.headers else np.arange(len(active))
    raise_problems(path, FAILED, _outside("selected_features", selected, len(active)))
    targets = listed or [("", int(i)) for name in IDS if name in file.headers for i in integers(name)]
    if not targets:
        raise_problems(path, FAILED, [f"it names no targets ({' or '.join(IDS)})"])
    known = "activation_values" in file.headers
    cfg = about["cfg"]
    return Saved(
        model=_text(cfg.get("model_name")) or "unknown",
        tokenizer=_text(cfg.get("tokenizer_name")),
        prompt=about["input_string"],
        scan=_scan(about),
        n_layers=cfg["n_layers"],
        d_vocab=_d_vocab(about),
        targets=targets,
        probabilities=wide(file.read("logit_probabilities", None)),
        tokens=tokens,
        active=active,
        selected=selected,
        activations=wide(file.read("activation_values", None)) if known else None,
        matrix=file.read("adjacency_matrix", None),
    )


def wide(x: np.ndarray) -> np.ndarray:
    """The same numbers in float32, in float64 where they are."""
    return x.astype(np.float64 if x.dtype == np.float64 else np.float32)


def _text(x: Any) -> str | None:
    return x if isinstance(x, str) else None


def _is_count(x: Any) -> bool:
    return type(x) is int and 1 <= x < 2**31


def _scan(about: Mapping[str, Any]) -> Any:
    return about.get("scan_name", about.get("scan"))


def _d_vocab(about: Mapping[str, Any]) -> Any:
    return about["cfg"].get("d_vocab") if about.get("vocab_size") is None else about["vocab_size"]


def _value_problems(file: TensorFile, about: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the values beside the tensors."""
    if isinstance(cfg := about.get("cfg"), Mapping):
        for name, x in (("cfg.n_layers", cfg.get("n_layers")), ("the size of the vocabulary", _d_vocab(about))):
            if not _is_count(x):
                yield f"{name} is {x!r:.40}; it must be a whole number from 1 on"
    else:
        yield "it has no 'cfg', the model's configuration"
    if not isinstance(about.get("input_string"), str):
        yield "it has no text 'input_string'"
    if not isinstance(scan := _scan(about), str | None) and not _all_text(scan):
        yield f"scan is {scan!r:.60}; it must be a name, a list of names, or None"
    if not any(name in file.headers for name in IDS):
        listed = about.get("logit_targets")
        if not isinstance(listed, list) or None in map(_target, listed):
            yield "it has no logit_targets, neither a list of (text, id) nor a tensor of ids"


def _all_text(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(text, str) for text in x)


def _target(x: Any) -> tuple[str, int] | None:
    """A target as a named tuple, which is an object with arguments here, or as a plain one; None for other values."""
    match x.get("__args__") if isinstance(x, Mapping) else x:
        case [str(text), int(number)] if 0 <= number < 2**31:
            return text, number
    return None


def _listed(file: TensorFile, about: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Targets that the file lists with their texts; none where it has a tensor of ids."""
    if any(name in file.headers for name in IDS):
        return []
    return [found for x in about["logit_targets"] if (found := _target(x)) is not None]


def _tensor_problems(file: TensorFile) -> Iterator[str]:
    """Tensors that are missing, of other types or axes; and all of them take no more memory than the file has bytes."""
    missing = [name for name in TENSORS if name not in file.headers and name not in OPTIONAL]
    if missing:
        yield f"tensors are missing: {', '.join(missing)}"
    total = 0
    for name, (dtypes, axes) in TENSORS.items():
        if (header := file.headers.get(name)) is None:
            continue
        total += math.prod(header.shape) * DTYPES[header.dtype].itemsize
        if header.dtype not in dtypes or len(header.shape) != len(axes):
            wanted = f"{' or '.join(dtypes)} of shape [{', '.join(axes)}]"
            yield f"{name} is {header.dtype} of shape {list(header.shape)}; it must be {wanted}"
    if total > (room := file.path.stat().st_size):
        yield f"its tensors would take {total} bytes, more than the {room} of the file"


def _size_problems(file: TensorFile, n_layers: int, listed: list[tuple[str, int]]) -> Iterator[str]:
    """Tensors whose sizes contradict each other or the configuration."""
    headers = file.headers
    T, k, A = (headers[name].shape[0] for name in ("input_tokens", "logit_probabilities", "active_features"))
    n = headers["selected_features"].shape[0] if "selected_features" in headers else A
    sizes = {"N": n + (n_layers + 1) * T + k, "A": A, "3": 3, "T": T, "k": k, "n": n}
    for name, (_, axes) in TENSORS.items():
        wanted = [sizes[axis] for axis in axes]
        if name in headers and list(headers[name].shape) != wanted:
            yield f"{name} has shape {list(headers[name].shape)}; it must be [{', '.join(axes)}] = {wanted}"
    if listed and len(listed) != k:
        yield f"it has {len(listed)} targets and {k} probabilities"
    if k < 1:
        yield "it has no targets"
    if n > A:
        yield f"it has {n} selected features, and {A} active ones"


def _outside(name: str, x: np.ndarray, end: int) -> Iterator[str]:
    if len(x) and (int(x.min()) < 0 or int(x.max()) >= end):
        yield f"{name} is in {int(x.min())}..{int(x.max())}; it must be in 0..{end - 1}"

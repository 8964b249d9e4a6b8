"""Rows to evaluate on, from what a person names: rows in a .npy file, a folder of tokens, or text."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tcircuits.files.opening import open_tensors
from tcircuits.models.model import Model
from tcircuits.types import InputError

Part = Literal["all", "held_out"]


@contextmanager
def open_rows(source: str, model: Model, *, context: int = 128, part: Part = "all", seed: int = 0) -> Iterator[Any]:
    """Rows for `evaluate`, while the context lasts (a text's tokens are in a temporary folder).

    Args:
        source: `rows.npy` (token ids [n, T], whose T is the context), a folder that `tokenize` wrote, or a text file,
            folder or data set that `tcircuits.data.open_text` reads.
        model: whose tokens they must be.
        context: tokens of a row.
        part: `held_out` takes the documents that training leaves out.
        seed: of the order of rows.

    Raises:
        InputError: nothing there, tokens of another model, text too short for one row.
    """
    from tcircuits.data.rows import Rows
    from tcircuits.data.text import open_text
    from tcircuits.data.tokenizing import check_tokenizer, tokenize
    from tcircuits.data.tokens import is_token_file, open_tokens

    if source.endswith(".npy"):
        if part != "all":
            raise InputError(f"{source} has rows and no documents, so none of them is held out: use part='all'")
        yield _array(Path(source))
        return
    if is_token_file(source):
        tokens = open_tokens(source)
        check_tokenizer(tokens, model)
        yield Rows(tokens, context, seed, part)
        return
    with tempfile.TemporaryDirectory() as folder:
        tokens = tokenize(open_text([source]), model, Path(folder) / "text.tokens")
        yield Rows(tokens, context, seed, part)


def parse_sets(texts: tuple[str, ...], layers: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """Sets of layers as the command line writes them: `each`, `all`, `0,3`, `2-5`; None where nothing is said.

    Raises:
        InputError: another form.
    """
    if not texts:
        return None
    out: list[tuple[int, ...]] = []
    for text in texts:
        if text == "each":
            out += [(layer,) for layer in layers]
        else:
            out.append(layers if text == "all" else parse_layers(text))
    return out


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers as the command line writes them: `0,3` or `2-5`.

    Raises:
        InputError: another form.
    """
    try:
        ends = [[int(x) for x in part.split("-")] for part in text.split(",")]
        if any(len(e) > 2 or e[0] > e[-1] for e in ends):
            raise ValueError
    except ValueError:
        raise InputError(f"--layers {text!r}: write all, 0,3 or 2-5 (eval also takes each)") from None
    return tuple(i for e in ends for i in range(e[0], e[-1] + 1))


def _array(path: Path) -> np.ndarray:
    try:
        if list(open_tensors(path).headers) != [""]:  # its header fits its length
            raise InputError("it is no array alone; save the one array as .npy")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, InputError) as problem:
        raise InputError(f"{path} cannot be read as rows of token ids: {problem}") from None

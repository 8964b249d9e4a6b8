"""A checkpoint that is open but not read: configuration and headers now, tensors one by one later.

Every kind of file becomes a `Source` that looks like a published safetensors checkpoint: raw `config.json` fields and
tensors under the names of `layout`. So one assembler checks and fills parameters for all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from tcircuits.files.tensor_file import Header
from tcircuits.models.tokenizers import Tokenizer
from tcircuits.types import InputError


@dataclass(frozen=True)
class Source:
    """An open checkpoint.

    Attributes:
        name: how people call it.
        where: the file or folder, for messages.
        config: raw fields, as in a `config.json`.
        headers: all tensors in it.
        read: one tensor, by name.
        tokenizer: makes the tokenizer; None where there is none.
    """

    name: str
    where: str
    config: Mapping[str, Any]
    headers: Mapping[str, Header]
    read: Callable[[str], np.ndarray]
    tokenizer: Callable[[], Tokenizer | None]


def need(module: str, install: str) -> Any:
    """An optional package, imported when it is first needed.

    Raises:
        InputError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"this needs the package {module!r}: pip install {install}") from error

"""The glossary of axis letters, and array aliases. Imports nothing of ours.

One letter an axis, the same in signatures, comments and einsum strings:

| letter | axis | letter | axis |
|---|---|---|---|
| B | batch of prompts | V | vocabulary |
| T | token position (queries, destinations) | M | MLP neurons |
| S | token position attended to (keys, sources) | F | features of a dictionary |
| L | layer | C | slots for active features at one layer and position |
| D | model width (residual stream) | N | targets (rows of the attribution matrix) |
| H | attention heads | W | source columns of the attribution matrix |
| G | key/value heads | P | (source layer, output layer) pairs of decoders |
| R | query heads per key/value head | Q | chunks of targets |
| K | width of one head | E | edits |
"""

from collections.abc import Callable

from jaxtyping import Array, Bool, Float, Int

__all__ = ["Array", "Bool", "Callable", "Float", "InputError", "Int"]


class InputError(ValueError):
    """What was given cannot be used: the message says what it was, what is allowed and what to do. Exit code 2."""

"""Ways to name what is to be explained: tokens, differences of logits, directions, features, at any position.

>>> parse("feature:3/-1/1005")
Feature(layer=3, position=-1, index=1005)
>>> listed([" Paris", Difference(" Paris", " London")], position=-1)
[Logit(token=' Paris', position=-1), Difference(plus=' Paris', minus=' London', position=-1)]
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcircuits.files.opening import open_tensors
from tcircuits.types import InputError


@dataclass(frozen=True)
class Logit:
    """The demeaned logit of one token (id, or a text that is one token)."""

    token: int | str
    position: int = -1


@dataclass(frozen=True)
class Difference:
    """The logit of `plus` minus that of `minus`."""

    plus: int | str
    minus: int | str
    position: int = -1


@dataclass(frozen=True)
class Direction:
    """A vector [D] read at the final norm's output, like an unembedding column."""

    vector: Any
    label: str = "direction"
    position: int = -1


@dataclass(frozen=True)
class Feature:
    """The activation of one feature."""

    layer: int
    position: int
    index: int


Spec = Logit | Difference | Direction | Feature | int | str


def place(position: int, length: int) -> int:
    """A position counted from the start; negative ones count from the end.

    Raises:
        InputError: outside the prompt.
    """
    if not -length <= position < length:
        raise InputError(f"position {position} is outside the prompt of {length} tokens ({-length}..{length - 1})")
    return position % length


def token_id(model: Any, token: int | str) -> int:
    """The id of a target token: of the one that reads exactly so, else of the one that the text becomes.

    Tokenizers that put a space before a text have " 95" for "95", which is not what follows "17".

    Raises:
        InputError: an id outside the vocabulary, or a text that is not exactly one token.
    """
    if isinstance(token, str):
        ids = model.encode(token)
        if len(ids) == 1 and model.token(ids[0]) == token:
            return int(ids[0])
        exact = next((i for i in range(model.cfg.d_vocab) if model.token(i) == token), None)
        if exact is not None:
            return exact
        if len(ids) != 1:
            parts = ", ".join(repr(model.token(i)) for i in ids)
            raise InputError(
                f"target {token!r} is {len(ids)} tokens ({parts}), not one; mind the leading space, or give an id"
            )
        return int(ids[0])
    if not 0 <= int(token) < model.cfg.d_vocab:
        raise InputError(f"target token id {token} is outside the vocabulary 0..{model.cfg.d_vocab - 1}")
    return int(token)


def listed(specs: Any, position: int) -> list[Logit | Difference | Direction | Feature] | None:
    """What the caller asked to explain, as a list; tokens stand at `position`. None stays None.

    Raises:
        InputError: an empty list, or something that is no target.
    """
    if specs is None:
        return None
    given = [specs] if isinstance(specs, Spec | np.integer) else list(specs)
    if not given:
        raise InputError("targets is an empty list; give at least one, or None for the top logits")
    wrong = [s for s in given if not isinstance(s, Spec | np.integer)]
    if wrong:
        raise InputError(
            f"{wrong[0]!r:.80} is no target: give a token, a text, Logit, Difference, Direction or Feature"
        )
    given = [int(s) if isinstance(s, np.integer) else s for s in given]
    return [Logit(s, position) if isinstance(s, int | str) else s for s in given]


def check(model: Any, specs: Any, position: int, length: int) -> None:
    """Raise for targets that do not exist, before the model is run. Which features are active only a run can say.

    Raises:
        InputError: a position, token, direction or layer that the prompt or the model does not have.
    """
    place(position, length)
    for spec in listed(specs, position) or []:
        place(spec.position, length)
        if isinstance(spec, Feature) and not 0 <= spec.layer < model.cfg.n_layers:
            raise InputError(f"feature target in layer {spec.layer}: the model has layers 0..{model.cfg.n_layers - 1}")
        if isinstance(spec, Direction):
            checked_direction(spec.vector, model.cfg.d_model)
        if isinstance(spec, Logit):
            token_id(model, spec.token)
        if isinstance(spec, Difference):
            token_id(model, spec.plus), token_id(model, spec.minus)


def parse(text: str) -> Spec:
    """A target as the command line writes it: a token, `feature:L/POS/IDX` or `direction:FILE.npy`.

    Raises:
        InputError: a malformed feature, or a file that is no vector.
    """
    if text.startswith("feature:"):
        try:
            layer, pos, index = (int(part) for part in text.removeprefix("feature:").split("/"))
        except ValueError:
            raise InputError(
                f"target {text!r}: write feature:LAYER/POSITION/INDEX, for example feature:3/-1/1005"
            ) from None
        return Feature(layer, pos, index)
    if text.startswith("direction:"):
        path = text.removeprefix("direction:")
        return Direction(_vector(text, path), path)
    return text


def _vector(text: str, path: str) -> np.ndarray:
    """The one array of a `.npy` file."""
    try:
        file = open_tensors(path)
        if list(file.headers) != [""]:
            raise InputError("it is no array alone; save the one array as .npy")
        return np.asarray(file.read("", None))
    except InputError as problem:
        raise InputError(f"target {text!r}: cannot read a vector from {path}: {problem}") from None


def checked_direction(vector: Any, d_model: int) -> np.ndarray:
    """A direction as a float vector.

    Raises:
        InputError: no numbers, another shape, or values that are not finite.
    """
    out = np.asarray(vector)
    if out.dtype.kind not in "iuf" or out.shape != (d_model,) or not np.isfinite(out).all():
        what = f"has shape {out.shape} and type {out.dtype}"
        raise InputError(f"a direction {what}; it must be {d_model} finite real numbers (d_model)")
    return out.astype(np.float64)

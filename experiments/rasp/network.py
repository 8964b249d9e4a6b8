"""A compiled program as one of our models, and as a behaviour: every position of every input is a question.

Every program is made to choose. The output space of a categorical one has a direction for each value, and its logits
are `SHARP` times what is written there. A numerical one writes a number x; its logits, linear in x,

    logit of value v = SHARP / gap^2 (2 x v - v^2)            gap: the smallest distance of two values

choose the nearest of all values that the program ever gives, and say nearly as surely which. Tokens of the input and
values of the output are one vocabulary, tokens first; tokens are never chosen.
"""

import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.rasp.compile import FOLDER, KIND, VERSION
from tcircuits.files.record import read_record
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.models.params import Attention, Block, Mlp, Params
from tcircuits.tasks.behaviour import SPLITS, Behaviour, Prompts
from tcircuits.types import Array, Bool, Float, InputError, Int

SHARP = 10.0  # e^-10 of the probability goes to each other value
NEVER = -1e4  # the logit of tokens that are no values
WEIGHTS = ("embed", "pos_embed", "w_q", "w_k", "w_v", "w_o", "w_in", "w_out", "unembed")


@dataclass(frozen=True)
class Sizes:
    """Of a model that holds a network: the rest of its arrays is zero."""

    d_model: int
    d_head: int
    d_mlp: int
    vocab: int
    choices: int


@dataclass(frozen=True)
class Network:
    """A compiled program.

    Attributes:
        name: of the program.
        weights: by name, layers leading; no biases.
        tokens: all inputs, the beginning-of-sequence token first, [N, T].
        outputs: what the compiler's own model writes to the output space on them, [N, T, O].
        vocab: tokens by id.
        values: of a categorical program's output directions; () for a numerical one.
        answers: what the interpreter says of each input, None where it says nothing: [N][T - 1].
        labels: of the residual stream's dimensions.
        causal: queries see no later keys.
        sizes: of its model; None is what it needs.
    """

    name: str
    weights: dict[str, np.ndarray]
    tokens: Int[np.ndarray, "N T"]
    outputs: Float[np.ndarray, "N T O"]
    vocab: tuple[Any, ...]
    values: tuple[Any, ...]
    answers: tuple[tuple[Any, ...], ...]
    labels: tuple[str, ...]
    causal: bool
    sizes: Sizes | None = None

    @property
    def need(self) -> Sizes:
        """The sizes that its model has at least."""
        w = self.weights
        return Sizes(w["embed"].shape[1], w["w_q"].shape[-1], w["w_in"].shape[-1], len(self.vocab), len(self.choices))

    @property
    def categorical(self) -> bool:
        """It writes one of its values, not a number."""
        return bool(self.values)

    @cached_property
    def choices(self) -> tuple[Any, ...]:
        """All values it may give, in the order of their ids; a numerical program's in rising order."""
        numbers = {round(v, 6) for row in self.answers for v in row if v is not None} if not self.values else ()
        return self.values or tuple(sorted(numbers))

    @cached_property
    def readout(self) -> tuple[Float[np.ndarray, "O C"], Float[np.ndarray, " C"]]:
        """Matrix and bias from the output space to logits of `choices`."""
        if self.categorical:
            return SHARP * np.eye(len(self.values)), np.zeros(len(self.values))
        v = np.asarray(self.choices, float)
        scale = SHARP / np.diff(v).min() ** 2
        return 2 * scale * v[None], -scale * v**2

    @cached_property
    def asked(self) -> Bool[np.ndarray, "N T"]:
        """Where the program has an answer; the beginning of the sequence has none."""
        return np.asarray([[False, *(v is not None for v in row)] for row in self.answers])

    @cached_property
    def right(self) -> Int[np.ndarray, "N T"]:
        """The answers as indices of `choices`, -1 where there is none."""
        at = {v: i for i, v in enumerate(self.choices)}
        rows = [[None, *row] for row in self.answers]
        numeric = not self.categorical
        found = [[-1 if v is None else at[round(v, 6) if numeric else v] for v in row] for row in rows]
        return np.asarray(found, np.int32)

    @cached_property
    def model(self) -> Model:
        """The network in our parameters; scores are scaled by the width that its heads have without padding."""
        size, (matrix, bias) = self.sizes or self.need, self.readout
        L, D, H, K = self.weights["w_q"].shape
        V, C, M = size.vocab, size.choices, size.d_mlp
        about: Any = {
            **{"family": "rasp", "n_layers": L, "d_model": size.d_model, "n_heads": H, "n_kv_heads": H},
            **{"d_head": size.d_head, "d_mlp": M, "d_vocab": V + C, "n_ctx": self.tokens.shape[1]},
            **{"norm": "none", "final_norm": False, "pre_norm": False, "activation": "relu", "gated": False},
            **{"position": "learned", "unembed_bias": True, "causal": self.causal, "attn_scale": 1.0},
        }
        w = {name: a.astype(np.float64) for name, a in self.weights.items()}
        unembed, b_unembed = np.zeros((D, V + C)), np.full(V + C, NEVER)
        unembed[:, V : V + len(bias)], b_unembed[V : V + len(bias)] = w["unembed"] @ matrix, bias
        head, mlp = (L, size.d_model, H, size.d_head), (L, size.d_model, M)
        attention = Attention(
            _padded(w["w_q"] / np.sqrt(K), head),
            _padded(w["w_k"], head),
            _padded(w["w_v"], head),
            _padded(w["w_o"], (L, H, size.d_head, size.d_model)),
            *[None] * 6,
        )
        w_out = _padded(w["w_out"], (L, M, size.d_model))
        block = Block(None, attention, None, None, Mlp(_padded(w["w_in"], mlp), None, w_out, None, None, None), None)
        embed, positions = _padded(w["embed"], (V + C, size.d_model)), _padded(w["pos_embed"], (None, size.d_model))
        last = _padded(unembed, (size.d_model, None))
        params = Params(embed, positions, block, None, last, jnp.asarray(b_unembed, jnp.float32))
        return Model(ModelConfig(**about), params, None, f"rasp/{self.name}")

    def behaviour(self, rounds: int = 1, seed: int = 0, *, one_place: bool = False) -> Behaviour:
        """Questions, each an input, another input in its place, and a position where the program answers.

        Every split asks about every input at every position (or, `one_place`, at one drawn for each input), `rounds`
        times. The inputs are all there are, so that no split has inputs of its own: what no two splits share are pairs
        of inputs.
        """
        rng, n = np.random.default_rng(seed), len(self.tokens)
        order, turns, splits = rng.permutation(n), iter(rng.permutation(np.arange(1, n)).tolist()), {}
        for name in SPLITS:
            pairs = [(order, np.roll(order, turn)) for turn in itertools.islice(turns, rounds)]
            clean, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
            asked = self.asked[clean]
            if one_place:
                drawn = np.where(asked, rng.uniform(size=asked.shape), -1).argmax(1)
                asked = asked & (np.arange(asked.shape[1]) == drawn[:, None])
            at, position = np.nonzero(asked)
            splits[name] = self._prompts(clean[at], other[at], position)
        about = {"program": self.name, "inputs": n, "rounds": rounds, "seed": seed}
        return Behaviour(self.name, self.model.name, "logit_difference", splits, about)

    def _prompts(self, clean: np.ndarray, other: np.ndarray, position: np.ndarray) -> Prompts:
        """Questions about inputs at positions; every value but the right one is a wrong answer."""
        size, C, T = self.sizes or self.need, len(self.choices), self.tokens.shape[1]
        V, right = size.vocab, self.right[clean, position][:, None]
        wrong = np.full((len(clean), size.choices - 1), -1, np.int32)
        wrong[:, : C - 1] = [V + np.delete(np.arange(C), i) for i in right[:, 0]]
        tokens = self.tokens.astype(np.int32)
        padding, back = np.zeros(len(clean), np.int32), (T - 1 - position).astype(np.int32)
        return Prompts(tokens[clean], tokens[other], padding, right + V, wrong, back)


def _padded(a: np.ndarray, shape: Sequence[int | None]) -> Array:
    """An array in the corner of zeros of a shape; None keeps an axis."""
    more = [(0, 0 if n is None else n - own) for n, own in zip(shape, a.shape, strict=True)]
    return jnp.asarray(np.pad(a, more), jnp.float32)


def together(networks: Sequence[Network]) -> list[Network]:
    """The same networks, all that have as many layers and heads with models of the same shapes.

    What is compiled for one then serves all of them: edges are the same, and what is padded carries nothing.
    """
    groups: dict[tuple[int, int], list[Network]] = {}
    for net in networks:
        groups.setdefault((net.weights["w_q"].shape[0], net.weights["w_q"].shape[2]), []).append(net)
    found = []
    for group in groups.values():
        found += padded(group)
    return found


def padded(networks: Sequence[Network]) -> list[Network]:
    """The same networks, all of whose sizes are the largest among them."""
    largest = Sizes(*np.max([astuple(net.need) for net in networks], 0).tolist())
    return [replace(net, sizes=largest) for net in networks]


def load(name: str, folder: Path = FOLDER) -> Network:
    """A program that `experiments.rasp.compile` wrote.

    Raises:
        InputError: there is none of this name, or it is damaged.
    """
    head, file = read_record(folder / name, KIND, VERSION)
    arrays = {k: np.asarray(file.read(k, None)) for k in (*WEIGHTS, "tokens", "outputs") if k in file.headers}
    if len(arrays) != len(WEIGHTS) + 2:
        raise InputError(f"the program at {folder / name} is damaged: it has the arrays {', '.join(arrays)}")
    tokens, outputs = arrays.pop("tokens"), arrays.pop("outputs")

    def rows(key: str) -> Sequence[Any]:
        return tuple(head[key])

    answers = tuple(tuple(row) for row in head["answers"])
    about = (tuple(rows("vocab")), tuple(rows("values")), answers, tuple(rows("labels")), bool(head["causal"]))
    return Network(head["name"], arrays, tokens, outputs, *about)


def names(folder: Path = FOLDER) -> list[str]:
    """The programs that were compiled."""
    return sorted(path.stem for path in folder.glob("*.npz"))

"""Functions that a small transformer learns exactly: addition modulo p, parity, sorting. One word is one token.

    17 45 =             -> 62             addition modulo 113
    1 0 1 1 =           -> 1              parity of 4 to 10 bits
    17 3 29 5 11 = 3 5  -> 11             sorting: five different numbers below 30, one after the other

What such a model may be trained on is fixed here, once (`trained_sums`, `trained_bits`, `trained_set`); prompts are
drawn from the rest. Addition: Nanda et al. 2023 (arXiv 2301.05217), which trains on 30 % of the table.

>>> addition(np.random.default_rng(0), True).prompt.split()[-1]
'='
"""

from collections.abc import Iterable
from functools import cache

import numpy as np

from tcircuits.tasks.grammars import Example, example_of, is_held_out
from tcircuits.types import Bool, InputError, Int

MODULUS = 113
SHARE = 0.3  # of the table of sums that training sees
BITS = (4, 10)  # shortest and longest bit string
NUMBERS, BELOW = 5, 30  # how many different numbers are sorted, and what they stay below


@cache
def trained_sums(modulus: int) -> Bool[np.ndarray, "p p"]:
    """Which sums a + b a model is trained on: the first 30 % of one fixed shuffle of the table.

    Raises:
        InputError: a modulus below 4, whose table is too small to be split.
    """
    if modulus < 4:
        raise InputError(f"modulus {modulus}: give at least 4")
    table = np.zeros(modulus * modulus, bool)
    table[np.random.default_rng(0).permutation(table.size)[: int(SHARE * table.size)]] = True
    table.setflags(write=False)
    return table.reshape(modulus, modulus)


def addition(rng: np.random.Generator, held_out: bool, modulus: int = MODULUS) -> Example:
    """The sum a + b modulo p. The counterfactual has another a, another b and another sum."""
    trained = trained_sums(modulus)

    def pair() -> tuple[int, int]:
        while True:
            a, b = (int(x) for x in rng.integers(0, modulus, 2))
            if trained[a, b] != held_out:
                return a, b

    a, b = pair()
    right = (a + b) % modulus
    while True:
        other_a, other_b = pair()
        wrong = (other_a + other_b) % modulus
        if a != other_a and b != other_b and right != wrong:
            break
    truth = {"a": a, "b": b, "c": right, "modulus": modulus}
    return example_of("addition", f"{a} {b} =", f" {right}", f" {wrong}", "", f"{other_a} {other_b} =", truth)


def addition_digits(rng: np.random.Generator, held_out: bool, modulus: int = 23) -> Example:
    """The sum a + b modulo 23 in digits apart, as a language model is asked: `1 9 + 9 mod 23 = `, then `5`.

    The form of the HAGD paper's authors (arXiv 2601.12879). Sums of one digit only: the answer is one token.
    """
    while True:
        a, b, other_a, other_b = (int(x) for x in rng.integers(0, modulus, 4))
        right, wrong = (a + b) % modulus, (other_a + other_b) % modulus
        if max(right, wrong) < 10 and right != wrong:
            break
    prompt, other = (
        f"{' '.join(str(x))} + {' '.join(str(y))} mod {modulus} = " for x, y in ((a, b), (other_a, other_b))
    )
    truth = {"a": a, "b": b, "c": right, "modulus": modulus}
    return example_of("addition_digits", prompt, str(right), str(wrong), "", other, truth)


@cache
def bit_strings(held_out: bool) -> tuple[str, ...]:
    """All bit strings of 4 to 10 bits that are held out (30 %), or all others."""
    every = (f"{i:0{n}b}" for n in range(BITS[0], BITS[1] + 1) for i in range(2**n))
    return tuple(bits for bits in every if (_share("parity", bits) < 0.3) == held_out)


def _share(*key: object) -> float:
    """A number from 0 to 1 that belongs to a content."""
    return np.random.default_rng(list("|".join(map(str, key)).encode())).random()


def parity(rng: np.random.Generator, held_out: bool) -> Example:
    """Whether the ones are odd in number. The counterfactual has one bit turned over."""
    every = bit_strings(held_out)
    bits = every[int(rng.integers(len(every)))]
    turned = int(rng.integers(len(bits)))
    other = "".join(str(1 - int(bit)) if i == turned else bit for i, bit in enumerate(bits))
    right = bits.count("1") % 2
    prompts = (f"{' '.join(text)} =" for text in (bits, other))
    prompt, counterfactual = prompts
    truth = {"bits": bits, "turned": turned, "parity": right}
    return example_of("parity", prompt, f" {right}", f" {1 - right}", "", counterfactual, truth)


def trained_set(numbers: Iterable[int]) -> bool:
    """Whether a model may be trained on a set of numbers, in whatever order they come."""
    return not is_held_out("sorting", *sorted(numbers))


def sorting(rng: np.random.Generator, held_out: bool) -> Example:
    """The next of five numbers in order, up to four of them already said.

    In the counterfactual the right number is replaced by another that is above those said.
    """
    while True:
        numbers = [int(x) for x in rng.choice(BELOW, NUMBERS, replace=False)]
        done, new = int(rng.integers(NUMBERS)), int(rng.integers(BELOW))
        in_order = sorted(numbers)
        right, said = in_order[done], in_order[:done]
        changed = [new if x == right else x for x in numbers]
        if trained_set(numbers) != held_out and new not in numbers and (not said or new > said[-1]):
            break
    prompt, other = (_listed(x, said) for x in (numbers, changed))
    truth = {"numbers": numbers, "done": done, "next": right}
    return example_of("sorting", prompt, f" {right}", f" {sorted(changed)[done]}", "", other, truth)


def _listed(numbers: Iterable[int], said: Iterable[int]) -> str:
    return " ".join([*map(str, numbers), "=", *map(str, said)])


def sums(modulus: int = MODULUS) -> tuple[Int[np.ndarray, "N 2"], Int[np.ndarray, "M 2"]]:
    """The pairs (a, b) that a model is trained on, and those held out."""
    trained = trained_sums(modulus)
    train, test = (np.argwhere(which) for which in (trained, ~trained))
    return train, test

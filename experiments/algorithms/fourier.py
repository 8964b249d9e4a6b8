"""What is known of a model of addition modulo p: key frequencies, progress measures, tuned features. NumPy, float64.

With w_k = 2 pi k / p, a model that generalises embeds numbers as cos and sin of a few w_k and reads the answer off
cos(w_k (a + b - c)). Nanda et al. 2023 (arXiv 2301.05217), sections 4 and 5:

    restricted loss    of the logits' mean over inputs and their parts along cos and sin of w_k (a + b), k key, alone
    excluded loss      of the logits without those parts
"""

from typing import Any

import numpy as np

from tcircuits.types import Float, Int

TUNED = 0.85  # R^2 of one frequency from which a unit counts as tuned; the paper's own bar for neurons
KEY = 4.0  # a frequency is key whose share of the embedding's energy is so many times an even share


def basis(p: int, k: int) -> Float[np.ndarray, "p 2"]:
    """Cosine and sine of w_k t over t, of norm 1."""
    t = 2 * np.pi * k * np.arange(p) / p
    return np.stack([np.cos(t), np.sin(t)], 1) * np.sqrt(2 / p)


def frequencies(p: int) -> range:
    """The frequencies of an odd p; the constant is none of them."""
    return range(1, (p - 1) // 2 + 1)


def energies(rows: Float[np.ndarray, "p D"]) -> Float[np.ndarray, " K"]:
    """The share of each frequency in the variance over t, of all columns together."""
    x = np.asarray(rows, np.float64)
    x = x - x.mean(0)
    return np.array([np.sum((basis(len(x), k).T @ x) ** 2) for k in frequencies(len(x))]) / np.sum(x**2)


def key_frequencies(embed: Float[np.ndarray, "p D"]) -> list[int]:
    """The frequencies that stand out in the embedding of the numbers, strongest first."""
    share = energies(embed)
    order = np.argsort(-share)
    return [int(i) + 1 for i in order if share[i] > KEY / len(share)]


def sum_parts(logits: Float[np.ndarray, "p p C"], keys: list[int]) -> Float[np.ndarray, "p p C"]:
    """The part of a table's logits along cos and sin of w_k (a + b), for the frequencies `keys`."""
    p, found = len(logits), np.zeros(logits.shape)
    total = np.arange(p)[:, None] + np.arange(p)
    for k in keys:
        for part in basis(p, k).T:
            direction = part[total % p] / np.sqrt(p)
            found += direction[..., None] * np.einsum("ab,abc->c", direction, logits)
    return found


def loss(logits: Float[np.ndarray, "p p C"], among: Any) -> float:
    """Mean of -log p of the right sums over the inputs `among`, in nats."""
    p = len(logits)
    right = (np.arange(p)[:, None] + np.arange(p)) % p
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return float(-np.take_along_axis(log_p, right[..., None], -1)[..., 0][among].mean())


def progress(logits: Any, keys: list[int], trained: Any) -> dict[str, float]:
    """Losses of a table's logits, whole, restricted and excluded, on trained and held-out sums."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.mean(-1, keepdims=True)  # what all answers share changes no probability
    parts = sum_parts(logits, keys)
    restricted, excluded = parts + logits.mean((0, 1)), logits - parts
    return {
        "train_loss": loss(logits, trained),
        "test_loss": loss(logits, ~trained),
        "restricted_train_loss": loss(restricted, trained),
        "restricted_test_loss": loss(restricted, ~trained),
        "excluded_train_loss": loss(excluded, trained),
        "excluded_test_loss": loss(excluded, ~trained),
        "sum_share": float(np.sum(parts**2) / np.sum((logits - logits.mean((0, 1))) ** 2)),
    }


def weight_tuning(weights: Float[np.ndarray, "p U"]) -> tuple[Int[np.ndarray, " U"], Float[np.ndarray, " U"]]:
    """The frequency that explains most of each unit's input weights over t, and its R^2."""
    x = np.asarray(weights, np.float64)
    x = x - x.mean(0)
    each = np.stack([np.sum((basis(len(x), k).T @ x) ** 2, 0) for k in frequencies(len(x))])
    share = each / np.maximum(np.sum(x**2, 0), 1e-300)
    return share.argmax(0) + 1, share.max(0)


def table_tuning(values: Float[np.ndarray, "p p U"]) -> tuple[Int[np.ndarray, " U"], Float[np.ndarray, " U"]]:
    """The frequency whose eight terms explain most of each unit over (a, b), and their R^2.

    Terms: cos and sin of w_k a, of w_k b, and their four products (Nanda et al. 2023, section 4.2).
    """
    x = np.asarray(values, np.float64)
    p = len(x)
    x = x - x.mean((0, 1))
    flat, shares = np.full((p, 1), 1 / np.sqrt(p)), []
    for k in frequencies(p):
        side = np.concatenate([flat, basis(p, k)], 1)
        parts = np.einsum("ai,bj,abU->ijU", side, side, x, optimize=True)
        shares.append(np.sum(parts**2, (0, 1)))  # the constant's own term is zero
    share = np.stack(shares) / np.maximum(np.sum(x**2, (0, 1)), 1e-300)
    return share.argmax(0) + 1, share.max(0)

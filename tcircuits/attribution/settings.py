"""What decides a graph beside model, dictionary, prompt and targets, and which values are allowed."""

from dataclasses import dataclass

import jax

from tcircuits.types import InputError


@dataclass(frozen=True)
class Settings:
    """What decides a graph beside model, dictionary, prompt and targets; see `attribute`."""

    max_features: int | None
    max_n_logits: int = 10
    desired_logit_prob: float = 0.95
    position: int = -1
    position_zero: str = "auto"
    selection: str = "influence"
    chunk: int | None = None
    precision: str = "highest"


def check_precision(precision: str) -> None:
    """Raise for a word that `jax.default_matmul_precision` does not know."""
    try:
        with jax.default_matmul_precision(precision):
            pass
    except ValueError:
        raise InputError(
            f"precision={precision!r}; there are highest, high, default and the other words of "
            "jax.default_matmul_precision"
        ) from None


def check_settings(s: Settings) -> None:
    """Raise for settings outside what is allowed."""
    if s.position_zero not in ("auto", "nodes", "constant"):
        raise InputError(f"position_zero={s.position_zero!r}; there are auto, nodes, constant")
    if s.selection not in ("influence", "effect", "reference"):
        raise InputError(f"selection={s.selection!r}; there are influence, effect, reference")
    check_precision(s.precision)
    if s.max_features is not None and s.max_features < 1:
        raise InputError(f"max_features={s.max_features}; give at least 1, or None for all")
    if s.max_n_logits < 1 or not 0 < s.desired_logit_prob <= 1:
        raise InputError(
            f"max_n_logits={s.max_n_logits}, desired_logit_prob={s.desired_logit_prob}: give >= 1 and within (0, 1]"
        )

"""`jit` for programs that someone waits for: on CPUs with the faster of XLA's ways to emit loops, where there are two.

A trace compiles a handful of programs, which takes longer than running them does. XLA's older emitter of fused loops
needs a third less time than the newer one, for the same matrix products and loops of about the same speed. Releases of
JAX after 0.10 have the newer one alone.

>>> import jax.numpy as jnp
>>> compiled(lambda x, n: x * n, static_argnames="n")(jnp.ones(2), n=3).tolist()
[3.0, 3.0]
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

OPTIONS = {"xla_cpu_use_fusion_emitters": False} if importlib.metadata.version("jaxlib").startswith("0.10.") else None


@dataclass(frozen=True)
class Program:
    """A function as `jax.jit` makes it: for CPUs, and for all else, traced code included."""

    on_cpu: Any
    elsewhere: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, compiled for these shapes before or now."""
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs)))
        return (self.elsewhere if traced or jax.default_backend() != "cpu" else self.on_cpu)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """`jax.jit(f).lower`: for any platform, with XLA's own settings."""
        return self.elsewhere.lower(*args, **kwargs)

    def clear_cache(self) -> None:
        """Forget what was compiled."""
        self.on_cpu.clear_cache()
        self.elsewhere.clear_cache()


def compiled(f: Callable[..., Any], **how: Any) -> Program:
    """`jax.jit(f, **how)`, which compiles sooner on CPUs."""
    return Program(jax.jit(f, compiler_options=OPTIONS, **how), jax.jit(f, **how))

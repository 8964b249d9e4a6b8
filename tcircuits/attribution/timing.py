"""Seconds by stage, with the time that compiling took set apart."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

COMPILE_EVENTS = ("/jax/core/compile/", "/jax/compilation_cache/cache_retrieval_time_sec")


class CompileClock:
    """Seconds that this process has spent tracing, lowering and compiling (or reading the compilation cache)."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.listening = False
        self._spans: list[tuple[float, float]] = []

    def listen(self) -> None:
        """Start to count; more than one call changes nothing."""
        if not self.listening:
            jax.monitoring.register_event_duration_secs_listener(self._add)
            self.listening = True

    def _add(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Count an event that ends now; those that happened within it were counted before and are part of it."""
        if not event.startswith(COMPILE_EVENTS):
            return
        start = time.perf_counter() - duration_secs
        while self._spans and self._spans[-1][0] >= start:
            self.seconds -= self._spans.pop()[1]
        self._spans.append((start, duration_secs))
        self.seconds += duration_secs


CLOCK = CompileClock()


class Timings(dict[str, float]):
    """Seconds by stage; `compile` is what compiling took in all of them, and no stage counts it."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        CLOCK.listen()
        start, compiled = time.perf_counter(), CLOCK.seconds
        try:
            yield
        finally:
            spent, compiling = time.perf_counter() - start, CLOCK.seconds - compiled
            compiling = min(compiling, spent)  # other threads may compile too
            self["compile"] = self.get("compile", 0.0) + compiling
            self[name] = self.get(name, 0.0) + spent - compiling

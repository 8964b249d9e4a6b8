"""How long does `tcircuits trace` take on the embedded model, and how much of it do its transcoders explain?

    python -m experiments.trace_tiny

The prompt of `make demo`, timed as `experiments.trace_smollm2` times its own.
"""

from dataclasses import dataclass

from experiments import trace_smollm2


@dataclass(frozen=True)
class Config(trace_smollm2.Config):
    """What to trace."""

    prompt: str = "While Robert and James were working at the beach, Robert gave a drink to"
    """The text to explain."""
    model: str = "tiny"
    """As in `tcircuits trace`."""
    transcoders: str = "tiny-transcoders"
    """As in `tcircuits trace`."""


def main(cfg: Config) -> None:
    """Measure, print, write."""
    trace_smollm2.measure("trace_tiny", cfg)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

"""A prompt that nearly every feature of a large cross-layer set is active on: memory, and where the time goes.

    python -m experiments.bench.cross_layer_prompt

26 layers of 16,384 features in 1,152 dimensions, 512 tokens, 225 active features a layer and token, 3.0 million in all:
the synthetic JumpReLU set of `bench.lazy_decoder`, 14 GB of bfloat16 in circuit-tracer's files, of which hardly a
feature is not active somewhere. It stays on disk; decoders lie in a scratch file whose pages the machine holds as it
has room (`open_transcoders(scratch=)`). The top logits and 256 features get rows, chosen by influence among all.

- `anonymous_gb` is the most memory that the process took for itself, `mapped_gb` the most of files that was in memory
  for it (libraries included), counted ten times a second; `decoders_gb` the scratch file.
- `looked_up_gb` is what one pass over all pairs of layers looks up, in float32: 512 tokens' decoder rows from every
  layer to every later one. The sketch makes two, the sweep one for each chunk of rows, the forward pass one.
"""

import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tcircuits as tc
from experiments.bench.lazy_decoder import build
from experiments.common import fresh, save, say, show

SIZES = {"kind": "clt", "n_layers": 26, "d_model": 1152, "d_feature": 16384}
SMALL = {"n_layers": 3, "d_model": 64, "d_feature": 1024}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    length: int = 512
    """Tokens of the prompt."""
    active: int = 225
    """Active features at a layer and position, on average."""
    max_features: int = 256
    """Expanded."""
    folder: Path | None = None
    """Where files of 14 GB, and 13 GB of scratch, have room; None is the system's place for temporary files."""
    small: bool = False
    """Three narrow layers instead, to see that it runs."""


@dataclass
class Resident:
    """The most memory of this process, looked at ten times a second while the block runs (Linux)."""

    anonymous: float = 0.0
    mapped: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Once."""
        lines = Path("/proc/self/status").read_text().splitlines()
        kb = {k: int(v.split()[0]) for k, v in (line.split(":", 1) for line in lines) if k.startswith("Rss")}
        self.anonymous = max(self.anonymous, kb["RssAnon"] * 1024 / 1e9)
        self.mapped = max(self.mapped, (kb["RssFile"] + kb["RssShmem"]) * 1024 / 1e9)

    def __enter__(self) -> "Resident":
        def watch() -> None:
            while not self.stop.wait(0.1):
                self.look()

        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        self.thread.join()
        self.look()


def trace(folder: str, scratch: str, sizes: dict[str, Any], length: int, max_features: int) -> dict[str, Any]:
    """One prompt, in this process."""
    model, prompts = build(sizes, length)
    times, start = tc.Timings(), time.perf_counter()
    with Resident() as held:
        d = tc.open_transcoders(folder, model=model.cfg, scratch=scratch)
        graph = tc.attribute(model, d, prompts[0], max_features=max_features, timings=times)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        pruning = tc.prune(graph)
        prune = time.perf_counter() - start
    L, D, F = (sizes[name] for name in ("n_layers", "d_model", "d_feature"))
    pairs = L * (L + 1) // 2
    return {
        "tokens": length,
        "n_active": graph.n_active,
        "features": graph.n_features,
        "edges": len(graph.weight),
        "seconds": seconds,
        "stages": dict(times),
        "prune": prune,
        "kept_nodes": 0 if pruning.node_mask is None else int(pruning.node_mask.sum()),
        "anonymous_gb": held.anonymous,
        "mapped_gb": held.mapped,
        "decoders_gb": pairs * F * D * 2e-9,
        "looked_up_gb": 4e-9 * D * pairs * graph.n_active / L,  # layers have much the same number active
        "max_row_gap": graph.max_row_gap,
    }


def main(cfg: Config) -> None:
    """Write the files, trace, print, write."""
    sizes: dict[str, Any] = SIZES | (SMALL if cfg.small else {})
    with tempfile.TemporaryDirectory(dir=cfg.folder) as name:
        for part in ("set", "scratch"):
            Path(name, part).mkdir()
        common = {"folder": f"{name}/set", "sizes": sizes, "length": cfg.length}
        say("writing the set")
        about = fresh("experiments.bench.lazy_decoder", "write", active=cfg.active, **common)
        say("tracing")
        more = {"scratch": f"{name}/scratch", "max_features": cfg.max_features}
        found = fresh("experiments.bench.cross_layer_prompt", "trace", **common, **more)
    found = {"sizes": sizes} | about | found
    show("one prompt", [{k: v for k, v in found.items() if k not in ("stages", "sizes")}])
    save("bench.cross_layer_prompt", cfg, found)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

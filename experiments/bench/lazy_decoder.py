"""What does a prompt cost when the dictionaries stay on disk, against loading them whole?

    python -m experiments.bench.lazy_decoder

Synthetic JumpReLU sets in circuit-tracer's files, bfloat16, on a random Llama-like model: a per-layer set of 131,072
features a layer, and a cross-layer one, whose decoders are most of it. A threshold a layer lets the wanted number of
features through at each position; it stands in a gap between pre-activations, so that rounding decides nothing. Each
side traces the same prompt in a process of its own, the files not in the page cache:

- `read_gb` is what left the set's files, counted where they are opened; `rchar_gb` all that the process read while it
  loaded and traced, by the system's count; `disk_gb` what the disk gave for it, readahead included.
- `peak_gb` is the most memory that the process held; `before_gb` that of the libraries and the model alone.
- `seconds` are of loading and tracing, compiling included; `encode` of it is the pass over the encoders. `again` is a
  second prompt of the same length without compiling, with the files in the page cache: the whole set need not be loaded
  again, the lazy one reads its encoders again (`again_encode`).

`graphs` compares the two: the same nodes, and the largest difference of an edge relative to the mass of its row.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import yaml
from safetensors.numpy import save_file

import tcircuits as tc
from experiments.common import fresh, peak_rss_gb, save, show
from experiments.toys import random_model
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.formats import circuit_tracer as ct
from tcircuits.transcoders.formats.ct_config import CONFIG, config_fields

SIZES: dict[str, Any] = {"n_layers": 8, "d_model": 512}
CASES: dict[str, dict[str, Any]] = {
    "per-layer": {"kind": "transcoder", "d_feature": 131_072, **SIZES},
    "cross-layer": {"kind": "clt", "d_feature": 32_768, **SIZES},
}
SMALL = {"n_layers": 3, "d_model": 64, "d_feature": 4096}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    cases: tuple[str, ...] = tuple(CASES)
    """Sets of dictionaries."""
    length: int = 24
    """Tokens of the prompt."""
    active: int = 60
    """Active features at a position, on average."""
    max_features: int = 1000
    """Expanded."""
    small: bool = False
    """Three narrow layers instead, to see that it runs."""


def build(sizes: dict[str, Any], length: int) -> tuple[tc.Model, np.ndarray]:
    """The model and two prompts."""
    D = sizes["d_model"]
    heads: dict[str, Any] = {"n_heads": D // 32, "n_kv_heads": D // 64, "d_head": 32, "rotary_dim": 32, "n_ctx": length}
    model = random_model("llama", n_layers=sizes["n_layers"], d_model=D, d_mlp=2 * D, d_vocab=1000, **heads)
    return model, np.random.default_rng(2).integers(0, 1000, (2, length))


def write(folder: str, sizes: dict[str, Any], length: int, active: int) -> dict[str, Any]:
    """The files of a set, one tensor in memory at a time; their bytes."""
    model, prompts = build(sizes, length)
    L, D, F = sizes["n_layers"], sizes["d_model"], sizes["d_feature"]
    cfg = TranscoderConfig(sizes["kind"], L, D, F, tuple(range(L)), "jumprelu")
    x = np.asarray(tc.forward(model.cfg, model.params, jnp.asarray(prompts[:1]), sites=("mlp_in",)).acts["mlp_in"])
    rng = np.random.default_rng(3)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) / np.float32(D**0.5)).astype(ml_dtypes.bfloat16)

    for i in range(L):
        encoder = {"W_enc": matrix(F, D), "b_enc": np.zeros(F, ml_dtypes.bfloat16), "b_dec": matrix(D)}
        threshold = np.full(F, gap(x[i, 0], encoder["W_enc"], active * length), np.float32)
        if cfg.kind == "transcoder":
            tensors = encoder | {"W_dec": matrix(F, D), "activation_function.threshold": threshold}
            save_file(tensors, Path(folder) / ct.layer_file(i))
        else:
            named = {f"{name}_{i}": tensor for name, tensor in (encoder | {"threshold": threshold}).items()}
            save_file(named, Path(folder) / ct.encoder_file(i))
            save_file({f"W_dec_{i}": matrix(F, L - i, D)}, Path(folder) / ct.decoder_file(i))
    Path(folder, CONFIG).write_text(yaml.safe_dump(config_fields(cfg)), encoding="utf-8")
    return {"file_gb": sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e9}


def gap(x: np.ndarray, w: np.ndarray, wanted: int) -> float:
    """A threshold that about `wanted` pre-activations pass: the middle of the widest gap within 5 % of that."""
    pre = np.concatenate([(x @ part.astype(np.float32).T).ravel() for part in np.array_split(w, 8)])
    most, least = wanted + wanted // 20 + 1, wanted - wanted // 20
    near = np.sort(np.partition(pre, -most)[-most:])[: most - least + 1]
    i = int(np.argmax(np.diff(near)))
    return float((near[i] + near[i + 1]) / 2)


class Counter:
    """Counts the bytes that leave the files of a folder, where they are opened."""

    def __init__(self, folder: Path) -> None:
        self.bytes, opening = 0, Path.open

        def counted(path: Path, *arguments: Any, **options: Any) -> Any:
            file = opening(path, *arguments, **options)
            return Counted(file, self) if path.parent == folder else file

        Path.open = counted


class Counted:
    """A file that tells what is read of it."""

    def __init__(self, file: Any, counter: Counter) -> None:
        self.file, self.counter = file, counter

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        n = self.file.readinto(buffer)
        self.counter.bytes += n
        return n

    def read(self, n: int = -1) -> Any:
        """The next bytes."""
        out = self.file.read(n)
        self.counter.bytes += len(out)
        return out


def system_reads() -> dict[str, float]:
    """What this process has read, in GB: all of it, and from the disk (Linux; elsewhere nothing is known)."""
    io = Path("/proc/self/io")
    lines = io.read_text().splitlines() if io.exists() else []
    found = {name: int(value) / 1e9 for name, value in (line.split(": ") for line in lines)}
    return {"rchar_gb": found.get("rchar", 0.0), "disk_gb": found.get("read_bytes", 0.0)}


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache, where the system offers that."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def trace(folder: str, out: str, lazy: bool, sizes: dict[str, Any], length: int, max_features: int) -> dict[str, Any]:
    """One side: load or open, and trace; the graph goes to the file `out`."""
    model, prompts = build(sizes, length)
    forget(Path(folder))
    before, read, counter, times = peak_rss_gb(), system_reads(), Counter(Path(folder)), tc.Timings()
    start = time.perf_counter()
    d = (tc.open_transcoders if lazy else tc.load_transcoders)(folder, model=model.cfg)
    loaded = time.perf_counter() - start
    graph = tc.attribute(model, d, prompts[0], max_features=max_features, timings=times)
    seconds = time.perf_counter() - start
    after = system_reads()
    figures = {"read_gb": counter.bytes / 1e9} | {name: after[name] - read[name] for name in read}
    figures |= {"peak_gb": peak_rss_gb(), "before_gb": before, "seconds": seconds, "load": loaded}
    second = tc.Timings()
    tc.attribute(model, d, prompts[1], max_features=max_features, timings=second)
    figures |= {"encode": times.get("encode", 0.0), "compile": times["compile"]}
    figures |= {"again": sum(second.values()) - second["compile"], "again_encode": second.get("encode", 0.0)}
    tc.save_graph(graph, out)
    return figures | {"active": graph.n_active, "max_row_gap": graph.max_row_gap}


def compare(whole: tc.Graph, lazy: tc.Graph) -> dict[str, Any]:
    """Whether the nodes are the same, and the largest difference of an edge over the mass of its row."""
    same = whole.features.shape == lazy.features.shape and bool((whole.features == lazy.features).all())
    found: dict[str, Any] = {
        "features": whole.n_features,
        "active": [whole.n_active, lazy.n_active],
        "same_nodes": same,
    }
    if not same:
        return found
    mass = whole.row_sums()[1][:, None]
    difference = np.abs(whole.dense() - lazy.dense())[whole.row_nodes]
    return found | {"edge_difference": float((difference / np.maximum(mass, 1e-30)).max())}


def measure(case: str, cfg: Config) -> dict[str, Any]:
    """One set, both sides."""
    sizes = CASES[case] | (SMALL if cfg.small else {})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        folder.mkdir()
        common = {"folder": str(folder), "sizes": sizes, "length": cfg.length}
        about = fresh("experiments.bench.lazy_decoder", "write", active=cfg.active, **common)
        found: dict[str, Any] = {"case": case, "sizes": sizes} | about
        for side in ("whole", "lazy"):
            arguments: dict[str, Any] = common | {
                "out": f"{name}/{side}.npz",
                "lazy": side == "lazy",
                "max_features": cfg.max_features,
            }
            found[side] = fresh("experiments.bench.lazy_decoder", "trace", **arguments)
        graphs = (tc.load_graph(f"{name}/{side}.npz") for side in ("whole", "lazy"))
        return found | {"graphs": compare(*graphs)}


def main(cfg: Config) -> None:
    """Measure, print, write."""
    found = [measure(case, cfg) for case in cfg.cases]
    rows = [
        {"case": f["case"], "side": side, "file_gb": f["file_gb"]} | f[side]
        for f in found
        for side in ("whole", "lazy")
    ]
    show("one prompt", rows)
    show("the two graphs", [{"case": f["case"]} | f["graphs"] for f in found])
    save("bench.lazy_decoder", cfg, {"cases": found})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

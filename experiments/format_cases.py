"""The cases of `experiments.format_readers`: dictionaries to save, to let the tools write, and files for both to read.

Seeds are places in the tables, so every run compares the same numbers.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import tcircuits as tc
from experiments.rival_readers import Job
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.dictionary import Transcoders, spec
from tcircuits.transcoders.saving import Format

L, D, F, T, K = 4, 16, 64, 12, 5
DTYPES = ("float32", "bfloat16")
ALL = tuple(range(L))
FORMATS: dict[str, Format] = {"circuit-tracer": "circuit-tracer", "sae-lens": "saelens"}  # that are saved here

_SAVED: dict[str, dict[str, Any]] = {
    "relu": {},
    "skip": {"skip": True, "reads": "resid_mid"},
    "jumprelu": {"activation": "jumprelu", "reads": "normalized"},
    "jumprelu-skip": {"activation": "jumprelu", "skip": True},
    "batchtopk": {"activation": "batchtopk"},
    "some-layers": {"layers": (1, 3), "writes": "mlp_raw"},
}
SAVED: dict[str, dict[str, dict[str, Any]]] = {
    "circuit-tracer": {
        **_SAVED,
        "topk": {"activation": "topk", "k": K},
        "clt-relu": {"kind": "clt", "reads": "resid_mid"},
        "clt-jumprelu": {"kind": "clt", "activation": "jumprelu"},
        "clt-skip": {"kind": "clt", "skip": True},
    },
    "sae-lens": _SAVED,
}
_PLT = {"kind": "transcoder", "activation": "relu", "skip": False}
# Fields of each tool's own configuration, see `rival_readers`.
LOADED: dict[str, dict[str, dict[str, Any]]] = {
    "circuit-tracer": {
        "relu": _PLT,
        "skip": _PLT | {"skip": True},
        "jumprelu": _PLT | {"activation": "jumprelu"},
        "jumprelu-skip": _PLT | {"activation": "jumprelu", "skip": True},
        "topk": _PLT | {"activation": "topk", "k": K},
        "clt-relu": _PLT | {"kind": "clt"},
        "clt-jumprelu": _PLT | {"kind": "clt", "activation": "jumprelu"},
        "clt-skip": _PLT | {"kind": "clt", "skip": True},
    },
    "sae-lens": {
        **{name: {"architecture": name} for name in ("transcoder", "skip_transcoder")},
        **{name: {"architecture": name} for name in ("jumprelu_transcoder", "jumprelu_skip_transcoder")},
        "layer_norm": {"architecture": "transcoder", "normalize_activations": "layer_norm"},
    },
    "sparsify": {
        "transcoder": {"k": K, "transcode": True},
        "skip-transcoder": {"k": K, "transcode": True, "skip_connection": True},
        "skip-without-transcode": {"k": K, "skip_connection": True},
        "k-above-active": {"k": F - 4, "transcode": True},
        "groupmax": {"k": 8, "transcode": True, "activation": "groupmax"},
    },
}
GEMMA, SECOND = "layer_{}/width_16k/average_l0_9/params.npz", "transcoder_all/layer_{}_width_16k_l0_small/"
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "circuit-tracer": {
        "gemma-scope": {"file": GEMMA},
        "gemma-scope-2": {"file": SECOND + "params.safetensors", "skip": True},
        "gemma-scope-2-clt": {"file": "width_16k_l0_big/params_layer_{}.safetensors"},
    },
    "sae-lens": {
        "gemma-scope": {"file": GEMMA},
        "gemma-scope-2": {"file": SECOND + "params.safetensors", "skip": True},
    },
}
EXPECTED = {
    ("circuit-tracer", "saved", "topk"): "same without k",
    ("circuit-tracer", "saved", "clt-skip"): "same without skip",
    ("circuit-tracer", "saved", "some-layers"): "refused there",
    ("circuit-tracer", "loaded", "clt-skip"): "same as it reads back",
    ("circuit-tracer", "published", "gemma-scope-2-clt"): "refused there",
    ("sae-lens", "loaded", "layer_norm"): "refused here",
    ("sparsify", "loaded", "groupmax"): "refused here",
}
WHY = {
    ("circuit-tracer", "saved", "topk"): "its loader takes every file without thresholds for ReLU",
    ("circuit-tracer", "saved", "clt-skip"): "its loader of cross-layer transcoders passes over W_skip",
    ("circuit-tracer", "saved", "some-layers"): "it needs layers from 0 without a gap",
    ("circuit-tracer", "loaded", "clt-skip"): "its writer leaves W_skip out, which no reader can bring back",
    (
        "circuit-tracer",
        "published",
        "gemma-scope-2-clt",
    ): ("its loader leaves the last layer out, and then sizes contradict each other"),
    ("sae-lens", "loaded", "layer_norm"): "an input that is normalised first is no transcoder of the site",
    ("sparsify", "loaded", "groupmax"): "the largest of each group is no activation function here",
}


@dataclass(frozen=True)
class Sides:
    """A case: the job of the tool, and our dictionary (before it was saved, or after loading), else why not."""

    job: Job
    way: str
    case: str
    dtype: str
    ours: Transcoders | None
    refused: str | None = None


def random_arrays(cfg: TranscoderConfig, dtype: str, seed: int) -> Transcoders:
    """A dictionary of normals in the dtype of a file; thresholds that SAELens can hold too."""
    rng = np.random.default_rng(seed)
    d = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), dtype), spec(cfg))
    positive = None if d.threshold is None else abs(d.threshold)
    return replace(d, cfg=cfg, source="random", threshold=positive)


def double(d: Transcoders) -> Transcoders:
    """The same values in float64."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), d)


def saved(tool: str, folder: Path, dtypes: tuple[str, ...]) -> Iterator[Sides]:
    """Save dictionaries for the tool to load."""
    for seed, (case, switches) in enumerate(SAVED.get(tool, {}).items()):
        for dtype in dtypes:
            sizes = {"kind": "transcoder", "n_layers": L, "d_model": D, "d_feature": F, "layers": ALL}
            fields: dict[str, Any] = sizes | switches
            d = random_arrays(TranscoderConfig(**fields), dtype, seed)
            job = Job(f"saved-{case}-{dtype}", "read", f"saved/{case}-{dtype}", d.cfg.layers)
            tc.save_transcoders(d, folder / job.path, FORMATS[tool], model_name="tiny")
            yield Sides(job, "saved", case, dtype, double(d))


def write_jobs(tool: str, dtypes: tuple[str, ...]) -> Iterator[tuple[str, Job]]:
    """What the tool is to write."""
    for seed, (case, switches) in enumerate(LOADED[tool].items()):
        for dtype in dtypes:
            name = f"loaded-{case}-{dtype}"
            yield case, Job(name, "write", f"loaded/{case}-{dtype}", ALL, F, dtype, seed, switches)


def load(job: Job, folder: Path, way: str, case: str) -> Sides:
    """Load what the tool wrote, or what both read."""
    try:
        return Sides(job, way, case, job.dtype, tc.load_transcoders(folder / job.path, dtype="float64"))
    except tc.InputError as error:
        return Sides(job, way, case, job.dtype, None, str(error).replace(str(folder), "..."))


def published(tool: str, folder: Path) -> Iterator[Sides]:
    """Write files in Gemma Scope's layouts, and load them."""
    for seed, (case, switches) in enumerate(PUBLISHED.get(tool, {}).items()):
        rng = np.random.default_rng(seed)
        job = Job(f"published-{case}", case, f"published/{case}", ALL, F, switches=switches)
        for i in ALL:
            path = folder / job.path / switches["file"].format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = gemma_tensors(rng, case, bool(switches.get("skip")))
            if case == "gemma-scope":
                np.savez(path, allow_pickle=False, **tensors)
            else:
                save_file({name.lower(): array for name, array in tensors.items()}, path)
                path.with_name("config.json").write_text(json.dumps(gemma_config(i, case, switches)))
        yield load(job, folder, "published", case)


def gemma_tensors(rng: np.random.Generator, case: str, skip: bool) -> dict[str, np.ndarray]:
    """Random tensors of one layer."""
    decoder = (F, L, D) if case.endswith("clt") else (F, D)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, F), "b_enc": (F,), "W_dec": decoder, "b_dec": (D,)}
    shapes |= {"affine_skip_connection": (D, D)} if skip else {}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"threshold": abs(rng.normal(size=F)).astype(np.float32)}


def gemma_config(layer: int, case: str, switches: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a folder of Gemma Scope 2."""
    at = "{all}" if case.endswith("clt") else layer
    return {
        "hf_hook_point_in": f"model.layers.{at}.pre_feedforward_layernorm.output",
        "hf_hook_point_out": f"model.layers.{at}.post_feedforward_layernorm.output",
        "width": F,
        "model_name": "google/gemma-3-1b-pt",
        "architecture": "jump_relu",
        "l0": 10,
        "affine_connection": bool(switches.get("skip")),
        "type": "clt" if case.endswith("clt") else "transcoder",
    }

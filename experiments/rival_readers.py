"""The other side of `experiments.format_readers`: the tools that own the formats load and write folders themselves.

That module starts this one with the interpreter of each tool; `environments` there says what they need. Torch and the
tools exist there only: they are imported by name, so that neither the package nor its type checker ever sees them.

    PYTHON -m experiments.rival_readers TOOL FOLDER

does the jobs of FOLDER/jobs.json (`Job`) and prints one JSON object: `versions`, and for each job what the tool says of
it, or its error. Inputs are FOLDER/x.npy [L,T,D]; features f [L,T,F] and outputs y [L,T,D], computed by the tool in
float64, go to FOLDER/{job}.npz. Where a job is to write, the tool makes a random dictionary, saves it under
FOLDER/{path}, and computes with what it has in memory; beside that, as `f_back` and `y_back`, with what it loads again.
"""

import importlib
import importlib.metadata
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HOOKS = ("mlp.hook_in", "hook_mlp_out")  # of what is written here; sparsify has no others


@dataclass(frozen=True)
class Job:
    """What to do with a folder.

    Attributes:
        name: of the result.
        do: `read`, `write`, or the name of a published layout.
        path: of the folder, below the folder of the jobs.
        layers: which the folder has.
        d_feature, dtype, seed: for `write`.
        switches: for `write`: what kind of dictionary; the fields are each tool's own.
    """

    name: str
    do: str
    path: str
    layers: tuple[int, ...]
    d_feature: int = 0
    dtype: str = "float32"
    seed: int = 0
    switches: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What a tool made of a job: features, outputs, and the places it says that they belong to."""

    f: Any
    y: Any
    sites: tuple[str | None, str | None] = (None, None)


def torch() -> Any:
    """The library."""
    return importlib.import_module("torch")


def randomise(module: Any) -> Any:
    """Fill all parameters with normals, thresholds of either sign among them."""
    for p in module.parameters():
        p.data = torch().randn(p.shape, dtype=torch().float32).to(p.dtype)
    return module


# circuit-tracer


def circuit_tracer(folder: Path, job: Job, x: Any) -> Done:
    """Through its front door: a folder in its cache stands for a repository."""
    if job.do == "write":
        return _circuit_tracer_writes(folder, job, x)
    if job.do != "read":
        return _circuit_tracer_published(folder, job, x)
    module = importlib.import_module("circuit_tracer.utils.hf_utils")
    d, _ = module.load_transcoder_from_hub(job.path, cache_dir=str(folder), dtype=torch().float64)
    return _circuit_tracer_computes(d, x)


def _circuit_tracer_computes(d: Any, x: Any) -> Done:
    f = d.encode(x)
    cross = hasattr(d, "apply_activation_function") and not hasattr(d, "transcoders")
    return Done(f, d.decode(f.to_sparse() if cross else f, x), (d.feature_input_hook, d.feature_output_hook))


def _circuit_tracer_writes(folder: Path, job: Job, x: Any) -> Done:
    package = importlib.import_module("circuit_tracer.transcoder")
    cross = importlib.import_module("circuit_tracer.transcoder.cross_layer_transcoder")
    functions = importlib.import_module("circuit_tracer.transcoder.activation_functions")
    s, sizes = SimpleNamespace(**job.switches), (x.shape[-1], job.d_feature)
    about = {"device": torch().device("cpu"), "dtype": getattr(torch(), job.dtype)}
    hooks = {"feature_input_hook": HOOKS[0], "feature_output_hook": HOOKS[1]}
    config: dict[str, Any] = {"model_name": "tiny", **hooks}
    if s.kind == "clt":
        name = {"jumprelu": "jump_relu"}.get(s.activation, s.activation)
        d = cross.CrossLayerTranscoder(
            len(job.layers), sizes[1], sizes[0], name, s.skip, False, False, **hooks, scan="tiny", **about
        )
        config["model_kind"] = "cross_layer_transcoder"
    else:
        layers = {}
        for i in job.layers:
            activation = {
                "relu": lambda: torch().nn.functional.relu,
                "jumprelu": lambda: functions.JumpReLU(torch().zeros(job.d_feature, dtype=about["dtype"]), 0.1),
                "topk": lambda: functions.TopK(s.k),
            }[s.activation]()
            layers[i] = package.SingleLayerTranscoder(*sizes, activation, i, s.skip, **about)
        d = package.TranscoderSet(layers, **hooks, scan="tiny")
        config["model_kind"] = "transcoder_set"
    if s.activation == "topk":
        config |= {"activation": "topk", "k": s.k}
    randomise(d).to_safetensors(str(folder / job.path))
    text = importlib.import_module("yaml").safe_dump(config, sort_keys=False)
    (folder / job.path / "config.yaml").write_text(text, encoding="utf-8")
    return _circuit_tracer_computes(d.double(), x)


def _circuit_tracer_published(folder: Path, job: Job, x: Any) -> Done:
    """Its functions for Gemma Scope's files, which its front door calls for repositories of certain names."""
    single = importlib.import_module("circuit_tracer.transcoder.single_layer_transcoder")
    cross = importlib.import_module("circuit_tracer.transcoder.cross_layer_transcoder")
    paths = {i: str(folder / job.path / job.switches["file"].format(i)) for i in job.layers}
    more = {"device": torch().device("cpu"), "dtype": torch().float64}
    if job.do == "gemma-scope-2-clt":
        return _circuit_tracer_computes(cross.load_gemma_scope_2_clt(paths, **more), x)
    hooks = ("ln2.hook_normalized", "hook_mlp_out")
    return _circuit_tracer_computes(
        single.load_transcoder_set(
            paths, "tiny", *hooks, special_load_fn=job.do, lazy_encoder=False, lazy_decoder=False, **more
        ),
        x,
    )


# SAELens


def sae_lens(folder: Path, job: Job, x: Any) -> Done:
    """One folder a layer, `layer_{i}`."""
    module = importlib.import_module("sae_lens")
    done = []
    for slot, i in enumerate(job.layers):
        at = folder / job.path / f"layer_{i}"
        if job.do == "write":
            d = _sae_lens_writes(at, i, job, x.shape[-1])
        elif job.do == "read":
            d = module.SAE.load_from_disk(at, dtype="float64")
        else:
            d = _sae_lens_published(folder / job.path, i, job, x.shape[-1])
        names = (d.cfg.metadata.hook_name, d.cfg.metadata.hook_name_out)
        sites = tuple(None if name is None else name.removeprefix(f"blocks.{i}.") for name in names)
        done.append((d.encode(x[slot]), d(x[slot]), sites))
    f, y, sites = zip(*done, strict=True)
    return Done(torch().stack(f), torch().stack(y), sites[0] if len(set(sites)) == 1 else (None, None))


def _sae_lens_writes(at: Path, layer: int, job: Job, d_model: int) -> Any:
    module = importlib.import_module("sae_lens.saes.sae")
    about = {"model_name": "tiny", "hook_name": f"blocks.{layer}.{HOOKS[0]}"}
    about["hook_name_out"] = f"blocks.{layer}.{HOOKS[1]}"
    fields = dict(job.switches)
    cls, config = importlib.import_module("sae_lens.registry").get_sae_class(fields.pop("architecture"))
    sizes = {"d_in": d_model, "d_sae": job.d_feature, "d_out": d_model, "dtype": job.dtype}
    metadata = module.SAEMetadata(**about)
    d = cls(config(**sizes, apply_b_dec_to_input=False, metadata=metadata, **fields))
    randomise(d).save_model(at)
    return d.to(torch().float64)


def _sae_lens_published(folder: Path, layer: int, job: Job, d_model: int) -> Any:
    """Its loaders for other people's repositories, with the file in place of its download."""
    loaders: Any = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")
    safe_open = importlib.import_module("safetensors").safe_open
    file, second = folder / job.switches["file"].format(layer), job.do == "gemma-scope-2"

    def shapes(*_: Any) -> dict[str, list[int]]:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in sorted(tensors.keys())}

    def local(*_: Any, filename: str | None = None, **__: Any) -> str:
        return str(file.with_name("config.json") if filename is None else file)

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = local, shapes
    load = loaders.gemma_3_sae_huggingface_loader if second else loaders.gemma_2_transcoder_huggingface_loader
    repository = "google/gemma-scope-2-1b-pt" if second else "google/gemma-scope-2b-pt-transcoders"
    sizes = {} if second else {"d_in": d_model, "d_out": d_model, "d_sae": job.d_feature}

    def convert(*_: Any, **__: Any) -> Any:
        name = str(file.parent.relative_to(folder.parent))
        return load(repository, name, "cpu", cfg_overrides={"dtype": "float64", **sizes})[:2]

    sae = importlib.import_module("sae_lens").SAE
    return sae.load_from_disk(file.parent, dtype="float64", converter=convert).to(torch().float64)


# sparsify


def sparsify(folder: Path, job: Job, x: Any) -> Done:
    """One folder a layer, `layers.{i}.mlp`."""
    module = importlib.import_module("sparsify")
    done = []
    for slot, i in enumerate(job.layers):
        at = folder / job.path / f"layers.{i}.mlp"
        if job.do == "write":
            cfg = module.SparseCoderConfig(num_latents=job.d_feature, **job.switches)
            d = module.SparseCoder(x.shape[-1], cfg, dtype=getattr(torch(), job.dtype))
            randomise(d).save_to_disk(at)
        else:
            d = module.SparseCoder.load_from_disk(at)
        out = d.double()(x[slot])
        done.append((torch().zeros(x.shape[1], job.d_feature, dtype=x.dtype), out))
        done[-1][0].scatter_(-1, out.latent_indices, out.latent_acts)
    return Done(torch().stack([f for f, _ in done]), torch().stack([out.sae_out for _, out in done]))


TOOLS: dict[str, tuple[Callable[[Path, Job, Any], Done], tuple[str, ...]]] = {
    "circuit-tracer": (circuit_tracer, ("circuit-tracer", "transformer-lens", "torch")),
    "sae-lens": (sae_lens, ("sae-lens", "transformer-lens", "torch")),
    "sparsify": (sparsify, ("eai-sparsify", "torch")),
}


def attempt(tool: str, folder: Path, job: Job, x: Any) -> dict[str, Any]:
    """One job: the sites it says, or why it cannot."""
    torch().manual_seed(job.seed)
    try:
        with torch().no_grad():
            done = TOOLS[tool][0](folder, job, x)
            back = TOOLS[tool][0](folder, replace(job, do="read"), x) if job.do == "write" else None
    except Exception as error:  # whatever goes wrong there is a finding
        traceback.print_exc()
        text = " ".join(str(error).split()).replace(str(folder), "...")
        return {"error": f"{type(error).__name__}: {text}"[:300]}
    arrays = {"f": done.f, "y": done.y} | ({} if back is None else {"f_back": back.f, "y_back": back.y})
    np.savez(folder / f"{job.name}.npz", **{name: a.double().numpy() for name, a in arrays.items()})
    return {"error": None, "sites": done.sites}


def main(tool: str, folder: Path) -> dict[str, Any]:
    """All jobs of a folder."""
    x = torch().from_numpy(np.load(folder / "x.npy"))
    jobs = [Job(**fields) for fields in json.loads((folder / "jobs.json").read_text(encoding="utf-8"))]
    found = {job.name: attempt(tool, folder, job, x[list(job.layers)]) for job in jobs}
    return {"versions": {p: importlib.metadata.version(p) for p in TOOLS[tool][1]}, "jobs": found}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))

"""Published sets of dictionaries by name: which model they belong to, where their files are, which sites they read.

>>> find_preset("gemma").model
'google/gemma-2-2b'
>>> PRESETS["clt-llama-3.2-1b-524k"].reads
'resid_mid'

Facts were read in the files' own configurations, in their owners' loaders, or in the registries of circuit-tracer and
SAELens; what could not be established is None and left to the files. Nothing here is downloaded. The sets of the
embedded model are files of this package.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from tcircuits.models.builtin import ALGORITHMS
from tcircuits.transcoders.config import ActivationName, Reads, Writes


@dataclass(frozen=True)
class Preset:
    """One set, published or part of this package.

    Attributes:
        model: the language model's hub id, or built-in name.
        references: one reference to the whole set (or its folder), or the address of one file for each layer.
        n_layers: layers of the model; every one has a dictionary.
        d_feature: features of one layer.
        activation: None where the files say it (a threshold is there or not).
        k: number kept by `topk`.
        signed_topk: `topk` without a ReLU before it.
        bos: the set was made for prompts that begin with the model's first special token.
        processed: it was trained on the model as TransformerLens rewrites it: gains folded, writing weights centred.
        note: what a person should know.
        aliases: other names.
    """

    name: str
    model: str
    references: tuple[str, ...]
    kind: Literal["transcoder", "clt"]
    n_layers: int
    reads: Reads
    writes: Writes
    d_feature: int | None = None
    activation: ActivationName | None = None
    k: int | None = None
    signed_topk: bool = False
    skip: bool = False
    bos: bool | None = True
    processed: bool = False
    note: str = ""
    aliases: tuple[str, ...] = ()


# Mean number of active features of the file chosen for each layer: the list of mntss/gemma-scope-transcoders, which is
# also that of SAELens' release gemma-scope-2b-pt-transcoders.
GEMMA_SCOPE_L0 = (
    *(76, 65, 49, 54, 88, 87, 95, 70, 52, 72, 88, 5, 6),
    *(8, 8, 8, 10, 12, 13, 12, 11, 13, 15, 25, 37, 41),
)
GEMMA_3_LAYERS = {"270m": 18, "1b": 26, "4b": 34, "12b": 48, "27b": 62}
# (preset, repository, model, layers, features where known)
QWEN_3 = (
    ("qwen3-0.6b", "mwhanna/qwen3-0.6b-transcoders-lowl0", "Qwen/Qwen3-0.6B", 28, 163840),
    ("qwen3-1.7b", "mwhanna/qwen3-1.7b-transcoders-lowl0", "Qwen/Qwen3-1.7B", 28, None),
    ("qwen3-4b", "mwhanna/qwen3-4b-transcoders", "Qwen/Qwen3-4B", 36, 163840),
    ("qwen3-8b", "mwhanna/qwen3-8b-transcoders", "Qwen/Qwen3-8B", 36, None),
    ("qwen3-14b", "mwhanna/qwen3-14b-transcoders-lowl0", "Qwen/Qwen3-14B", 40, None),
    ("qwen3-14b-higher-l0", "mwhanna/qwen3-14b-transcoders", "Qwen/Qwen3-14B", 40, None),
)


def usual_set(model: str) -> str:
    """The set that a model is traced with where none is named: its own where it comes with one, else its neurons.

    >>> usual_set("tiny"), usual_set("smollm2-135m")
    ('tiny-transcoders', 'neurons')
    """
    name = f"{model}-transcoders"
    return name if name in EMBEDDED else "neurons"


def find_preset(name: str) -> Preset | None:
    """The preset of that name or alias, in any case; None where there is none."""
    return _BY_NAME.get(name.lower())


def _tiny() -> Iterator[Preset]:
    """The embedded model's own, trained by `experiments.tiny_dictionaries`."""
    folder = Path(__file__).resolve().parents[1] / "assets" / "tiny"
    notes = {
        "transcoders": "Transcoders of the embedded model, about 16 features on.",
        "skip-transcoders": "The same with an affine path beside the features.",
        "clt": "Cross-layer transcoder of the embedded model, about 16 features on in each layer.",
    }
    for name, note in notes.items():
        yield Preset(
            name=f"tiny-{name.split('-')[0]}",
            model="tiny",
            references=(str(folder / name),),
            kind="clt" if name == "clt" else "transcoder",
            n_layers=4,
            d_feature=1024,
            reads="mlp_in",
            writes="mlp_out",
            skip=name == "skip-transcoders",
            note=note,
        )


def _algorithms() -> Iterator[Preset]:
    """Those of the embedded models that compute a known function, trained by `experiments.algorithmic`."""
    folder = Path(__file__).resolve().parents[1] / "assets" / "algorithms"
    for model, name in ((model, name) for model in ALGORITHMS for name in ("transcoders", "clt")):
        if not (folder / model / name).is_dir():
            continue
        yield Preset(
            name=f"{model}-{name}",
            model=model,
            references=(str(folder / model / name),),
            kind="clt" if name == "clt" else "transcoder",
            n_layers=2 if model == "sorting" else 1,
            d_feature=256,
            reads="mlp_in",
            writes="mlp_out",
            bos=False,
            note=f"{name.capitalize()} of an embedded model that computes a known function.",
        )


def _gpt2() -> Preset:
    """The transcoder paper's own (arXiv 2406.11944), one pickled file a layer."""
    file = "final_sparse_autoencoder_gpt2-small_blocks.{}.ln2.hook_normalized_24576.pt"
    return Preset(
        name="gpt2",
        model="openai-community/gpt2",
        references=tuple(f"hf://pchlenski/gpt2-transcoders/{file.format(layer)}" for layer in range(12)),
        kind="transcoder",
        n_layers=12,
        d_feature=24576,
        activation="relu",
        reads="normalized",
        writes="mlp_out",
        processed=True,
        note="Transcoders of the paper; trained on centred outputs, so the model's own MLP output differs by its mean.",
        aliases=("gpt2-small", "gpt2-transcoders"),
    )


def _gemma_2() -> Iterator[Preset]:
    """Gemma Scope (arXiv 2408.05147) and the cross-layer transcoders of circuit-tracer, all for Gemma 2 2B."""
    top = "hf://google/gemma-scope-2b-pt-transcoders"
    yield Preset(
        name="gemma-scope-2b",
        model="google/gemma-2-2b",
        references=tuple(
            f"{top}/layer_{layer}/width_16k/average_l0_{l0}/params.npz" for layer, l0 in enumerate(GEMMA_SCOPE_L0)
        ),
        kind="transcoder",
        n_layers=26,
        d_feature=16384,
        activation="jumprelu",
        reads="normalized",
        writes="mlp_out",
        note="Gemma Scope, one of several sparsities a layer, as circuit-tracer and SAELens choose them.",
        aliases=("gemma", "gemma-scope-2b-pt-transcoders"),
    )
    for name, size, width in (("426k", "426k", 16384), ("2.5m", "2.5M", 98304)):
        yield Preset(
            name=f"clt-gemma-2-2b-{name}",
            model="google/gemma-2-2b",
            references=(f"mntss/clt-gemma-2-2b-{size}",),
            kind="clt",
            n_layers=26,
            d_feature=width,
            reads="resid_mid",
            writes="mlp_out",
            note=f"Cross-layer transcoder with {size} features; {'27' if name == '426k' else '159'} GiB of files.",
        )


def _llama() -> Iterator[Preset]:
    """Sets for Llama 3.2 1B, with and without a skip path."""
    model = "meta-llama/Llama-3.2-1B"
    yield Preset(
        name="llama-3.2-1b",
        model=model,
        references=("mntss/transcoder-Llama-3.2-1B",),
        kind="transcoder",
        n_layers=16,
        d_feature=131072,
        activation="relu",
        reads="resid_mid",
        writes="mlp_out",
        skip=True,
        note="ReLU transcoders with a skip path, read before the MLP's norm; 32 GiB of files.",
        aliases=("llama", "transcoder-llama-3.2-1b"),
    )
    yield Preset(
        name="clt-llama-3.2-1b-524k",
        model=model,
        references=("mntss/clt-llama-3.2-1b-524k",),
        kind="clt",
        n_layers=16,
        d_feature=32768,
        activation="jumprelu",
        reads="resid_mid",
        writes="mlp_out",
        note="Cross-layer transcoder with 524k features; 20 GB of tensors.",
    )
    yield Preset(
        name="llama-3.2-1b-skip",
        model=model,
        references=("EleutherAI/skip-transcoder-Llama-3.2-1B-131k",),
        kind="transcoder",
        n_layers=16,
        d_feature=131072,
        activation="topk",
        k=32,
        reads="mlp_in",
        writes="mlp_out",
        skip=True,
        bos=None,
        note="Skip transcoders; cfg.json lacks `transcode`, which sparsify reads as: subtract b_dec from the input.",
    )
    yield Preset(
        name="llama-3.2-1b-skip-relu",
        model=model,
        references=("EleutherAI/Llama-3.2-1B-mntss-skip-transcoder",),
        kind="transcoder",
        n_layers=16,
        d_feature=131072,
        activation="topk",
        k=64,
        reads="resid_mid",
        writes="mlp_out",
        skip=True,
        note="A ReLU set saved as top-64; read before the MLP's norm although its folders are named layers.N.mlp.",
    )


def _llama_8b() -> Iterator[Preset]:
    """Llama Scope (arXiv 2410.20526) for Llama 3.1 8B, and one set for its Instruct model."""
    for factor in (8, 32):
        yield Preset(
            name=f"llama-scope-8b-{factor}x",
            model="meta-llama/Llama-3.1-8B",
            references=(f"fnlp/Llama3_1-8B-Base-LXTC-{factor}x",),
            kind="transcoder",
            n_layers=32,
            d_feature=4096 * factor,
            activation="jumprelu",
            reads="normalized",
            writes="mlp_out",
            note="Llama Scope; inputs and outputs are scaled by the data's average norms, which differ.",
            aliases=(f"llama3_1-8b-base-lxtc-{factor}x", *(("llama-scope",) if factor == 8 else ())),
        )
    yield Preset(
        name="llama-3.1-8b-instruct-crv",
        model="meta-llama/Llama-3.1-8B-Instruct",
        references=("facebook/crv-8b-instruct-transcoders",),
        kind="transcoder",
        n_layers=32,
        activation="topk",
        k=128,
        signed_topk=True,
        reads="mlp_in",
        writes="mlp_out",
        note="The 128 largest pre-activations are kept without a ReLU; not for commercial use (CC BY-NC 4.0).",
    )


def _qwen_3() -> Iterator[Preset]:
    for name, repository, model, n_layers, width in QWEN_3:
        yield Preset(
            name=name,
            model=model,
            references=(repository,),
            kind="transcoder",
            n_layers=n_layers,
            d_feature=width,
            activation="relu",
            reads="mlp_in",
            writes="mlp_out",
            bos=False,
            note="ReLU transcoders without a first special token.",
            aliases=(repository.split("/")[1],),
        )


def _smollm_2() -> Preset:
    return Preset(
        name="smollm2-135m-skip",
        model="HuggingFaceTB/SmolLM2-135M",
        references=("EleutherAI/skip-transcoder-SmolLM2-135M-128x",),
        kind="transcoder",
        n_layers=30,
        d_feature=128 * 576,
        activation="topk",
        k=128,
        reads="mlp_in",
        writes="mlp_out",
        skip=True,
        bos=False,
        note="Skip transcoders of the base model (not Instruct).",
        aliases=("skip-transcoder-smollm2-135m-128x",),
    )


def _gemma_scope_2() -> Iterator[Preset]:
    """Gemma Scope 2: five sizes, two tunings, two widths, two sparsities, with and without the affine skip."""
    for size, n_layers in GEMMA_3_LAYERS.items():
        for tune in ("pt", "it"):
            for width in ("16k", "262k"):
                for l0 in ("small", "big"):
                    for affine in ("", "_affine"):
                        # Some layers of these are missing: 60 and 59 of 62 are there.
                        if (size, width, affine) != ("27b", "16k", ""):
                            yield _gemma_scope_2_layers(size, tune, n_layers, f"width_{width}_l0_{l0}{affine}")
    # The folders that were seen; the width is that of all layers together.
    for size, tune, width in (("270m", "pt", 262080 // 18), ("1b", "pt", None), ("1b", "it", None)):
        yield Preset(
            name=f"clt-gemma-scope-2-{size}-{tune}",
            model=_gemma_3(size, tune),
            references=(f"google/gemma-scope-2-{size}-{tune}/clt/width_262k_l0_medium_affine",),
            kind="clt",
            n_layers=GEMMA_3_LAYERS[size],
            d_feature=width,
            activation="jumprelu",
            reads="mlp_in",
            writes="mlp_out",
            skip=True,
            note="Gemma Scope 2 cross-layer transcoder with an affine skip within each layer.",
        )


def _gemma_scope_2_layers(size: str, tune: str, n_layers: int, what: str) -> Preset:
    """One set of single-layer transcoders; `what` ends the names of its folders: width_16k_l0_small_affine."""
    width, l0, *affine = what.removeprefix("width_").replace("_l0", "").split("_")
    name = f"gemma-scope-2-{size}-{tune}"
    top = f"hf://google/{name}/transcoder_all"
    return Preset(
        name="-".join((name, width, l0, *affine)),
        model=_gemma_3(size, tune),
        references=tuple(f"{top}/layer_{layer}_{what}/params.safetensors" for layer in range(n_layers)),
        kind="transcoder",
        n_layers=n_layers,
        d_feature=16384 if width == "16k" else None,
        activation="jumprelu",
        reads="mlp_in",
        writes="mlp_out",
        skip=bool(affine),
        note="Gemma Scope 2" + ("; prompts in the chat template." if tune == "it" else "."),
        aliases=(name,) if what == "width_16k_l0_small_affine" else (),
    )


def _gemma_3(size: str, tune: str) -> str:
    """The model's hub id; the smallest pretrained one carries no suffix."""
    return f"google/gemma-3-{size}" + ("" if (size, tune) == ("270m", "pt") else f"-{tune}")


_ALL = (_gpt2(), *_gemma_2(), *_llama(), *_llama_8b(), *_qwen_3(), _smollm_2(), *_gemma_scope_2())
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
EMBEDDED: Mapping[str, Preset] = MappingProxyType({p.name: p for p in (*_tiny(), *_algorithms())})
_BY_NAME = {name: preset for preset in (*EMBEDDED.values(), *_ALL) for name in (preset.name, *preset.aliases)}

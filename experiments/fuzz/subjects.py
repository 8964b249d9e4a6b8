"""What the fuzzer loads: for each subject how small valid files are made, and which public entry point reads them.

A new format is one entry of `SUBJECTS`: `make(folder)` writes variants, each a file or a folder, and `load(path, note)`
loads one of them completely. Before anything is decoded, `note(n)` says how many bytes it is going to have.
"""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

import tcircuits as tc
from experiments.common import ROOT
from experiments.fuzz import own
from experiments.fuzz.sets import make_sets
from tcircuits.attribution.graph_io import read_viewer_json, write_viewer_json
from tcircuits.files.limits import read_json, read_yaml
from tcircuits.files.opening import open_tensors
from tcircuits.files.strided import DTYPES

GOLDEN = ROOT / "tests" / "golden"
Note = Callable[[int], None]


@dataclass(frozen=True)
class Subject:
    """One kind of file.

    Attributes:
        make: writes variants into an empty folder.
        load: loads one of them completely.
        weight: its share of the files.
        inside: damages what is in a folder by other means than its files' bytes, and says how.
    """

    make: Callable[[Path], None]
    load: Callable[[Path, Note], Any]
    weight: float = 1.0
    inside: Callable[[Path, np.random.Generator], list[str]] | None = None


def read_tensors(path: Path, note: Note) -> None:
    """Every tensor of a file: whole, in part and by rows."""
    file = open_tensors(path)
    for name, header in file.headers.items():
        note(int(np.prod(header.shape, dtype=object)) * DTYPES[header.dtype].itemsize)
        file.read(name, None)
        if header.shape and header.shape[0]:
            file.read(name, tuple(slice(n // 3, n) for n in header.shape))
            file.read_rows(name, np.arange(0, min(header.shape[0], 100), 3))


def arrays() -> dict[str, np.ndarray]:
    """Arrays of several types and orders."""
    rng = np.random.default_rng(0)
    return {
        "W_enc": rng.normal(size=(6, 16)).astype(np.float32),
        "W_dec": np.asfortranarray(rng.normal(size=(16, 6)).astype(np.float32)),
        "b_enc": rng.normal(size=16).astype(np.float16),
        "threshold": rng.random(16),
        "tokens": np.arange(12, dtype=np.int64).reshape(2, 2, 3),
        "flags": np.array([True, False, True]),
        "scale": np.array(2.5, ">f8"),
    }


def make_safetensors(folder: Path) -> None:
    """One file of all types."""
    some = {name: np.ascontiguousarray(x) for name, x in arrays().items() if name != "scale"}
    some["bias"] = np.arange(8).astype(ml_dtypes.bfloat16).reshape(2, 4)
    save_file(some, folder / "a.safetensors", metadata={"format": "np"})


def make_npz(folder: Path) -> None:
    """Stored, deflated, and with a text."""
    np.savez(folder / "stored.npz", allow_pickle=False, **arrays(), text=np.array("a text"))
    big = np.zeros((64, 1024), np.float32)
    np.savez_compressed(folder / "packed.npz", allow_pickle=False, **arrays(), big=big)


def make_npy(folder: Path) -> None:
    """One array a file."""
    for name, x in arrays().items():
        np.save(folder / f"{name}.npy", x)


def golden_torch(*names: str) -> Callable[[Path], None]:
    """Files that PyTorch wrote."""

    def make(folder: Path) -> None:
        for name in names:
            shutil.copy(GOLDEN / "torch_files" / name, folder / name)

    return make


def load_dictionary(path: Path, note: Note) -> None:
    """A folder of dictionaries."""
    note(0)
    tc.load_transcoders(path)


def golden_folders(parent: str, *names: str) -> Callable[[Path], None]:
    """Folders that other tools wrote."""

    def make(folder: Path) -> None:
        for name in names:
            leave_out = shutil.ignore_patterns("reconstruction.npz")
            shutil.copytree(GOLDEN / parent / name, folder / name, ignore=leave_out)

    return make


def make_paper(folder: Path) -> None:
    """The transcoder paper's checkpoints of three layers: .pt, .pkl and .pkl.gz."""
    (folder / "paper").mkdir()
    for path in (GOLDEN / "paper_transcoders").glob("final_*"):
        shutil.copy(path, folder / "paper" / path.name)


def load_model(path: Path, note: Note) -> None:
    """A model."""
    note(0)
    tc.load_model(path)


def golden_model(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Configuration and weights of a tiny model."""
    with np.load(GOLDEN / "models" / f"{case}.npz", allow_pickle=False) as file:
        config = json.loads(str(file["config"]))
        return config, {n.removeprefix("weight:"): file[n] for n in file.files if n.startswith("weight:")}


def make_models(folder: Path) -> None:
    """Model folders: one file, two shards with their index, and PyTorch's own file."""
    (folder / "mistral").mkdir()
    (folder / "mistral" / "config.json").write_text(json.dumps(golden_model("mistral-whole")[0]))
    shutil.copy(GOLDEN / "models" / "mistral-whole.bin", folder / "mistral" / "pytorch_model.bin")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.add_special_tokens(["<s>"])
    (folder / "mistral" / "tokenizer.json").write_text(backend.to_str())
    for case, shards in (("gpt2-plain", 1), ("llama-gqa-llama3", 2)):
        config, weights = golden_model(case)
        into = folder / case
        into.mkdir()
        (into / "config.json").write_text(json.dumps(config))
        if shards == 1:
            save_file(weights, into / "model.safetensors")
            continue
        index = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(weights))}
        for file in sorted(set(index.values())):
            save_file({n: weights[n] for n in weights if index[n] == file}, into / file)
        (into / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """The name that a GGUF file has for a tensor of a Llama folder."""
    name = name.removeprefix("model.")
    block = ""
    if name.startswith("layers."):
        _, layer, name = name.split(".", 2)
        block = f"blk.{layer}."
    stem, _, kind = name.rpartition(".")
    return f"{block}{GGUF_NAMES[stem]}.{kind}"


def make_gguf(folder: Path) -> None:
    """A GGUF file of float32 weights with a tokenizer, written by hand from the format's description."""
    config, weights = golden_model("llama-mha")
    theta = config["rope_parameters"]["rope_theta"]

    def text(x: str) -> bytes:
        return struct.pack("<Q", len(x.encode())) + x.encode()

    fields: list[tuple[str, bytes]] = [("general.architecture", struct.pack("<I", 8) + text("llama"))]
    numbers = {
        "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim", "attention.value_length": "head_dim", "rope.dimension_count": "head_dim",
    }  # fmt: skip
    fields += [(f"llama.{new}", struct.pack("<II", 4, config[old])) for new, old in numbers.items()]
    fields += [("llama.attention.layer_norm_rms_epsilon", struct.pack("<If", 6, config["rms_norm_eps"]))]
    fields += [("llama.rope.freq_base", struct.pack("<If", 6, theta))]
    fields += [("general.alignment", struct.pack("<II", 4, 32))]
    words = ["w", "0", *(f"w{i}" for i in range(config["vocab_size"] - 2))]
    fields += [("tokenizer.ggml.model", struct.pack("<I", 8) + text("gpt2"))]
    fields += [("tokenizer.ggml.tokens", struct.pack("<IIQ", 9, 8, len(words)) + b"".join(map(text, words)))]
    fields += [("tokenizer.ggml.token_type", struct.pack("<IIQ", 9, 5, len(words)) + b"\1\0\0\0" * len(words))]
    fields += [("tokenizer.ggml.merges", struct.pack("<IIQ", 9, 8, 1) + text("w 0"))]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(weights), len(fields))
    head += b"".join(text(key) + value for key, value in fields)
    data = b""
    for name, w in weights.items():
        shape = w.shape[::-1]
        head += text(gguf_name(name)) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += w.astype(np.float32).tobytes() + bytes(-4 * w.size % 32)
    (folder / "a.gguf").write_bytes(head + bytes(-len(head) % 32) + data)


def make_graph(folder: Path) -> None:
    """A graph of a tiny random model, as this package saves it, and as viewers read it."""
    from experiments.toys import random_dictionary, random_model

    model = random_model("llama", n_layers=2, d_mlp=16, d_vocab=20)
    tokens = np.array([3, 1, 4, 1])
    graph = tc.attribute(model, random_dictionary(model, "plt-relu", tokens, d_feature=24, share=0.2), tokens)
    tc.save_graph(graph, folder / "graph.npz")
    write_viewer_json(graph, folder / "graph.json")
    (folder / "graph-metadata.json").unlink()


def load_graph(path: Path, note: Note) -> None:
    """A graph."""
    note(0)
    (read_viewer_json if path.suffix == ".json" else tc.load_graph)(path)


def make_ct_graph(folder: Path) -> None:
    """Graphs that circuit-tracer saved."""
    for name in ("plt.pt", "clt.pt", "plt@tokens.pt", "direction.pt"):
        shutil.copy(GOLDEN / "circuit_tracer_graphs" / name, folder / name)


def make_texts(folder: Path) -> None:
    """JSON and YAML as configurations have them."""
    config, _ = golden_model("llama-gqa-llama3")
    (folder / "config.json").write_text(json.dumps(config | {"nested": {"a": [1, 2.5, None, {"b": "\u00e9"}]}}))
    lines = [f"- 'hf://org/repo/layer_{i}/width_16k/average_l0_{i * 7}/params.npz'" for i in range(26)]
    text = "model_name: google/gemma-2-2b\nmodel_kind: transcoder_set\nscan: {a: [1, 2.5], b: null}\ntranscoders:\n"
    (folder / "config.yaml").write_text(text + "\n".join(lines) + "\n")


def load_text(path: Path, note: Note) -> None:
    """A configuration."""
    note(0)
    (read_yaml if path.suffix == ".yaml" else read_json)(path)


SUBJECTS: dict[str, Subject] = {
    "safetensors": Subject(make_safetensors, read_tensors, 1.5),
    "npz": Subject(make_npz, read_tensors, 1.5),
    "npy": Subject(make_npy, read_tensors),
    "torch-zip": Subject(
        golden_torch("transcoder.pt", "types.pt", "views.pt", "module.pt", "newer.pt"), read_tensors, 2
    ),
    "torch-stream": Subject(
        golden_torch("transcoder-legacy.pt", "types-legacy.pt", "views-legacy.pt", "module-legacy.pt"), read_tensors, 2
    ),
    "pickle": Subject(
        golden_torch("transcoder.pkl", "transcoder-2.pkl", "transcoder-5.pkl", "views.pkl", "module.pkl"),
        read_tensors,
        2,
    ),
    "gzip": Subject(golden_torch("transcoder.pkl.gz", "transcoder.pt.gz"), read_tensors),
    "circuit-tracer": Subject(
        golden_folders("circuit_tracer_folders", "plt-jumprelu-skip", "plt-skip-bfloat16", "clt-jumprelu"),
        load_dictionary,
        1.5,
    ),
    "model-folder": Subject(make_models, load_model, 1.5),
    "gguf": Subject(make_gguf, load_model, 1.5),
    "graph": Subject(make_graph, load_graph, 1.5),
    "texts": Subject(make_texts, load_text),
    "paper": Subject(make_paper, load_dictionary),
    "saelens": Subject(golden_folders("rival_folders/sae-lens", "jumprelu-skip", "transcoder"), load_dictionary),
    "sparsify": Subject(golden_folders("rival_folders/sparsify", "skip-transcoder", "transcoder"), load_dictionary),
    "sets": Subject(make_sets, load_dictionary, 1.5),
    "ct-graph": Subject(make_ct_graph, load_graph),
    "paths": Subject(own.make_paths, own.load_paths),
    "records": Subject(own.make_records, own.load_record),
    "trees": Subject(own.make_trees, own.load_tree),
    "results": Subject(own.make_results, own.load_result),
    "tokens": Subject(own.make_tokens, own.load_tokens),
    "features": Subject(own.make_features, own.load_features),
    "checkpoints": Subject(own.make_checkpoints, own.load_checkpoint, inside=own.in_store),
    "direction": Subject(own.make_directions, own.load_direction),
    "corpus": Subject(own.make_corpora, own.load_corpus),
}

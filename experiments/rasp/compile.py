"""Compile the programs with tracr and keep weights, inputs and outputs, so that nothing else needs tracr.

    pip install tracr-pypi==1.0.0
    python -m experiments.rasp.compile

Each program becomes NAME.json and NAME.npz in `experiments/rasp/compiled`: weights by our names, all inputs as token
ids, what the RASP interpreter answers (None where a program has no answer), and what the compiled model writes to its
output space on every input, all positions: what `forward` is tested against.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.rasp.programs import PROGRAMS, Program
from tcircuits.files.record import write_record

FOLDER = Path(__file__).parent / "compiled"
KIND, VERSION = "rasp program", 1
BOS = "compiler_bos"  # tracr's own name for it


@dataclass(frozen=True)
class Config:
    """What to compile."""

    only: tuple[str, ...] = ()
    """Names of programs; all if empty."""


def compiled(program: Program) -> tuple[Any, Any]:
    """The program as tracr's expression, and the assembled model."""
    modules = ("tracr.rasp.rasp", "tracr.compiler.lib", "tracr.compiler.compiling")
    rasp, lib, compiling = (importlib.import_module(name) for name in modules)
    sop = program.build(rasp, lib)
    model = compiling.compile_rasp_to_model(
        sop, vocab=set(program.vocab), max_seq_len=program.length, causal=program.causal
    )
    return sop, model


def weights(model: Any) -> dict[str, np.ndarray]:
    """Tracr's parameters, layers stacked and heads apart; its biases are all zero and are left out.

    Raises:
        ValueError: a bias that is not.
    """
    given = {name: {k: np.asarray(v) for k, v in group.items()} for name, group in model.params.items()}
    if any(np.abs(group["b"]).max() > 0 for group in given.values() if "b" in group):
        raise ValueError("a bias of the compiled model is not zero")
    H, K = model.model_config.num_heads, model.model_config.key_size

    def stacked(name: str) -> np.ndarray:
        return np.stack([given[f"transformer/layer_{i}/{name}"]["w"] for i in range(model.model_config.num_layers)])

    found = {f"w_{s[0]}": stacked(f"attn/{s}") for s in ("query", "key", "value")}
    found = {name: w.reshape(*w.shape[:2], H, K) for name, w in found.items()}
    w_o = stacked("attn/linear")
    found |= {"w_o": w_o.reshape(len(w_o), H, K, -1), "w_in": stacked("mlp/linear_1"), "w_out": stacked("mlp/linear_2")}
    return found | {"embed": given["token_embed"]["embeddings"], "pos_embed": given["pos_embed"]["embeddings"]}


def projection(sop: Any, labels: list[str], values: list[Any]) -> np.ndarray:
    """The matrix from the residual stream to the output space, [D, O]: one direction for each value, or one in all."""
    directions = [f"{sop.label}:{value}" for value in values] if values else [sop.label]
    found = np.zeros((len(labels), len(directions)), np.float32)
    found[[labels.index(d) for d in directions], np.arange(len(directions))] = 1
    return found


def described(program: Program) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compile one program: what its record says in words, and its arrays."""
    sop, model = compiled(program)
    encode, decode = model.input_encoder.encoding_map, model.output_encoder
    categorical = hasattr(decode, "encoding_map")
    values = sorted(decode.encoding_map, key=decode.encoding_map.__getitem__) if categorical else []
    tokens = np.asarray([[encode[BOS], *(encode[t] for t in row)] for row in program.inputs], np.int8)
    evaluate = importlib.import_module(f"tracr.rasp.{'causal_eval' if program.causal else 'rasp'}").evaluate
    answers = [[_told(v, categorical) for v in evaluate(sop, list(row))] for row in program.inputs]
    arrays = {k: v.astype(np.float32) for k, v in weights(model).items()}
    arrays["unembed"] = projection(sop, model.residual_labels, values)
    outputs = model.forward(model.params, tokens.astype(np.int32)).transformer_output.output @ arrays["unembed"]
    head = {
        "vocab": sorted((t for t in encode), key=encode.__getitem__),
        "values": values,
        "answers": answers,
        "labels": model.residual_labels,
        "causal": program.causal,
        "compiler": "tracr-pypi 1.0.0",
    }
    return head, arrays | {"tokens": tokens, "outputs": np.asarray(outputs)}


def _told(value: Any, categorical: bool) -> Any:
    """An answer as JSON has it."""
    return value if value is None or categorical else float(value)


def main(cfg: Config) -> None:
    """Compile and write."""
    for name in cfg.only or PROGRAMS:
        head, arrays = described(PROGRAMS[name])
        write_record(FOLDER / name, KIND, VERSION, {"name": name} | head, arrays)
        print(f"{name}: {(FOLDER / name).with_suffix('.npz').stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

"""Does SmolLM2-135M, read from its GGUF file, compute what the reference implementation computes?

    python -m experiments.smollm2_reference

Next-token probabilities of two prompts (float32, no BOS token), the largest difference of logits from transformers on
the same dequantised weights over 200 tokens (`tests/golden/models/smollm2.npz`, made by `tests/golden/make_models.py`),
and the time and memory that loading takes in a fresh process.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.common import ROOT, fresh, peak_rss_gb, save, show
from tcircuits.models.forward import forward

GOLDEN = ROOT / "tests" / "golden" / "models" / "smollm2.npz"
PROMPTS = (
    ("The capital of France is", " Paris", 0.7725),
    ("When Mary and John went to the store, John gave a drink to", " Mary", 0.923),
)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    model: str = "smollm2-135m"
    """Name or path of the model; the golden file belongs to this one."""


def loading(model: str) -> dict[str, float]:
    """Seconds and memory of loading, in this process."""
    before, start = peak_rss_gb(), time.perf_counter()
    loaded = tc.load_model(model)
    jax.block_until_ready(loaded.params)
    seconds, size = time.perf_counter() - start, sum(x.nbytes for x in jax.tree.leaves(loaded.params))
    return {"seconds": seconds, "rss_before_gb": before, "peak_rss_gb": peak_rss_gb(), "parameters_gb": size / 1e9}


def answers(model: tc.Model) -> list[dict[str, Any]]:
    """The probability of each prompt's answer, and whether it is the likeliest token."""
    rows = []
    for prompt, answer, expected in PROMPTS:
        ids, (target,) = model.encode(prompt), model.encode(answer)
        p = jax.nn.softmax(forward(model.cfg, model.params, jnp.array([ids])).logits[0, -1])
        row = {"prompt": prompt, "answer": answer, "p": float(p[target]), "expected": expected}
        rows.append(row | {"is_top": int(p.argmax()) == target, "tokens": ids})
    return rows


def differences(model: tc.Model) -> dict[str, Any]:
    """The largest differences from the golden file, over all its positions."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    tokens = golden["tokens"]
    out = jax.jit(forward, static_argnums=0)(model.cfg, model.params, tokens[None])
    got = np.asarray(out.logits[0], np.float64)
    peak = got.max(-1, keepdims=True)
    total = np.log(np.exp(got - peak).sum(-1)) + peak[:, 0]

    def worst(ours: np.ndarray, name: str) -> float:
        return float(np.abs(ours - golden[name]).max())

    return {
        "tokens": len(tokens),
        "tokenizer_agrees": model.encode(str(golden["text"]))[: len(tokens)] == tokens.tolist(),
        "logits_compared": golden["logits"].size + golden["top_logits"].size,
        "max_difference": max(
            worst(got[:, golden["columns"]], "logits"),
            worst(np.take_along_axis(got, golden["top"], -1), "top_logits"),
        ),
        "max_difference_logsumexp": worst(total, "logsumexp"),
        "largest_logit": float(np.abs(golden["top_logits"]).max()),
    }


def main(cfg: Config) -> None:
    """Measure, print, write."""
    load = fresh("experiments.smollm2_reference", "loading", model=cfg.model)
    model = tc.load_model(cfg.model)
    figures = {"load": load, "answers": answers(model), "logits": differences(model)}
    show("answers", [{k: v for k, v in row.items() if k != "tokens"} for row in figures["answers"]])
    show("logits against the reference implementation", [figures["logits"]])
    show("loading", [load])
    save("smollm2_reference", cfg, figures)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

"""Makes `models/*.npz` of the families that came after the first three, and `generated.npz` for all of them.

Run once in an environment of its own (nothing of this is a dependency of the package):

    pip install torch==2.13.0 transformers==5.23.0 safetensors sentencepiece
    python tests/golden/make_family_models.py

A file holds what `make_models.py` writes. Weights are random numbers that bfloat16 can hold, which halves the files.
`generated.npz` holds, for every case, the 20 tokens that the reference writes after the first 12 tokens of the prompt,
always taking the likeliest; the two likeliest are never closer than `GAP` (a case that has closer ones gets another
seed): logits that are right to 2e-5 cannot change the answer. `mistral-whole.bin` holds that case's tensors as
`torch.save` writes them, in bfloat16, the tied unembedding sharing the embedding's storage.
"""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    MistralConfig,
    Olmo2Config,
    OlmoConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

OUT = Path(__file__).parent / "models"
N, V = 24, 40  # tokens of a prompt, vocabulary
PROMPT, WRITTEN, GAP = 12, 20, 1e-4

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 20, "vocab_size": V, "max_position_embeddings": 40, "pad_token_id": 0}
FOUR, ONE = {"num_hidden_layers": 4}, {"num_key_value_heads": 1}
LOCAL, FULL = "sliding_attention", "full_attention"
# Heads of width 4 rotate at 1 and 0.1 radians: this scaling keeps the one and mixes the other.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}


def rope(theta: float = 10000.0, **scaling: float | str) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}


def two_ropes(whole: float, local: float, **scaling: float | str) -> dict:
    about = {FULL: {"rope_type": "default", "rope_theta": whole, **scaling}}
    return {"rope_parameters": about | {LOCAL: {"rope_type": "default", "rope_theta": local}}}


WRAPPED = SIZES | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5, "layer_types": [LOCAL, FULL, LOCAL]}
VISION = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION |= {"image_size": 4, "patch_size": 2}
GEMMA = SIZES | {"head_dim": 8}
CASES: dict[str, PreTrainedConfig] = {
    "mistral-window": MistralConfig(**SIZES, **rope(), sliding_window=5, head_dim=8, rms_norm_eps=1e-2),
    "mistral-whole": MistralConfig(
        **SIZES | {"num_key_value_heads": 4}, rope_parameters=LLAMA3, sliding_window=None, tie_word_embeddings=True
    ),
    "qwen2-whole": Qwen2Config(**SIZES, **rope(1e6), tie_word_embeddings=True, sliding_window=5, max_window_layers=1),
    "qwen2-window": Qwen2Config(**SIZES, **rope(), use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen2-types": Qwen2Config(
        **SIZES | ONE, **rope(), use_sliding_window=True, sliding_window=4, layer_types=[LOCAL, FULL, LOCAL]
    ),
    "qwen3-plain": Qwen3Config(**SIZES, **rope(1e6), head_dim=8, tie_word_embeddings=True),
    "qwen3-bias-window": Qwen3Config(
        **SIZES | ONE,
        **rope(rope_type="linear", factor=2.0),
        head_dim=8,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=2,
        rms_norm_eps=1e-2,
    ),
    "gemma2-caps": Gemma2Config(
        **GEMMA | FOUR,
        **rope(),
        sliding_window=6,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma2-plain": Gemma2Config(
        **GEMMA | ONE,
        **rope(100.0),
        sliding_window=4,
        layer_types=[FULL, LOCAL, FULL],
        query_pre_attn_scalar=12,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        attention_bias=True,
        tie_word_embeddings=False,
        hidden_activation="gelu",
        rms_norm_eps=1e-2,
    ),
    "gemma3_text-pattern": Gemma3TextConfig(
        **GEMMA | {"num_hidden_layers": 7},
        **two_ropes(1e6, 100.0, rope_type="linear", factor=4.0),
        sliding_window=5,
        query_pre_attn_scalar=8,
    ),
    "gemma3_text-cap": Gemma3TextConfig(
        **GEMMA | ONE,
        **two_ropes(1e4, 10.0),
        sliding_window=6,
        layer_types=[FULL, LOCAL, LOCAL],
        query_pre_attn_scalar=16,
        final_logit_softcapping=3.0,
        attention_bias=True,
        tie_word_embeddings=False,
        rms_norm_eps=1e-2,
    ),
    "gemma3-wrapped": Gemma3Config(
        text_config=WRAPPED | two_ropes(1e6, 1e4, rope_type="linear", factor=8.0),
        vision_config=VISION | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=1,
    ),
    "smollm3-default": SmolLM3Config(**SIZES | FOUR, **rope(100.0)),
    "smollm3-biases": SmolLM3Config(
        **SIZES,
        **rope(),
        no_rope_layers=[0, 1, 0],
        use_sliding_window=True,
        sliding_window=5,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "olmo-plain": OlmoConfig(**SIZES, **rope()),
    "olmo-biases": OlmoConfig(**SIZES | ONE, **rope(), attention_bias=True, tie_word_embeddings=True),
    "olmo2-plain": Olmo2Config(**SIZES, **rope(5e5)),
    "olmo2-biases": Olmo2Config(
        **SIZES | {"num_key_value_heads": 4}, **rope(), attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-2
    ),
}
OLDER = ("gpt2", "neox", "llama")  # their files are there, and stay as they are


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Every parameter random, so that no bias is zero, no gain is one, and no gain of Gemma's kind is zero."""
    g = torch.Generator().manual_seed(seed)
    from_one = not any("Gemma" in type(m).__name__ for m in model.modules())
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=g)
            if p.ndim > 1:
                draw = draw / math.sqrt(p.shape[-1]) * (3.0 if "embed_tokens" in name else 1.0)
            else:
                draw = 0.3 * draw + float(name.endswith("weight") and from_one)
            p.copy_(draw.bfloat16().float())


def logits(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    mask_t = torch.tensor(mask, dtype=torch.long)
    positions = (mask_t.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(torch.tensor(tokens), attention_mask=mask_t, position_ids=positions, use_cache=False)
    return out.logits.float().numpy()


def build(config: PreTrainedConfig) -> torch.nn.Module:
    kind = Gemma3ForConditionalGeneration if isinstance(config, Gemma3Config) else AutoModelForCausalLM
    make = kind._from_config if kind is Gemma3ForConditionalGeneration else kind.from_config
    return make(config, attn_implementation="eager").eval()


def make_case(name: str, seed: int) -> None:
    model = build(CASES[name])
    randomise(model, seed)
    model.tie_weights()
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, V, (4, N))
    mask = np.ones((4, N), bool)
    mask[1, :7], mask[2, 15:] = False, False
    out = logits(model, tokens, mask)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        text = (Path(folder) / "config.json").read_text()
        weights = load_file(Path(folder) / "model.safetensors")
    arrays = {"tokens": tokens[0], "logits": out[0], "batch_tokens": tokens[1:], "batch_mask": mask[1:]}
    arrays |= {"batch_logits": out[1:]}
    weights = {f"weight:{k}": w for k, w in weights.items()}
    np.savez_compressed(OUT / f"{name}.npz", config=np.array(json.dumps(json.loads(text))), **arrays, **weights)


def written(model: torch.nn.Module, prompt: np.ndarray) -> tuple[list[int], float]:
    """Tokens after a prompt, each from a pass over everything before it; the smallest gap between the two likeliest."""
    tokens, gap = prompt.tolist(), math.inf
    for _ in range(WRITTEN):
        last = logits(model, np.array([tokens]), np.ones((1, len(tokens)), bool))[0, -1]
        second, first = np.sort(last)[-2:]
        gap = min(gap, float(first - second))
        tokens.append(int(last.argmax()))
    return tokens[len(prompt) :], gap


def reload(name: str) -> tuple[torch.nn.Module, np.ndarray]:
    """The model of a file, in the reference."""
    with np.load(OUT / f"{name}.npz", allow_pickle=False) as file, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(str(file["config"]))
        weights = {n.removeprefix("weight:"): file[n] for n in file.files if n.startswith("weight:")}
        save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})
        kind = Gemma3ForConditionalGeneration if name == "gemma3-wrapped" else AutoModelForCausalLM
        model = kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
        return model.eval(), file["tokens"]


def make_generated() -> None:
    out = {}
    for path in sorted(OUT.glob("*-*.npz")):
        model, tokens = reload(path.stem)
        out[path.stem], gap = written(model, tokens[:PROMPT])
        print(f"{path.stem}: gap {gap:.4f}")
        assert gap > GAP, path.stem
    np.savez_compressed(OUT / "generated.npz", **{name: np.array(ids) for name, ids in out.items()})


def make_bin(name: str) -> None:
    model, _ = reload(name)
    torch.save(model.bfloat16().state_dict(), OUT / f"{name}.bin")


if __name__ == "__main__":
    torch.set_num_threads(2)
    for number, case in enumerate(CASES):
        make_case(case, 100 + number)
    make_generated()
    make_bin("mistral-whole")

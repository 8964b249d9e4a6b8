"""Makes `models/plain-*.npz` and their part of `models/generated.npz`: networks without norms, by TransformerLens.

Run once, after `make_family_models.py`, in an environment of its own (nothing of this is a dependency of the package):

    pip install transformer-lens==3.9.0
    python tests/golden/make_plain_models.py

transformers has no such family; TransformerLens is what such networks are published for. Files are those of
`make_models.py`; tensors have the package's own names. Padded rows hold the logits of the prompt without its padding.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

OUT = Path(__file__).parent / "models"
N, V = 24, 48  # tokens of a prompt, vocabulary
SIZES = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 40}
CASES = {
    "plain-relu": ({"num_hidden_layers": 2, "intermediate_size": 56, "hidden_act": "relu"}, "relu"),
    "plain-gelu": (
        {"num_hidden_layers": 3, "intermediate_size": 40, "hidden_act": "gelu_new"},
        "gelu_new",
    ),
}
OWN = {"W_Q": "attn.w_q", "W_K": "attn.w_k", "W_V": "attn.w_v", "W_O": "attn.w_o"}


def build(raw: dict, activation: str, seed: int) -> HookedTransformer:
    """A random network: biases of the MLP and the unembedding alone, those of attention are zero."""
    model = HookedTransformer(
        HookedTransformerConfig(
            d_model=raw["hidden_size"],
            n_heads=raw["num_attention_heads"],
            d_head=raw["hidden_size"] // raw["num_attention_heads"],
            n_layers=raw["num_hidden_layers"],
            n_ctx=raw["max_position_embeddings"],
            d_mlp=raw["intermediate_size"],
            d_vocab=V,
            act_fn=activation,
            normalization_type=None,
            device="cpu",
        )
    ).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            last = name.split(".")[-1]
            size = 4 if last in ("W_E", "W_pos") else p.shape[-2] if last.startswith("W") else 11
            size *= 4 if last in ("W_O", "W_out") else 1  # without norms nothing else keeps logits small
            zero = last in ("b_Q", "b_K", "b_V", "b_O")
            p.copy_(torch.randn(p.shape, generator=g) * (0 if zero else size**-0.5))
    return model


def weights(model: HookedTransformer) -> dict[str, np.ndarray]:
    found = {"embed": model.W_E, "pos_embed": model.W_pos, "unembed": model.W_U, "b_unembed": model.b_U}
    for i, block in enumerate(model.blocks):
        found |= {f"layers.{i}.{own}": getattr(block.attn, name) for name, own in OWN.items()}
        for own in ("w_q", "w_k", "w_v"):  # [heads, in, width] there, [in, heads, width] here
            found[f"layers.{i}.attn.{own}"] = found[f"layers.{i}.attn.{own}"].transpose(0, 1)
        mlp = block.mlp
        found |= {f"layers.{i}.mlp.{n}": x for n, x in (("w_in", mlp.W_in), ("b_in", mlp.b_in), ("w_out", mlp.W_out))}
        found[f"layers.{i}.mlp.b_out"] = mlp.b_out
    return {name: x.detach().numpy().copy() for name, x in found.items()}


def logits(model: HookedTransformer, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens[None]))[0].numpy()


def continued(model: HookedTransformer, tokens: np.ndarray, count: int = 20) -> np.ndarray:
    """The likeliest token, count times, from whole runs."""
    for _ in range(count):
        last = logits(model, tokens)[-1]
        best = np.sort(last)[-2:]
        assert best[1] - best[0] > 1e-4, "a tie: take another seed"
        tokens = np.append(tokens, last.argmax())
    return tokens[-count:]


def make_case(name: str, seed: int) -> np.ndarray:
    raw, activation = CASES[name]
    raw = {"model_type": "plain"} | SIZES | raw
    model, rng = build(raw, activation, seed), np.random.default_rng(seed)
    tokens = rng.integers(0, V, (4, N))
    mask = np.ones((4, N), bool)
    mask[1, :7], mask[2, 15:] = False, False
    out = np.zeros((4, N, V), np.float32)
    for row, where, into in zip(tokens, mask, out, strict=True):
        into[where] = logits(model, row[where])
    arrays = {"tokens": tokens[0], "logits": out[0], "batch_tokens": tokens[1:], "batch_mask": mask[1:]}
    arrays |= {"batch_logits": out[1:]} | {f"weight:{k}": w for k, w in weights(model).items()}
    np.savez_compressed(OUT / f"{name}.npz", config=np.array(json.dumps(raw)), **arrays)
    return continued(model, tokens[0, :12])


if __name__ == "__main__":
    with np.load(OUT / "generated.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    found |= {name: make_case(name, seed) for seed, name in enumerate(CASES)}
    np.savez_compressed(OUT / "generated.npz", **found)

"""Makes `models/folded.npz`: what TransformerLens' default processing makes of the weights of some golden models.

Run once in an environment of its own (nothing of this is a dependency of the package):

    pip install transformer-lens==3.2.1
    python tests/golden/make_transformer_lens.py

The raw weights of each case come from its golden file; TransformerLens folds norms, centres what is written and the
unembedding, and folds value biases, as `HookedTransformer.from_pretrained` does. Arrays are named CASE:NAME, with the
names of its state dict, in float32; of the layers, the second is kept.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_neox_weights
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).parent / "models"
CONVERT = {"gpt2-plain": convert_gpt2_weights, "neox-parallel": convert_neox_weights}


def lens_config(case: str, raw: dict) -> HookedTransformerConfig:
    gpt2 = raw["model_type"] == "gpt2"
    d, heads = raw["n_embd" if gpt2 else "hidden_size"], raw["n_head" if gpt2 else "num_attention_heads"]
    rope = {}
    if not gpt2:
        about = raw["rope_parameters"]
        rope = {"rotary_dim": int(d // heads * about["partial_rotary_factor"]), "rotary_base": int(about["rope_theta"])}
    return HookedTransformerConfig(
        d_model=d,
        n_heads=heads,
        d_head=d // heads,
        n_layers=raw["n_layer" if gpt2 else "num_hidden_layers"],
        n_ctx=raw["n_positions" if gpt2 else "max_position_embeddings"],
        d_mlp=4 * d if gpt2 else raw["intermediate_size"],
        d_vocab=raw["vocab_size"],
        eps=raw["layer_norm_epsilon" if gpt2 else "layer_norm_eps"],
        act_fn="gelu_new" if gpt2 else "gelu",
        normalization_type="LN",
        positional_embedding_type="standard" if gpt2 else "rotary",
        parallel_attn_mlp=not gpt2,
        device="cpu",
        **rope,
    )


def processed(case: str) -> tuple[dict[str, np.ndarray], HookedTransformer, torch.nn.Module]:
    with np.load(OUT / f"{case}.npz", allow_pickle=False) as file:
        raw = json.loads(str(file["config"]))
        weights = {n.removeprefix("weight:"): torch.tensor(file[n]) for n in file.files if n.startswith("weight:")}
    config = AutoConfig.for_model(**raw)
    theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    missing = theirs.load_state_dict(weights, strict=False)
    assert {*missing.missing_keys, *missing.unexpected_keys} <= {"lm_head.weight"}, missing
    theirs.tie_weights()
    model = HookedTransformer(lens_config(case, raw))
    state = CONVERT[case](theirs, model.cfg)
    model.load_and_process_state_dict(model.fill_missing_keys(state))
    buffers = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
    arrays = {n: x.numpy() for n, x in model.state_dict().items() if n.split(".")[-1] not in buffers}
    kept = {n: x for n, x in arrays.items() if not n.startswith("blocks.") or n.startswith("blocks.1.")}
    return kept, model, theirs


if __name__ == "__main__":
    out = {}
    for case in CONVERT:
        arrays, model, theirs = processed(case)
        tokens = torch.tensor(np.load(OUT / f"{case}.npz")["tokens"][None])
        with torch.no_grad():
            a, b = model(tokens).log_softmax(-1), theirs(tokens).logits.log_softmax(-1)
        print(case, f"log-probabilities differ by {(a - b).abs().max():.1e}", len(arrays))
        assert (a - b).abs().max() < 2e-5
        out |= {f"{case}:{name}": array for name, array in arrays.items()}
    np.savez_compressed(OUT / "folded.npz", **out)

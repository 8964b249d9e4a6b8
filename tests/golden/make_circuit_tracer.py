"""Makes tests/golden/circuit_tracer/*.npz: graphs of tiny random models by circuit-tracer 0.5.0, in float64.

Run from the top of the repository, in an environment of its own (Python 3.11):

    pip install torch==2.13.0 circuit-tracer==0.5.0 "transformer-lens<4" "transformers>=4.56,<=4.57.3" nnsight==0.6.1 \\
        "huggingface_hub<1" && python -m tests.golden.make_circuit_tracer

`{family}.npz` holds a model (`cfg` as JSON; weights under the package's names, `blocks.attn.w_q` ..., and `tokens`);
`{family}-{dictionary}[-...].npz` a dictionary on it (`d_cfg` as JSON; `d.w_enc` ...) and what circuit-tracer made of
both: logits, active features and activations, selected features, targets, adjacency, masks (`_tight`: with
other thresholds), cumulative scores, the two scores. Weights are multiples of 1/256, so that they compress.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from circuit_tracer import attribute
from circuit_tracer.graph import compute_graph_scores, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

from tests.reference import builders
from tests.reference.dictionary import Dictionary

OUT = Path(__file__).parent / "circuit_tracer"
TOKENS = np.array([0, 5, 11, 3, 16, 8])
HOOKS = {
    "resid_mid": "hook_resid_mid",
    "normalized": "ln2.hook_normalized",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
    "mlp_raw": "mlp.hook_out",
}
# The model library ties no embeddings, keeps Gemma's factor inside them, and has llama3 frequencies only in float32:
# here they are powers of two.
CHANGES: dict[str, dict] = {
    "gpt2": {"tied": False, "unembed_bias": True},
    "neox": {},
    "llama": {"d_head": 4, "rotary_dim": 4, "rope_theta": 256.0},
    "gemma2": {"tied": False, "embed_scale": 1.0},
}
KINDS = ("plt-relu", "plt-jumprelu", "plt-topk-signed", "plt-skip", "clt-relu", "clt-jumprelu")
PLACES: dict[tuple[str, str], tuple[str, str]] = {
    ("gpt2", "plt"): ("mlp_in", "mlp_raw"),
    ("gpt2", "clt"): ("resid_mid", "mlp_out"),
    ("neox", "plt"): ("mlp_in", "mlp_out"),
    ("neox", "clt"): ("mlp_in", "mlp_raw"),
    ("llama", "plt"): ("resid_mid", "mlp_out"),
    ("llama", "clt"): ("mlp_in", "mlp_out"),
    ("gemma2", "plt"): ("normalized", "mlp_out"),
    ("gemma2", "clt"): ("mlp_in", "mlp_raw"),
}
THRESHOLDS = {
    "": (0.8, 0.98),
    "_tight": (0.98, 0.4),
}  # the second drops nodes that lost their edges, in up to three rounds
RANKED = {"max_feature_nodes": 30, "batch_size": 4, "update_interval": 2}


def on_grid(tree: Any) -> Any:
    """Every array rounded to multiples of 1/256."""
    if isinstance(tree, dict):
        return {k: on_grid(v) for k, v in tree.items()}
    return None if tree is None else np.round(tree * 256) / 256


def hooked_config(cfg: Any) -> HookedTransformerConfig:
    """The same model in the other library's words."""
    more: dict[str, Any] = {}
    if cfg.position == "rotary":
        more |= {"rotary_dim": cfg.rotary_dim, "rotary_base": int(cfg.rope_theta)}
    if cfg.rope_scaling:
        s = cfg.rope_scaling
        more |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": s.factor,
            "NTK_by_parts_low_freq_factor": s.low_freq_factor,
            "NTK_by_parts_high_freq_factor": s.high_freq_factor,
            "NTK_original_ctx_len": s.original_n_ctx,
        }
    if cfg.windows:
        kinds = ["local" if w else "global" for w in cfg.windows]
        more |= {"use_local_attn": True, "window_size": max(cfg.windows), "attn_types": kinds}
    return HookedTransformerConfig(
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        n_ctx=cfg.n_ctx,
        d_head=cfg.d_head,
        n_heads=cfg.n_heads,
        n_key_value_heads=cfg.n_kv_heads if cfg.n_kv_heads < cfg.n_heads else None,
        d_mlp=cfg.d_mlp,
        d_vocab=cfg.d_vocab,
        eps=cfg.norm_eps,
        act_fn={"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}[cfg.activation],
        gated_mlp=cfg.gated,
        normalization_type={"layer": "LN", "rms": "RMS"}[cfg.norm],
        use_normalization_before_and_after=cfg.post_norm,
        positional_embedding_type={"learned": "standard", "rotary": "rotary"}[cfg.position],
        parallel_attn_mlp=cfg.parallel,
        attn_scale=cfg.d_head**0.5 if cfg.attn_scale is None else 1 / cfg.attn_scale,
        attn_scores_soft_cap=cfg.attn_softcap or -1.0,
        output_logits_soft_cap=cfg.final_softcap or -1.0,
        dtype=torch.float64,
        device="cpu",
        model_name=f"tiny-{cfg.family}",
        **more,
    )


def hooked_weights(cfg: Any, params: dict) -> dict[str, np.ndarray]:
    """The weights under the other library's names; what a model lacks there is left at zero."""
    out = {"embed.W_E": params["embed"], "unembed.W_U": params["unembed"]}
    if params["pos_embed"] is not None:
        out["pos_embed.W_pos"] = params["pos_embed"]
    if params["b_unembed"] is not None:
        out["unembed.b_U"] = params["b_unembed"]

    def norm(name: str, p: dict | None, layer: int | None = None) -> None:
        for k, v in (p or {}).items():
            if v is not None:
                out[f"{name}.{k}"] = v if layer is None else v[layer]

    grouped = "_" if cfg.n_kv_heads < cfg.n_heads else ""
    names = {"w_q": "W_Q", "w_k": f"{grouped}W_K", "w_v": f"{grouped}W_V", "w_o": "W_O"}
    names |= {"b_q": "b_Q", "b_k": f"{grouped}b_K", "b_v": f"{grouped}b_V", "b_o": "b_O"}
    blocks = params["blocks"]
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}"
        for ours, theirs in (
            ("norm1", "ln1"),
            ("norm2", "ln2"),
            ("norm1_post", "ln1_post"),
            ("norm2_post", "ln2_post"),
        ):
            norm(f"{at}.{theirs}", blocks[ours], layer)
        for ours, theirs in names.items():
            if blocks["attn"][ours] is not None:
                w = blocks["attn"][ours][layer]
                out[f"{at}.attn.{theirs}"] = w.swapaxes(0, 1) if ours in ("w_q", "w_k", "w_v") else w
        for ours, v in blocks["mlp"].items():
            if v is not None:
                out[f"{at}.mlp.{ours[0].upper() if ours[0] == 'w' else ours[0]}{ours[1:]}"] = v[layer]
    norm("ln_final", params["final_norm"])
    return out


def per_layer(d: Dictionary) -> TranscoderSet:
    """Per-layer transcoders."""
    c, layers = d.cfg, {}
    for layer in range(c.n_layers):
        function: Any = torch.nn.functional.relu
        if c.activation == "jumprelu":
            function = JumpReLU(torch.tensor(d.arrays["threshold"][layer]))
        elif c.activation == "topk":
            function = TopK(c.k)
        t = SingleLayerTranscoder(c.d_model, c.d_feature, function, layer, c.skip, dtype=torch.float64)
        for theirs, ours in (("W_enc", "w_enc"), ("b_enc", "b_enc"), ("W_dec", "w_dec"), ("b_dec", "b_dec")):
            getattr(t, theirs).data = torch.tensor(d.arrays[ours][layer])
        if c.skip:
            t.W_skip.data = torch.tensor(d.arrays["w_skip"][layer].T.copy())
        layers[layer] = t
    return TranscoderSet(layers, HOOKS[c.reads], HOOKS[c.writes], scan="tiny")


def cross_layer(d: Dictionary) -> CrossLayerTranscoder:
    """Cross-layer transcoders; decoders are stacked by source layer there, by output layer here."""
    c = d.cfg
    name = {"relu": "relu", "jumprelu": "jump_relu"}[c.activation]
    t = CrossLayerTranscoder(
        c.n_layers, c.d_feature, c.d_model, name, False, False, False, HOOKS[c.reads], HOOKS[c.writes], "tiny",
        dtype=torch.float64,
    )  # fmt: skip
    for theirs, ours in (("W_enc", "w_enc"), ("b_enc", "b_enc"), ("b_dec", "b_dec")):
        getattr(t, theirs).data = torch.tensor(d.arrays[ours])
    for i in range(c.n_layers):
        rows = [d.arrays["w_dec"][m * (m + 1) // 2 + i] for m in range(i, c.n_layers)]
        t.W_dec[i].data = torch.tensor(np.stack(rows, 1))
    if c.activation == "jumprelu":
        t.activation_function.threshold.data = torch.tensor(d.arrays["threshold"][:, None])
    return t


def tokenizer(n: int) -> PreTrainedTokenizerFast:
    """Words w0 ... with the first one special."""
    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(n)}, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="w0", eos_token="w0", unk_token="w1")


def traced(
    cfg: Any, params: dict, d: Dictionary, tokens: np.ndarray, vector: Any = None, **options: Any
) -> tuple[Any, Any]:
    """circuit-tracer's model and its graph of a prompt; `vector` is a direction to trace instead of logits."""
    t = cross_layer(d) if d.cfg.kind == "clt" else per_layer(d)
    model = TransformerLensReplacementModel.from_config(hooked_config(cfg), t)
    model.tokenizer = tokenizer(cfg.d_vocab)
    state = dict(model.named_parameters())
    ours = {k.replace(".mlp.", ".mlp.old_mlp."): v for k, v in hooked_weights(cfg, params).items()}
    ours = {k.replace("unembed.", "unembed.old_unembed."): v for k, v in ours.items()}
    for name, p in state.items():
        if not name.startswith("transcoders"):
            w = ours.pop(name, np.zeros(tuple(p.shape)))
            assert p.shape == w.shape, (name, p.shape, w.shape)
            p.data = torch.tensor(w)
    assert not ours, sorted(ours)
    targets = None if vector is None else [("direction", 1.0, torch.tensor(vector))]
    options = {"batch_size": 64, "max_n_logits": 5} | options
    return model, attribute(torch.tensor(tokens), model, attribution_targets=targets, **options)


def trace(cfg: Any, params: dict, d: Dictionary, tokens: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """circuit-tracer's graph of a prompt, its masks and scores; `options` as in `traced`."""
    model, graph = traced(cfg, params, d, tokens, **options)
    with torch.no_grad():
        logits = model(torch.tensor(tokens)[None])[0]
    tensors = {
        "logits": logits,
        "active_features": graph.active_features.int(),
        "activations": graph.activation_values,
        "selected": graph.selected_features.int(),
        "target_ids": graph.logit_token_ids.int(),
        "weights": graph.logit_probabilities,
        "adjacency": graph.adjacency_matrix,
        "scores": torch.tensor(compute_graph_scores(graph)),
    }
    for label, thresholds in THRESHOLDS.items():
        pruned = prune_graph(graph, *thresholds)
        tensors |= {f"node_mask{label}": pruned.node_mask, f"edge_mask{label}": pruned.edge_mask}
        tensors["cumulative"] = pruned.cumulative_scores
    return {name: x.detach().numpy() for name, x in tensors.items()}


def flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dicts to dotted names; absent arrays are left out."""
    out: dict[str, np.ndarray] = {}
    for k, v in tree.items():
        if isinstance(v, dict):
            out |= flat(v, f"{prefix}{k}.")
        elif v is not None:
            out[prefix + k] = v
    return out


def as_json(c: SimpleNamespace) -> np.ndarray:
    """A configuration as a JSON string."""
    return np.array(json.dumps(vars(c), default=vars))


def main() -> None:
    """Make every file."""
    torch.set_default_dtype(torch.float64)
    OUT.mkdir(exist_ok=True)
    for number, (family, changes) in enumerate(CHANGES.items()):
        cfg = builders.model_config(family, d_mlp=16, **changes)
        params = on_grid(builders.make_params(cfg, seed=10 + number))
        np.savez_compressed(OUT / f"{family}.npz", cfg=as_json(cfg), tokens=TOKENS, **flat(params))
        cases: list[tuple[str, str, dict]] = [(kind, kind, {}) for kind in KINDS]
        if family == "gpt2":
            cases.append(("plt-relu", "plt-relu-ranked", RANKED))
        if family == "llama":
            vector = on_grid(np.random.default_rng(3).normal(size=cfg.d_model))
            cases += [("clt-relu", "clt-relu-ranked", RANKED), ("plt-skip", "plt-skip-direction", {"vector": vector})]
        for kind, name, options in cases:
            reads, writes = PLACES[family, kind[:3]]
            d = builders.make_dictionary(cfg, params, TOKENS, kind, seed=20 + number, reads=reads, writes=writes)
            d = Dictionary(d.cfg, on_grid(d.arrays))
            made = trace(cfg, params, d, TOKENS, **options)
            extra = {k: np.asarray(v) for k, v in options.items()}
            path = OUT / f"{family}-{name}.npz"
            np.savez_compressed(path, d_cfg=as_json(d.cfg), **flat({"d": d.arrays}), **extra, **made)
            print(
                path.name, len(made["selected"]), "of", len(made["active_features"]), "features, scores", made["scores"]
            )


if __name__ == "__main__":
    main()

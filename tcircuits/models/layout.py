"""How the tensors of published checkpoints become our arrays: for each family its names, shapes and re-arrangements.

Our matrices are [in, out] with heads apart (`w_q` [D, H, K]); PyTorch's linear layers are [out, in], GPT-2's are
[in, out], and GPT-NeoX keeps queries, keys and values of one head next to each other in one matrix.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcircuits.models.config import ModelConfig

Change = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
        name: its name; "{}" stands for the layer's number.
        shape: its shape in the file.
        parts: for each of our arrays that it holds (by dotted path), the change from (tensor, layer) to one layer
            of it. Arrays that a configuration does not have are skipped.
    """

    name: str
    shape: tuple[int, ...]
    parts: Mapping[str, Change]


def keep(w: np.ndarray, layer: int) -> np.ndarray:
    """As it is."""
    return w


def flip(w: np.ndarray, layer: int) -> np.ndarray:
    """[out, in] -> [in, out]."""
    return w.T


def to_heads(n: int) -> Change:
    """[n K, D] -> [D, n, K], or a bias [n K] -> [n, K]."""
    return lambda w, layer: np.moveaxis(w.reshape(n, -1, *w.shape[1:]), (0, 1), (-2, -1))


def from_heads(n: int) -> Change:
    """[D, n K] -> [n, K, D]."""
    return lambda w, layer: w.T.reshape(n, -1, w.shape[0])


def add(offset: float) -> Change:
    """Gains that the file keeps as their distance from `-offset`."""
    return lambda w, layer: w + np.asarray(offset, w.dtype)


def _norm(name: str, path: str, cfg: ModelConfig) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (cfg.d_model,), {f"{path}.w": keep})
    yield Tensor(f"{name}.bias", (cfg.d_model,), {f"{path}.b": keep})


def gpt2(cfg: ModelConfig, raw: Mapping[str, Any]) -> Iterator[Tensor]:
    """GPT-2: [in, out] matrices, one matrix for queries, keys and values.

    `scale_attn_by_inverse_layer_idx` divides the scores of layer i by i + 1; we divide its queries.
    """
    D, H, K, M, V = cfg.d_model, cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab
    by_layer = bool(raw.get("scale_attn_by_inverse_layer_idx"))

    def third(which: int) -> Change:
        def change(w: np.ndarray, layer: int) -> np.ndarray:
            part = np.split(w, 3, -1)[which].reshape(*w.shape[:-1], H, K)
            return part / np.asarray(layer + 1, w.dtype) if by_layer and which == 0 else part

        return change

    yield Tensor("wte.weight", (V, D), {"embed": keep})
    yield Tensor("wpe.weight", (cfg.n_ctx, D), {"pos_embed": keep})
    yield from _norm("h.{}.ln_1", "blocks.norm1", cfg)
    yield from _norm("h.{}.ln_2", "blocks.norm2", cfg)
    for kind, prefix, shape in (("weight", "w", (D, 3 * D)), ("bias", "b", (3 * D,))):
        thirds = {f"blocks.attn.{prefix}_{name}": third(i) for i, name in enumerate("qkv")}
        yield Tensor("h.{}.attn.c_attn." + kind, shape, thirds)
    yield Tensor("h.{}.attn.c_proj.weight", (D, D), {"blocks.attn.w_o": lambda w, layer: w.reshape(H, K, D)})
    yield Tensor("h.{}.attn.c_proj.bias", (D,), {"blocks.attn.b_o": keep})
    yield Tensor("h.{}.mlp.c_fc.weight", (D, M), {"blocks.mlp.w_in": keep})
    yield Tensor("h.{}.mlp.c_fc.bias", (M,), {"blocks.mlp.b_in": keep})
    yield Tensor("h.{}.mlp.c_proj.weight", (M, D), {"blocks.mlp.w_out": keep})
    yield Tensor("h.{}.mlp.c_proj.bias", (D,), {"blocks.mlp.b_out": keep})
    yield from _norm("ln_f", "final_norm", cfg)
    yield Tensor("lm_head.weight", (V, D), {"unembed": flip})


def gpt_neox(cfg: ModelConfig, raw: Mapping[str, Any]) -> Iterator[Tensor]:
    """GPT-NeoX: [out, in] matrices; the rows of `query_key_value` are [head, (query, key, value), K]."""
    D, H, K, M, V = cfg.d_model, cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab

    def third(which: int) -> Change:
        heads = to_heads(H)
        return lambda w, layer: heads(w.reshape(H, 3, K, *w.shape[1:])[:, which].reshape(H * K, *w.shape[1:]), layer)

    yield Tensor("embed_in.weight", (V, D), {"embed": keep})
    yield from _norm("layers.{}.input_layernorm", "blocks.norm1", cfg)
    yield from _norm("layers.{}.post_attention_layernorm", "blocks.norm2", cfg)
    for kind, prefix, shape in (("weight", "w", (3 * D, D)), ("bias", "b", (3 * D,))):
        thirds = {f"blocks.attn.{prefix}_{name}": third(i) for i, name in enumerate("qkv")}
        yield Tensor("layers.{}.attention.query_key_value." + kind, shape, thirds)
    yield Tensor("layers.{}.attention.dense.weight", (D, D), {"blocks.attn.w_o": from_heads(H)})
    yield Tensor("layers.{}.attention.dense.bias", (D,), {"blocks.attn.b_o": keep})
    yield Tensor("layers.{}.mlp.dense_h_to_4h.weight", (M, D), {"blocks.mlp.w_in": flip})
    yield Tensor("layers.{}.mlp.dense_h_to_4h.bias", (M,), {"blocks.mlp.b_in": keep})
    yield Tensor("layers.{}.mlp.dense_4h_to_h.weight", (D, M), {"blocks.mlp.w_out": flip})
    yield Tensor("layers.{}.mlp.dense_4h_to_h.bias", (D,), {"blocks.mlp.b_out": keep})
    yield from _norm("final_layer_norm", "final_norm", cfg)
    yield Tensor("embed_out.weight", (V, D), {"unembed": flip})


def plain(cfg: ModelConfig, raw: Mapping[str, Any]) -> Iterator[Tensor]:
    """Small models of known functions: our own arrays under their own names, one tensor a layer."""
    D, H, K, M, V = cfg.d_model, cfg.n_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab
    yield Tensor("embed", (V, D), {"embed": keep})
    yield Tensor("pos_embed", (cfg.n_ctx, D), {"pos_embed": keep})
    shapes = {"attn.w_q": (D, H, K), "attn.w_k": (D, H, K), "attn.w_v": (D, H, K), "attn.w_o": (H, K, D)}
    shapes |= {"mlp.w_in": (D, M), "mlp.b_in": (M,), "mlp.w_out": (M, D), "mlp.b_out": (D,)}
    for name, shape in shapes.items():
        yield Tensor("layers.{}." + name, shape, {f"blocks.{name}": keep})
    yield Tensor("unembed", (D, V), {"unembed": keep})
    yield Tensor("b_unembed", (V,), {"b_unembed": keep})


def llama(cfg: ModelConfig, raw: Mapping[str, Any], *, gain_offset: float = 0.0) -> Iterator[Tensor]:
    """Llama and its relatives: [out, in] matrices, all apart.

    With post-norms the norms of a layer have the names of Gemma 2 (and OLMo 2, which has no others);
    `gain_offset=1` for files that keep gain - 1.
    """
    D, H, G, K, M, V = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.d_mlp, cfg.d_vocab
    gain = add(gain_offset) if gain_offset else keep
    second = "pre_feedforward_layernorm" if cfg.post_norm else "post_attention_layernorm"
    norms = {"input_layernorm": "norm1", second: "norm2"} if cfg.pre_norm else {}
    if cfg.post_norm:
        norms |= {"post_attention_layernorm": "norm1_post", "post_feedforward_layernorm": "norm2_post"}
    if cfg.norm == "layer":  # OLMo's norms have no weights
        norms = {}
    yield Tensor("embed_tokens.weight", (V, D), {"embed": keep})
    for name, path in norms.items():
        yield Tensor("layers.{}." + name + ".weight", (D,), {f"blocks.{path}.w": gain})
    for name, n in (("q", H), ("k", G), ("v", G)):
        yield Tensor("layers.{}.self_attn." + name + "_proj.weight", (n * K, D), {f"blocks.attn.w_{name}": to_heads(n)})
        yield Tensor("layers.{}.self_attn." + name + "_proj.bias", (n * K,), {f"blocks.attn.b_{name}": to_heads(n)})
    yield Tensor("layers.{}.self_attn.o_proj.weight", (D, H * K), {"blocks.attn.w_o": from_heads(H)})
    yield Tensor("layers.{}.self_attn.o_proj.bias", (D,), {"blocks.attn.b_o": keep})
    for name, n in (("q", H), ("k", G)):
        shape, change = ((n * K,), to_heads(n)) if cfg.qk_norm_whole else ((K,), gain)
        yield Tensor("layers.{}.self_attn." + name + "_norm.weight", shape, {f"blocks.attn.{name}_norm": change})
    for name, path in (("gate_proj", "gate"), ("up_proj", "in")):
        yield Tensor("layers.{}.mlp." + name + ".weight", (M, D), {f"blocks.mlp.w_{path}": flip})
        yield Tensor("layers.{}.mlp." + name + ".bias", (M,), {f"blocks.mlp.b_{path}": keep})
    yield Tensor("layers.{}.mlp.down_proj.weight", (D, M), {"blocks.mlp.w_out": flip})
    yield Tensor("layers.{}.mlp.down_proj.bias", (D,), {"blocks.mlp.b_out": keep})
    if cfg.norm != "layer":
        yield Tensor("norm.weight", (D,), {"final_norm.w": gain})
    yield Tensor("lm_head.weight", (V, D), {"unembed": flip})

"""Rows of the first layer in float64.

A feature of layer 0 has few sources (tokens, and constants), and where its activation is near zero these nearly cancel
inside a single dot product: float32 then misses the row's sum by 1e-5 of its small total. All later rows have many
sources, and their totals are far above the rounding. So rows of layer 0 are computed in float64, on the host:
edges token by token and head by head, the value by the maps of the whole stream, so that the balance stays a check and
is no definition.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.attribution.frozen import Frozen
from tcircuits.attribution.linear import block_up, norm_down, norm_up
from tcircuits.attribution.targets import covectors, encoder_rows
from tcircuits.compiling import compiled
from tcircuits.models.blockwise import pattern_rows
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import Hold
from tcircuits.models.params import Block, Params
from tcircuits.parallel import host
from tcircuits.transcoders.dictionary import Transcoders
from tcircuits.types import Array, Float

CHUNK = 128

_encoder_rows = compiled(encoder_rows)


def _double(tree: Any) -> Any:
    return jax.tree.map(lambda x: host(x, np.float64), tree)


@compiled
def _first_of(params: Params, hold: Hold, tokens: Array) -> Any:
    """Values and outputs of block 0 and its norms, what is held there, and the embeddings of tokens and positions."""
    attn = params.blocks.attn
    read = replace(attn, w_q=attn.w_q[:, :0], w_k=attn.w_k[:, :0])  # patterns are held
    block = jax.tree.map(lambda x: x[0], replace(params.blocks, attn=read, mlp=None))
    held = {k: getattr(hold, k) for k in ("pattern", "norm1", "norm1_post", "norm2")}
    held = jax.tree.map(lambda x: x[0], held)
    positions = None if params.pos_embed is None else params.pos_embed[: len(tokens)]
    return block, held, params.embed[tokens], positions


def _through_heads(
    cfg: ModelConfig, block: Block, held: dict[str, Any], tokens: Array, pos: Array, u: Array
) -> Float[Array, "N T"]:
    """What covectors at one position each read of every token through block 0's heads: <u W_O, pattern, values>."""
    p = block.attn
    (H, K), G = p.w_o.shape[:2], p.w_v.shape[1]
    u = norm_down(cfg, block.norm1_post, None if held["norm1_post"] is None else held["norm1_post"][pos], u)
    read = jnp.einsum("ND,HKD->NHK", u, p.w_o).reshape(len(pos), G, H // G, K)
    values = jnp.einsum("TD,DGK->TGK", norm_up(cfg, block.norm1, held["norm1"], tokens), p.w_v)
    pattern = pattern_rows(cfg, held["pattern"], pos).transpose(1, 0, 2).reshape(len(pos), G, H // G, -1)
    return (jnp.einsum("NGRK,TGK->NGRT", read, values) * pattern).sum((1, 2))


@partial(compiled, static_argnames=("cfg",))
def _rows(cfg: ModelConfig, block: Block, held: dict[str, Any], stream: dict[str, Array], f: dict[str, Array]) -> Any:
    """Token edges [N, T], biases and values [N] of layer-0 features."""
    pos, T = f["pos"], stream["tokens"].shape[0]
    scale = None if held["norm2"] is None else held["norm2"][pos]
    norm = None if block.norm2 is None else jax.tree.map(lambda x: jnp.broadcast_to(x, f["row"].shape), block.norm2)
    u, const = covectors(cfg, norm, scale, f["row"], f["bias"], f["reads"], f["factor"])
    edges = jnp.einsum("ND,ND->N", u, stream["tokens"][pos])[:, None] * (pos[:, None] == jnp.arange(T))
    whole, constant = stream["tokens"] + stream["positions"], stream["positions"]
    if not cfg.parallel:
        attention = (held["pattern"], held["norm1"], held["norm1_post"])
        edges = edges + _through_heads(cfg, block, held, stream["tokens"], pos, u)
        whole = whole + block_up(cfg, block, *attention, whole, True)
        constant = constant + block_up(cfg, block, *attention, constant, True)
    bias = jnp.einsum("ND,ND->N", u, constant[pos]) + const
    return edges, bias, jnp.einsum("ND,ND->N", u, whole[pos]) + const


def first_layer(
    model: Any, d: Transcoders, frozen: Frozen, pos: np.ndarray, number: np.ndarray, factor: np.ndarray
) -> Any:
    """Token edges [N, T], biases and values [N], in float64, of the features `number` of layer 0 at positions `pos`."""
    cfg = model.cfg
    if not len(pos):
        return np.zeros((0, len(frozen.tokens))), np.zeros(0), np.zeros(0)
    block, held, tokens, positions = _double(_first_of(model.params, frozen.hold, frozen.tokens))
    tokens = tokens * cfg.embed_scale
    stream = {"tokens": tokens, "positions": np.zeros_like(tokens) if positions is None else positions}
    out = []
    for i in range(0, len(pos), CHUNK):  # the last one is filled up, so that its programs serve every prompt
        at, which, gate = (np.resize(x[i : i + CHUNK], CHUNK) for x in (pos, number, factor))
        row, bias, reads = _encoder_rows(model.params, d, np.zeros(CHUNK, np.int32), which)
        f = {"row": _double(row), "bias": _double(bias), "reads": host(reads), "pos": at, "factor": _double(gate)}
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            found = _rows(cfg, block, held, stream, f)
        out.append([np.asarray(x)[: len(pos[i : i + CHUNK])] for x in found])
    return [np.concatenate(x) for x in zip(*out, strict=True)]

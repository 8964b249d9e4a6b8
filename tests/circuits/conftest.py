"""A behaviour whose circuit is known."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.toys import random_model
from tcircuits.tasks.behaviour import SPLITS, Behaviour, Prompts

from .test_running import SIZES


@pytest.fixture(scope="module")
def planted():
    """Head 0.1 alone reads the first token, by its value and a flat pattern, and writes the answer."""
    model = random_model("gpt2", **SIZES | {"n_layers": 1, "d_vocab": 8}, n_kv_heads=2)
    p, width = model.params, model.cfg.d_model
    embed = np.zeros((8, width))
    embed[np.arange(8), np.arange(8)] = 1.0  # token i is direction i
    attn = p.blocks.attn
    zero = jnp.zeros_like
    w_v, w_o = np.zeros(attn.w_v.shape), np.zeros(attn.w_o.shape)
    w_v[0, np.arange(2), 1, np.arange(2)] = 20.0  # the second head reads tokens 0 and 1
    w_o[0, 1, np.arange(2), 8 + np.arange(2)] = 1.0
    unembed = np.zeros((width, 8))
    unembed[8, 6] = unembed[9, 7] = 1.0  # what it writes for them are tokens 6 and 7
    own = replace(
        attn, w_q=zero(attn.w_q), w_k=zero(attn.w_k), w_v=jnp.asarray(w_v, jnp.float32),
        w_o=jnp.asarray(w_o, jnp.float32), b_q=zero(attn.b_q), b_k=zero(attn.b_k), b_v=zero(attn.b_v),
        b_o=zero(attn.b_o),
    )  # fmt: skip
    norm1 = replace(p.blocks.norm1, w=jnp.ones_like(p.blocks.norm1.w), b=zero(p.blocks.norm1.b))
    blocks = replace(p.blocks, attn=own, norm1=norm1)
    params = replace(
        p, embed=jnp.asarray(embed, jnp.float32), pos_embed=zero(p.pos_embed), blocks=blocks,
        unembed=jnp.asarray(unembed, jnp.float32),
        final_norm=replace(p.final_norm, w=jnp.ones_like(p.final_norm.w), b=zero(p.final_norm.b)),
    )  # fmt: skip
    rng, splits = np.random.default_rng(0), {}
    for name, n in zip(SPLITS, (8, 8, 16), strict=True):
        first = np.arange(n) % 2
        rest = rng.integers(2, 6, (n, 3))
        clean, other = (np.concatenate([f[:, None], rest], 1).astype(np.int32) for f in (first, 1 - first))
        answers = [(6 + f)[:, None].astype(np.int32) for f in (first, 1 - first)]
        splits[name] = Prompts(clean, other, np.zeros(n, np.int32), *answers)
    return replace(model, params=params), Behaviour("first", model.name, "logit_difference", splits)

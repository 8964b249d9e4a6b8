"""The rest of a forward pass, from the residual stream before a layer.

Where many replacements of layers are tried on one text, the layers before the first replaced one are those of the
original model: each trial starts where it begins to differ. The first layer is a number that may be traced, so one
program serves all of them.

>>> import jax, jax.numpy as jnp
>>> from tcircuits.models.config import ModelConfig
>>> from tcircuits.models.forward import forward
>>> from tcircuits.models.params import init
>>> cfg = ModelConfig("llama", 2, 8, 2, 1, 4, 16, 10, 32, rotary_dim=4)
>>> params = init(cfg, jax.random.key(0))
>>> out = forward(cfg, params, jnp.array([[1, 2, 3]]), sites=("resid_pre",))
>>> bool(jnp.allclose(forward_from(cfg, params, out.acts["resid_pre"][1, 0], 1), out.logits[0], atol=1e-5))
True
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import MlpHook, SiteHook, Tap, View, layer_kinds, logits_from, rope_tables, run_layer
from tcircuits.models.params import Params
from tcircuits.types import Array, Float


def layer_of(tree: Any, layer: Any) -> Any:
    """One layer's part of arrays that are stacked by layer; the number may be traced."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), tree)


def forward_from(
    cfg: ModelConfig,
    params: Params,
    x: Float[Array, "T D"],
    first: Any,
    *,
    hook: MlpHook | None = None,
    swap: SiteHook | None = None,
) -> Float[Array, "T V"]:
    """Logits of one sequence without padding, from the stream `x` before layer `first`.

    Args:
        cfg: sizes and switches (static).
        params: weights.
        x: the residual stream (`resid_pre` of layer `first`).
        first: the layer to go on with; may be traced.
        hook: replaces what MLPs write, its `state` being that before layer `first`.
        swap: replaces the value of a site.
    """
    positions = jnp.arange(x.shape[0])
    view = View(positions, positions, jnp.ones(positions.shape, bool))
    rope, kinds = rope_tables(cfg, positions, x.dtype), layer_kinds(cfg)

    def step(layer: Array, carry: Any) -> Any:
        x, state = carry
        block, kind = layer_of((params.blocks, kinds), layer)
        tap = Tap((), (), layer, positions, swap)
        live = None if hook is None else replace(hook, state=state)
        x, _, state, _ = run_layer(cfg, block, x, layer, kind, rope, view, tap, hook=live)
        return x, state

    x, _ = jax.lax.fori_loop(first, cfg.n_layers, step, (x, hook.state if hook else ()))
    return logits_from(cfg, params, x, Tap((), (), 0, positions))

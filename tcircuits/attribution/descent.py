"""Maps of a descending sweep with positions first: cotangents [T, B, D] of B targets at T positions.

Every product is then a matrix product as it stands: weights meet [T B, D], decoder rows of a position meet that
position's [B, D], patterns of a head group meet [R T, B K] (R heads share keys and values). Only the first `n`
positions are carried, and what is held or decoded there is cut where it is used, layer by layer, so that no copy of it
is made.

Cost of a layer for B targets at n positions, in multiply-adds: n B (D H K + D G K + H n K) for attention, n B C D for
the reads of C slots. A target starts at one position, so its own layer's attention costs B (D H K + n H K) + n B D G K.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tcircuits.attribution.frozen import Frozen, rows_in_slots
from tcircuits.attribution.linear import layer, norm_down, norm_up, token_vectors
from tcircuits.attribution.maps import Maps
from tcircuits.attribution.targets import feature_vectors
from tcircuits.models.blockwise import Scores, mix_down, mix_up, pattern_rows
from tcircuits.models.forward import Hold
from tcircuits.numerics import wide
from tcircuits.parallel import Spread
from tcircuits.types import Array, Float


def cut(x: Array, index: Any, n: int) -> Array:
    """The first `n` positions of one layer, x[index, :n], as one slice."""
    start = (index,) + (0,) * (x.ndim - 1)
    sizes = (1, n, *x.shape[2:])
    return jax.lax.dynamic_slice(x, [jnp.asarray(i, jnp.int32) for i in start], sizes)[0]


@dataclass(frozen=True)
class Descent(Maps):
    """The maps of one frozen prompt over its first `n` positions; lives for one trace.

    With `spread`, each device carries cotangents of its own targets.
    """

    frozen: Frozen
    n: int
    spread: Spread | None = None

    def apart(self, g: Float[Array, "n B D"]) -> Float[Array, "n B D"]:
        """Cotangents, targets spread."""
        return g if self.spread is None else self.spread(g, 1)

    @property
    def hold(self) -> Hold:
        """The prompt's patterns and denominators, at all positions (see `at`)."""
        return self.frozen.hold

    def at(self, m: Any) -> tuple[Any, Any]:
        """Parameters of layer m, and what is held there at the first n positions."""
        h, n = self.hold, self.n
        names = ("norm1", "norm1_post", "norm2", "norm2_post")
        scales = {k: None if getattr(h, k) is None else cut(getattr(h, k), m, n) for k in names}
        return layer(self.params.blocks, m), Hold(pattern=self.pattern(m), **scales)

    def pattern(self, m: Any) -> Any:
        """Layer m's pattern at the first n positions, or the scores that make it, at all."""
        whole, n = self.hold.pattern, self.n
        if isinstance(whole, Scores):
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, m, keepdims=False), whole)
        T, H = whole.shape[-1], whole.shape[1]
        start = [jnp.asarray(i, jnp.int32) for i in (m, 0, 0, 0)]
        return wide(whole[m] if n == T else jax.lax.dynamic_slice(whole, start, (1, H, n, n))[0])

    def along(self, scale: Any) -> Any:
        """Denominators beside cotangents [n, B, D]; None where there is no norm."""
        return None if scale is None else scale[:, None]

    def attention(self, m: Any, g: Float[Array, "n B D"]) -> Float[Array, "n B D"]:
        """Transpose of layer m's attention with its norms."""
        block, h = self.at(m)
        w_o, w_v = block.attn.w_o, block.attn.w_v
        (n, B, D), (H, K), G = g.shape, w_o.shape[:2], w_v.shape[1]
        g = norm_down(self.cfg, block.norm1_post, self.along(h.norm1_post), g)
        if isinstance(h.pattern, Scores):  # head by head, each laid out as its pattern wants it
            read = jax.lax.map(lambda w: g.reshape(n * B, D) @ w.T, w_o)
            moved = mix_down(self.cfg, h.pattern, read.reshape(G, H // G, n, B * K))
        else:
            read = (g @ w_o.reshape(H * K, D).T).reshape(n, B, G, H // G, K).transpose(2, 3, 0, 1, 4)
            read = read.reshape(G, H // G * n, B * K)
            moved = jnp.einsum("GTS,GTX->GSX", h.pattern.reshape(G, H // G * n, n), read)
        moved = moved.reshape(G, n, B, K).transpose(1, 2, 0, 3).reshape(n, B, G * K)
        back = moved @ w_v.reshape(D, G * K).T
        return norm_down(self.cfg, block.norm1, self.along(h.norm1), back)

    def attention_up(self, m: Any, x: Float[Array, "n B D"]) -> Float[Array, "n B D"]:
        """Layer m's attention with its norms, without what their biases add: what `attention` is the transpose of."""
        block, h = self.at(m)
        w_o, w_v = block.attn.w_o, block.attn.w_v
        (n, B, D), (H, K), G = x.shape, w_o.shape[:2], w_v.shape[1]
        x = norm_up(self.cfg, block.norm1, self.along(h.norm1), x)
        v = (x @ w_v.reshape(D, G * K)).reshape(n, B, G, K).transpose(2, 0, 1, 3).reshape(G, n, B * K)
        if isinstance(h.pattern, Scores):
            z = mix_up(self.cfg, h.pattern, v)
        else:
            z = jnp.einsum("GRTS,GSX->GRTX", h.pattern.reshape(G, H // G, n, n), v)
        z = z.reshape(H, n, B, K).transpose(1, 2, 0, 3).reshape(n, B, H * K)
        return norm_up(self.cfg, block.norm1_post, self.along(h.norm1_post), z @ w_o.reshape(H * K, D))

    def attention_from(self, m: Any, pos: Array, vec: Float[Array, "B D"]) -> Float[Array, "n B D"]:
        """`attention` of cotangents that stand at one position each."""
        block, h = self.at(m)
        w_o, w_v = block.attn.w_o, block.attn.w_v
        (B, D), (H, K), G, n = vec.shape, w_o.shape[:2], w_v.shape[1], self.n
        vec = norm_down(self.cfg, block.norm1_post, None if h.norm1_post is None else h.norm1_post[pos], vec)
        read = (vec @ w_o.reshape(H * K, D).T).reshape(B, G, H // G, 1, K)
        rows = pattern_rows(self.cfg, h.pattern, pos, n).transpose(1, 0, 2).reshape(B, G, H // G, n, 1)
        moved = (rows * read).sum(2).transpose(2, 0, 1, 3).reshape(n, B, G * K)
        back = moved @ w_v.reshape(D, G * K).T
        return norm_down(self.cfg, block.norm1, self.along(h.norm1), back)

    def start(self, top: Any, pos: Array, vec: Float[Array, "B D"]) -> Float[Array, "n B D"]:
        """The cotangent of targets at layer `top`, carried below that layer's attention (sequential blocks)."""
        B, D = vec.shape
        g = self.apart(self.enter(jnp.zeros((self.n, B, D), vec.dtype), pos, vec))
        if self.cfg.parallel:
            return g
        last = self.cfg.n_layers - 1
        g = jax.lax.cond(
            top <= last, lambda g: g + self.attention_from(jnp.minimum(top, last), pos, vec), lambda g: g, g
        )
        return self.apart(g)

    def enter(self, g: Float[Array, "n B D"], pos: Array, vec: Float[Array, "B D"]) -> Float[Array, "n B D"]:
        """Cotangents, with that of each target added at its position."""
        return g.at[pos, jnp.arange(len(pos))].add(vec, mode="drop")

    def below(
        self, m: Any, g: Array, written: Array, enter: Callable[[Array], Array] | None = None
    ) -> Float[Array, "n B D"]:
        """From the stream after layer m to the stream before it; `enter` adds to it at the MLP's input."""
        middle = g + self.skip(m, written)
        middle = middle if enter is None else enter(middle)
        return self.apart(middle + self.attention(m, g if self.cfg.parallel else middle))

    def read(self, i: Any, m: Any, g: Float[Array, "n B D"]) -> Float[Array, "n B C"]:
        """<decoder row of layer i's features to layer m, g>, not yet times the activation."""
        if self.d.cfg.kind == "neurons":
            assert self.params.blocks.mlp is not None
            return g @ wide(self.params.blocks.mlp.w_out[m]).T
        return jnp.einsum("TBD,TCD->TBC", g, rows_in_slots(self.d, self.frozen, i, m, self.n))

    def raw_reads(self, m: Any, written: Array, acc: Any) -> tuple[Float[Array, "n B C"], Any]:
        """<decoders, g> of layer m's features, complete once m is read: no feature writes below its own layer."""
        if self.d.cfg.kind != "clt":
            return self.read(m, m, written), acc
        acc = jax.lax.fori_loop(0, m + 1, lambda i, a: a.at[i].add(self.read(i, m, written)), acc)
        return acc[m], acc

    def reads(self, m: Any, written: Array, acc: Any) -> tuple[Float[Array, "n B C"], Any]:
        """Attributions of layer m's features: `raw_reads` times their activations."""
        r, acc = self.raw_reads(m, written, acc)
        return r * cut(self.frozen.value, m, self.n)[:, None], acc

    def features(self, m: Any, r: Float[Array, "n B C"]) -> Float[Array, "n B D"]:
        """From feature activations of layer m to the stream: their encoders, gates and norms, transposed."""
        if self.d.cfg.kind == "neurons":
            assert self.params.blocks.mlp is not None
            r = r * cut(self.frozen.factor, m, self.n)[:, None]
            return self.to_stream(m, r @ wide(self.params.blocks.mlp.w_in[m]).T, "mlp_in")
        return jnp.einsum("TBC,TCD->TBD", r, self.covectors(m))

    def features_up(self, m: Any, x: Float[Array, "n B D"]) -> Float[Array, "n B C"]:
        """What features of layer m read of the stream, without constants: what `features` is the transpose of."""
        if self.d.cfg.kind == "neurons":
            probe = jnp.zeros((*x.shape[:2], self.frozen.index.shape[-1]), x.dtype)
            return jax.linear_transpose(lambda r: self.features(m, r), probe)(x)[0]
        return jnp.einsum("TBD,TCD->TBC", x, self.covectors(m))

    def covectors(self, m: Any) -> Float[Array, "n C D"]:
        """What each of layer m's features reads of the stream at its position."""
        C = self.frozen.index.shape[-1]
        place = jnp.arange(self.n * C, dtype=jnp.int32)
        given = jnp.full(self.n * C, m), place // C, place % C
        return feature_vectors(self.cfg, self.params, self.d, self.frozen, *given)[0].reshape(self.n, C, -1)

    def accumulator(self, B: int) -> Any:
        """Cross-layer features collect from several layers: [L, n, B, C]."""
        L, _, C = self.frozen.index.shape
        return jnp.zeros((L, self.n, B, C), self.frozen.value.dtype) if self.d.cfg.kind == "clt" else ()

    def errors(self, m: Any, written: Array) -> Float[Array, "n B"]:
        """Attributions of layer m's errors."""
        return jnp.einsum("TBD,TD->TB", written, cut(self.frozen.error, m, self.n))

    def tokens(self, g: Float[Array, "n B D"]) -> Float[Array, "n B"]:
        """Attributions of the tokens, from the stream before layer 0."""
        return jnp.einsum("TBD,TD->TB", g, token_vectors(self.cfg, self.params, self.frozen.tokens[: self.n]))

    def constants(self, top: Any, pos: Array, vec: Array, const: Array) -> tuple[Array, Array]:
        """Bias of the rows of targets at layers `top`, and the part of it from position 0 where that is no node."""
        origin = jnp.einsum("BD,BD->B", vec, self.frozen.origin[top, pos])
        return jnp.einsum("BD,BD->B", vec, self.frozen.constant[top, pos]) + const + origin, origin

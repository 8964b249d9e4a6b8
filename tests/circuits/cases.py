"""Small behaviours in random tokens for random models, and an oracle of masked runs made of plain edits."""

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.edits import Edit
from tcircuits.models.forward import forward
from tcircuits.numerics import wide
from tcircuits.tasks.behaviour import SPLITS, Behaviour, Prompts
from tcircuits.transcoders.evaluation.replacement import features, push, written

LENGTHS = {"attribution": (6, 6, 6), "selection": (5, 6), "report": (4, 6)}


def random_behaviour(model, *, lengths=None, metric="logit_difference", seed=0):
    """Prompts of given lengths by split."""
    rng, splits = np.random.default_rng(seed), {}
    for name in SPLITS:
        sizes = (lengths or LENGTHS)[name]
        width, n = max(sizes), len(sizes)
        clean = rng.integers(0, model.cfg.d_vocab, (n, width)).astype(np.int32)
        other = np.where(np.arange(width) % 2 == 1, rng.integers(0, model.cfg.d_vocab, (n, width)), clean).astype(
            np.int32
        )
        answers = np.stack([rng.permutation(model.cfg.d_vocab)[:5] for _ in range(n)]).astype(np.int32)
        right, wrong = answers[:, :2].copy(), answers[:, 2:].copy()
        right[0, 1] = wrong[-1, 2] = -1
        splits[name] = Prompts(clean, other, np.asarray([width - s for s in sizes], np.int32), right, wrong)
    return Behaviour("random", model.name, metric, splits)


def metric_of(name, logits, right, wrong):
    """The metric from its definition."""
    logits = np.asarray(logits, np.float64)
    right, wrong = right[right >= 0], wrong[wrong >= 0]
    if name == "logit_difference":
        return logits[right].mean() - logits[wrong].mean()
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return p[right].sum() - p[wrong].sum()


class Oracle:
    """A model whose sites are set by plain edits, in one compiled program for each length of prompts."""

    def __init__(self, model, d):
        self.model, self.d, cfg = model, d, model.cfg
        self.sites = ("z", "attn_out", "mlp_in", "mlp_raw", "mlp_out") + (() if cfg.parallel else ("resid_mid",))
        self.run = jax.jit(
            lambda tokens, edits: forward(cfg, model.params, tokens[None], sites=self.sites, edits=edits)
        )
        self.encode = jax.jit(lambda layer, slot, x: features(cfg, model.params, d, layer, slot, x))
        self.write = jax.jit(lambda layer, slot, f, x, c: written(model.params, d, layer, slot, f, x, c))
        self.push = jax.jit(lambda slot, f, c: push(d, slot, f, c))

    def acts(self, tokens, values):
        """Sites [L, T, ...] and the last logits, with `values` by site and layer put in."""
        out = self.run(jnp.asarray(tokens), self.edits(values, len(tokens)))
        return {k: np.asarray(a[:, 0], np.float64) for k, a in out.acts.items()}, np.asarray(
            out.logits[0, -1], np.float64
        )

    def edits(self, values, n):
        """As many edits as there could be, most of which hit no layer."""
        cfg, found = self.model.cfg, []
        shapes = {"z": (cfg.n_heads, cfg.d_head)}
        for site in ("z", "attn_out", "mlp_raw", "mlp_out"):
            shape = shapes.get(site, (cfg.d_model,))
            layer, value = np.full((cfg.n_layers, n), -1, np.int32), np.zeros((cfg.n_layers, n, *shape))
            for (where, at), rows in values.items():
                if where == site:
                    layer[at], value[at] = at, rows
            start = np.tile(np.arange(n, dtype=np.int32), cfg.n_layers)
            value = jnp.asarray(value.reshape(-1, *shape), self.model.params.embed.dtype)
            found.append(
                Edit(site, "set", jnp.asarray(layer.ravel()), jnp.asarray(start), jnp.asarray(start + 1), value)
            )
        return tuple(found)

    def sums(self, pairs, n):
        """What features of the slots so far write to every slot of a cross-layer set."""
        cfg = self.model.cfg
        carried = jnp.zeros((len(self.d.cfg.layers), n, cfg.d_model), wide(self.model.params.embed).dtype)
        if self.d.cfg.kind == "clt":
            for slot, f in enumerate(pairs):
                carried = self.push(slot, jnp.asarray(f), carried)
        return carried

    def worth(self, tokens):
        """Values of heads, sublayers, features and errors of an unmasked run."""
        found = self.acts(tokens, {})[0]
        if self.d is None:
            return found
        f, errors = [], []
        for slot, layer in enumerate(self.d.cfg.layers):
            x = jnp.asarray(found[self.d.cfg.reads][layer])
            f.append(np.asarray(self.encode(layer, slot, x)))
            guess = self.write(layer, slot, f[-1], x, self.sums(f, len(tokens)))
            errors.append(found[self.d.cfg.writes][layer] - np.asarray(guess))
        return found | {"feature": np.asarray(f), "error": np.asarray(errors)}

    def masked(self, units, mask, tokens, reference, clean, errors):
        """Logits of a masked run: each layer's units are computed under the edits of those before it."""
        d, values, own, mixed = self.d, {}, [], []
        by_kind = {k: np.asarray(v, np.float64) for k, v in units.split(np.asarray(mask)).items()}
        for layer in range(self.model.cfg.n_layers):
            for kind, site in (("head", "z"), ("attn", "attn_out"), ("mlp", "mlp_out")):
                if kind in by_kind:
                    m = by_kind[kind][layer].T[-len(tokens) :]  # [T or 1, heads or 1]
                    m = m[..., None] if kind == "head" else m
                    now = self.acts(tokens, values)[0][site][layer]
                    values[site, layer] = m * now + (1 - m) * reference[site][layer]
            if "feature" in by_kind and layer in d.cfg.layers:
                slot, now = d.cfg.layers.index(layer), self.acts(tokens, values)[0]
                x, real, m = (
                    jnp.asarray(now[d.cfg.reads][layer]),
                    now[d.cfg.writes][layer],
                    by_kind["feature"][slot].T[-len(tokens) :],
                )
                own.append(np.asarray(self.encode(layer, slot, x)))
                mixed.append(m * own[-1] + (1 - m) * reference["feature"][slot])
                wrote = [np.asarray(self.write(layer, slot, f[-1], x, self.sums(f, len(tokens)))) for f in (own, mixed)]
                left = real - wrote[0]
                if errors != "keep":
                    left = (reference if errors == "ablate" else clean)["error"][slot]
                values[d.cfg.writes, layer] = wrote[1] + left
        return self.acts(tokens, values)[1]

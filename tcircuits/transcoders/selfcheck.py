"""Whether a dictionary belongs to the model and the sites that its files name: a trial on a few tokens.

    FVU = sum |y - y_hat|^2 / sum |y - mean y|^2

per layer, for every pair of a site to read and a site to write. A set that was made for this model explains most of
what its MLPs write (FVU well below 1); with another norm convention, another site or a transposed decoder it explains
nothing. Where the norms subtract means, means over dimensions are left out: no reader of the stream sees them.
"""

import itertools
import warnings
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import MlpHook, forward_one
from tcircuits.models.model import Model
from tcircuits.models.params import Params
from tcircuits.numerics import centre, wide
from tcircuits.parallel import host
from tcircuits.transcoders.config import Reads, Writes
from tcircuits.transcoders.dictionary import Transcoders, reconstruct
from tcircuits.types import Array, Float, InputError, Int

READS: tuple[Reads, ...] = ("resid_mid", "normalized", "mlp_in")
WRITES: tuple[Writes, ...] = ("mlp_out", "mlp_raw")
TEXT = "The museum opened in 1897, and people came from as far as Lisbon to see its paintings of the sea."
N_TOKENS = 24
POOR, BETTER = 0.75, 0.6  # an FVU that is worth a warning, and how much smaller a likelier site's must be


class SiteWarning(UserWarning):
    """A dictionary that reconstructs poorly what the model's MLPs write."""


@dataclass(frozen=True)
class SiteCheck:
    """The FVU of each pair of sites (median over layers), those that the dictionary names, and the best."""

    fvu: dict[tuple[Reads, Writes], float]
    stated: tuple[Reads, Writes]
    best: tuple[Reads, Writes]
    layers: tuple[float, ...]

    @property
    def message(self) -> str | None:
        """A warning, or None where all is well."""
        own, best = self.fvu[self.stated], self.fvu[self.best]
        if own <= POOR or np.isnan(own):  # nothing to go by: one position, or an MLP that writes the same everywhere
            return None
        about = f"reading {self.stated[0]} and writing {self.stated[1]} it leaves {own:.2f} of the variance unexplained"
        if best < BETTER * own and best < 1:
            return (
                f"{about}; reading {self.best[0]} and writing {self.best[1]} leaves {best:.2f}: wrong site or norm "
                f"convention? Try reads={self.best[0]!r}, writes={self.best[1]!r}"
            )
        if own < 1:
            return f"{about}: a weak dictionary, or one for another model"
        return f"{about}, and no other site is better: another model, a transposed matrix, or prompts without its BOS?"


def check_tokens(model: Model) -> list[int]:
    """A short prompt: text where there is a tokenizer, else ids spread over the vocabulary."""
    n = min(N_TOKENS, model.cfg.n_ctx)
    if model.tokenizer is None:
        return [int(i) for i in np.random.default_rng(0).integers(0, model.cfg.d_vocab, n)]
    return model.encode(TEXT, bos="auto")[:n]


def reads_text(model: Model) -> bool:
    """Whether the model can be shown English; one whose words are numbers tells nothing of a dictionary on it."""
    try:
        check_tokens(model)
    except InputError:
        return False
    return True


def check_sites(model: Model, transcoders: Transcoders) -> SiteCheck:
    """Try a dictionary at every pair of sites of a model; the first position is left out (it is often an outlier)."""
    d = transcoders
    tokens = jnp.asarray(check_tokens(model), jnp.int32)
    # All sites are tried: the compiled program serves sets from everywhere, whatever they say of theirs.
    bare = replace(d, source="", cfg=replace(d.cfg, reads="mlp_in", writes="mlp_out"))
    found = host(_fvus(model.cfg, model.params, bare, tokens), np.float64)  # [reads, writes, layers]
    pairs = list(itertools.product(range(len(READS)), range(len(WRITES))))
    medians = {(READS[i], WRITES[j]): float(np.median(found[i, j])) for i, j in pairs}
    stated = (d.cfg.reads, d.cfg.writes)
    best = min(medians, key=lambda p: (medians[p], (p[0] != stated[0]) + (p[1] != stated[1])))  # of equals the nearest
    own = found[READS.index(stated[0]), WRITES.index(stated[1])]
    return SiteCheck(medians, stated, best, tuple(float(x) for x in own))


def warn_of_sites(model: Model, transcoders: Transcoders) -> None:
    """Warn (`SiteWarning`) where a dictionary cannot belong to the sites that its files name."""
    if model.cfg.attn_only or transcoders.cfg.kind in ("neurons", "sae") or not reads_text(model):
        return
    message = check_sites(model, transcoders).message
    if message is not None:
        warnings.warn(f"transcoders {transcoders.source} on {model.name}: {message}", SiteWarning, stacklevel=3)


@jax.jit(static_argnums=0)
def _fvus(cfg: ModelConfig, params: Params, d: Transcoders, tokens: Int[Array, " T"]) -> Float[Array, "R W L"]:
    def record(layer: Array, state: None, reads: dict[str, Array], written: Array) -> tuple[Array, None, Array]:
        return written, state, jnp.stack([wide(reads[name])[1:] for name in READS])

    with jax.default_matmul_precision("highest"):
        out, _, reads = forward_one(
            cfg, params, tokens, sites=("mlp_raw", "mlp_out"), hook=MlpHook("mlp_raw", None, record)
        )
        slots = jnp.asarray(d.cfg.layers)
        inputs = jnp.swapaxes(reads, 0, 1)[:, slots]  # [reads, slots, T, D]
        outputs = jnp.stack([wide(out.acts[name])[slots, 1:] for name in WRITES])
        guesses = jax.lax.map(lambda x: wide(reconstruct(d, x)), inputs)

    def centred(x: Array) -> Array:
        return centre("layer", x) if cfg.norm == "layer" else x

    def fvu(y: Array, guess: Array) -> Array:
        y, guess = centred(y), centred(guess)
        return jnp.sum((y - guess) ** 2, (1, 2)) / jnp.sum((y - y.mean(1, keepdims=True)) ** 2, (1, 2))

    return jax.vmap(lambda guess: jax.vmap(lambda y: fvu(y, guess))(outputs))(guesses)

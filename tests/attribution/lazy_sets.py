"""Random sets in memory and the same on disk, in blocks smaller than a matrix."""

import dataclasses

import jax.numpy as jnp
import numpy as np

import tcircuits as tc
from experiments.toys import random_dictionary, random_model

from ..transcoders.on_disk import lazily

CASES = {  # family, dictionary, switches, features
    "jumprelu": ("llama", "plt-jumprelu", {"skip": True}, 120),
    "topk signed": ("gpt2", "plt-topk", {"signed_topk": True}, 120),
    "topk": ("gemma2", "plt-topk", {"reads": "normalized", "writes": "mlp_raw"}, 120),
    "some layers": ("neox", "plt-relu", {"fill": "neurons"}, 120),
    "clt": ("gpt2", "clt-jumprelu", {"skip": True}, 120),
    "clt wide": ("llama", "clt-relu", {}, 300),
}
LENGTH = 7


def make(name, folder):
    """(model, set in memory, the same on disk, tokens)."""
    family, kind, switches, d_feature = CASES[name]
    model = random_model(family)
    tokens = np.random.default_rng(2).integers(0, model.cfg.d_vocab, LENGTH)
    d = random_dictionary(model, kind, tokens, d_feature=d_feature, share=0.04, **switches)
    d = without_layers(d, (1, 3)) if name == "some layers" else d
    tc.save_transcoders(d, folder)
    full = tc.load_transcoders(folder, model=model.cfg)
    return model, full, lazily(folder, model.cfg, block_bytes=50 * 32 * 4), tokens


def without_layers(d, layers):
    """The dictionaries of these layers alone."""
    arrays = {f.name: getattr(d, f.name) for f in dataclasses.fields(d) if f.name not in ("cfg", "source")}
    kept = {name: None if a is None else a[jnp.asarray(layers)] for name, a in arrays.items()}
    return dataclasses.replace(d, cfg=dataclasses.replace(d.cfg, layers=layers), **kept)

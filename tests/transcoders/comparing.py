"""Loading in float64, and comparison with what an owner's equation gives for the raw tensors.

In float64 only the order of sums differs from NumPy's: with at most 16 terms of size 100 in a sum, results agree to
16 x 100 x 2^-53 < 1e-12.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.transcoders.dictionary import encode, reconstruct
from tcircuits.transcoders.loading import load_transcoders

from . import ct_files as ct

L, D, F = ct.L, ct.D, ct.F


def wide(raw):
    return {name: np.asarray(t, np.float64) for name, t in raw.items()}


def inputs(n_layers=L, d_model=D):
    return ct.inputs(n_layers, d_model).astype(np.float64)


def top(pre, k):
    """The k largest of each row, after a ReLU."""
    pre = np.maximum(pre, 0)
    return np.where(pre >= np.sort(pre, -1)[:, -k][:, None], pre, 0)


def load(source, n_layers=L, d_model=D, **options):
    return load_transcoders(source, model=ct.model(n_layers, d_model), dtype=np.float64, **options)


@jax.jit
def compute(d, x):
    return jnp.stack([encode(d, slot, x[slot]) for slot in range(len(x))]), reconstruct(d, x)


def agrees(d, x, wanted):
    """Features and reconstructions, each a list by layer; the features are neither all on nor all off."""
    f, y = zip(*wanted, strict=True)
    n = len(x)
    cfg = replace(d.cfg, n_layers=n, layers=tuple(range(n)), reads="mlp_in", writes="mlp_out")
    got = compute(replace(d, cfg=cfg, source=""), x)  # so one program serves all formats
    assert 0 < (np.array(f) != 0).mean() < 1
    np.testing.assert_allclose(got[0], f, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got[1], y, rtol=0, atol=1e-12)


def sites(d):
    return d.cfg.kind, d.cfg.reads, d.cfg.writes, d.cfg.activation

"""One recipe for every kind, activation function and term of the loss, small, in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.training.recipe import Objective, Optimizer, Recipe
from tcircuits.transcoders.training.weights import spec

L, D, F, B = 3, 6, 20, 16


def config(kind="transcoder", activation="relu", **more) -> TranscoderConfig:
    return TranscoderConfig(kind, L, D, F, tuple(range(L)), activation, **more)


RESID = {"reads": "resid_post", "writes": "resid_post"}
ADAM = Optimizer(lr=1e-2, warmup=0, decay=0.0, clip=None)
RECIPES = {
    "l1": Recipe(config(), Objective(l1=0.3)),
    "l1 free": Recipe(config(), Objective(l1=0.3), decoder_norm="free"),
    "reference": Recipe(config(), Objective(error="reference", l1=0.02), pre_bias=True),
    "topk": Recipe(config(activation="topk", k=4), Objective(error="fvu")),
    "topk dense": Recipe(config(activation="topk", k=4), Objective(error="fvu"), decode="dense"),
    "topk skip": Recipe(config(activation="topk", k=4, skip=True)),
    "topk auxk": Recipe(config(activation="topk", k=3), Objective(auxk=0.5, k_aux=2)),
    "batchtopk": Recipe(config(activation="batchtopk"), Objective(k=3, error="fvu", auxk=0.1)),
    "matryoshka": Recipe(config(activation="batchtopk"), Objective(k=4, nested=(5, 11))),
    "fractional": Recipe(config(activation="batchtopk"), Objective(k=2.3)),
    "by norm": Recipe(config(activation="batchtopk"), Objective(k=3, by_norm=True, auxk=0.1), decoder_norm="free"),
    "overlap": Recipe(config(activation="batchtopk"), Objective(k=3, overlap=0.6, overlap_free=0.2)),
    "overlap free": Recipe(config(), Objective(l1=0.1, overlap=0.6, overlap_free=0.0), decoder_norm="free"),
    "matryoshka l1": Recipe(config(), Objective(l1=0.1, nested=(7,))),
    "jumprelu": Recipe(config(activation="jumprelu"), Objective(l0=0.05, frequency=0.2, frequency_limit=0.3)),
    "jumprelu target": Recipe(config(activation="jumprelu"), Objective(l0=2.0, l0_target=4.0)),
    "jumprelu tanh": Recipe(config("clt", "jumprelu"), Objective(tanh=0.2, preactivation=0.03), decoder_norm="free"),
    "clt relu": Recipe(config("clt"), Objective(l1=0.1), decoder_norm="free"),
    "clt topk": Recipe(config("clt", "topk", k=4), Objective(auxk=0.1, k_aux=3), decoder_norm="free"),
    "clt topk dense": Recipe(config("clt", "topk", k=4), decoder_norm="free", decode="dense"),
    "clt skip": Recipe(config("clt", "topk", k=4, skip=True), decoder_norm="free"),
    "clt tied": Recipe(config("clt", "topk", k=4), Objective(l1=0.1), decoder_norm="free", tied=True),
    "clt band": Recipe(config("clt", "batchtopk"), Objective(k=3), decoder_norm="free", band=2),
    "clt tied band": Recipe(config("clt", "jumprelu"), Objective(tanh=0.1), decoder_norm="free", tied=True, band=2),
    "sae": Recipe(config("sae", "topk", k=3, **RESID), start="tied"),
    "sae small": Recipe(config("sae", "topk", k=3, **RESID), start="small", decoder_norm="free"),
    "hagd": Recipe(config("sae", "topk", k=3, **RESID), Objective(l1=0.01, prediction=0.7, prediction_rank=5)),
    "hagd cross": Recipe(
        config("sae", "topk", k=3, **RESID), Objective(prediction=0.7, prediction_rank=5, cross_grad=True)
    ),
}
RECIPES = {
    name: replace(r, compute="float64", batch=B, optimizer=ADAM, steps=50, seed=3) for name, r in RECIPES.items()
}


def random_weights(recipe, seed=0):
    """Random arrays in the tree of the recipe's weights; decoder rows at norm 1 where the recipe keeps them there."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(spec(recipe))
    w = jax.tree.unflatten(tree, [jnp.asarray(0.5 * rng.normal(size=s.shape)) for s in leaves])
    if w.log_threshold is not None:
        w = replace(w, log_threshold=w.log_threshold - 1.0)
    if recipe.decoder_norm == "unit":
        w = replace(w, w_dec=w.w_dec / jnp.linalg.norm(w.w_dec, axis=-1, keepdims=True))
    return w


def batch(seed=1, n=B):
    """What is read and what must be written [L, B, D], and which features are dead."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(L, n, D)), rng.normal(size=(L, n, D)), rng.random((L, F)) < 0.4


def plain(w):
    """A tree of weights as dicts of NumPy arrays, absent ones None."""
    if w is None:
        return None
    if hasattr(w, "__dataclass_fields__"):
        return {name: plain(getattr(w, name)) for name in w.__dataclass_fields__}
    return np.asarray(w, np.float64)

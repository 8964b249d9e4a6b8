"""Many edited runs of one case in one compiled call; a lane has edits of features, of MLP outputs, of embeddings."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcircuits.interventions import FeatureEdit, Run, clean_run, edited_run
from tcircuits.models.edits import Edit
from tests import bridge
from tests.reference import attribution as at
from tests.reference import dictionary
from tests.reference.builders import Case

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}  # compiling is most of the time


@dataclass
class Lane:
    """One run: `held` are the layers whose MLPs are held.

    `features`: (mode, layer, start, stop, feature, value); `mlp`: (layer, position, vector); `embed`: (position,
    vector).
    """

    features: list[tuple[str, int, int, int, int, float]] = field(default_factory=list)
    mlp: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    embed: list[tuple[int, np.ndarray]] = field(default_factory=list)
    held: tuple[int, ...] = ()


def feature_edits(lanes: list[Lane]) -> tuple[FeatureEdit, ...]:
    """The lanes' edits of features, one FeatureEdit [lanes, E] a mode, filled up with edits of layer -1."""
    out = []
    for mode in ("set", "add", "scale"):
        mine = [[e[1:] for e in lane.features if e[0] == mode] for lane in lanes]
        size = max(map(len, mine))
        if size:
            filled = [m + [(-1, 0, 0, 0, 0.0)] * (size - len(m)) for m in mine]
            columns = np.array(filled, np.float64).transpose(2, 0, 1)
            out.append(FeatureEdit(mode, *(jnp.asarray(c, jnp.int32) for c in columns[:4]), jnp.asarray(columns[4])))
    return tuple(out)


def site_edits(lanes: list[Lane], site: str, width: int) -> tuple[Edit, ...]:
    """The lanes' vectors added at `site` and at the embedding."""

    def one(name: str, given: list[list[tuple[int, int, np.ndarray]]]) -> tuple[Edit, ...]:
        size = max(map(len, given))
        if not size:
            return ()
        filled = [g + [(-1, 0, np.zeros(width))] * (size - len(g)) for g in given]
        layer, start = (jnp.asarray([[e[i] for e in g] for g in filled], jnp.int32) for i in (0, 1))
        return (Edit(name, "add", layer, start, start + 1, jnp.asarray([[e[2] for e in g] for g in filled])),)

    embed = [[(0, p, v) for p, v in lane.embed] for lane in lanes]
    return one("resid_pre", embed) + one(site, [lane.mlp for lane in lanes])


def run(case: Case, lanes: list[Lane], dtype: str = "float64", **freezing: bool) -> Run:
    """All lanes, in one `vmap`; leaves are NumPy arrays with lanes leading."""
    model, d = bridge.both(case, dtype)
    cfg, tokens = model.cfg, jnp.asarray(case.tokens)
    held = np.array([[float(layer in lane.held) for layer in range(cfg.n_layers)] for lane in lanes])
    features, sites = feature_edits(lanes), site_edits(lanes, d.cfg.writes, cfg.d_model)

    def all_lanes(params: Any, d: Any, tokens: Any, features: Any, sites: Any, held: Any) -> Run:
        clean = clean_run(cfg, params, d, tokens)

        def one(features: Any, sites: Any, held: Any) -> Run:
            return edited_run(cfg, params, d, tokens, clean, features, sites, hold_mlps=held, **freezing)

        return jax.vmap(one)(features, sites, held)

    out = jax.jit(all_lanes)(model.params, d, tokens, features, sites, jnp.asarray(held, dtype))
    return jax.tree.map(np.asarray, out)


def everything_held(case: Case, lanes: list[Lane], dtype: str = "float64") -> Run:
    """The local replacement model: patterns, denominators, gates and MLPs are held."""
    for lane in lanes:
        lane.held = tuple(range(case.cfg.n_layers))
    return run(case, lanes, dtype, freeze_attention=True, freeze_norms=True)


def node_values(case: Case, here: at.Local, targets: list[at.Target], out: Run) -> np.ndarray:
    """[lanes, N]: linear values of features and targets that are features, demeaned logits; 0 for errors and tokens."""
    n, cap = len(here.features), case.cfg.final_softcap
    values = np.zeros((len(out.logits), at.n_sources(here) + len(targets)))
    values[:, :n] = out.linear[:, *here.features.T]
    logits = out.logits.astype(np.float64)
    raw = logits if cap is None else cap * np.arctanh(logits / cap)
    for i, t in enumerate(targets):
        of_logit = raw[:, t.position, t.token] - raw[:, t.position].mean(-1)
        values[:, at.n_sources(here) + i] = (
            out.linear[:, t.layer, t.position, t.feature] if t.kind == "feature" else of_logit
        )
    return values


def written(here: at.Local, lane: Lane) -> tuple[np.ndarray, np.ndarray]:
    """What a lane's edits write when everything is held: at the embedding [T,D], at the MLPs' outputs [L,T,D]."""
    cfg, length = here.cfg, here.length
    embed, mlp = np.zeros((length, cfg.d_model)), np.zeros((cfg.n_layers, length, cfg.d_model))
    for p, v in lane.embed:
        embed[p] += v
    for layer, p, v in lane.mlp:
        mlp[layer, p] += v
    now = [v.copy() for v in here.values]
    for mode in ("set", "add", "scale"):  # the order in which `feature_edits` gives them
        for layer, start, stop, f, value in (e[1:] for e in lane.features if e[0] == mode):
            for p in range(start, min(stop, length)):
                old = now[layer][p, f]
                now[layer][p, f] = {"set": value, "add": old + value, "scale": old * value}[mode]
                for out, weights in dictionary.decoders(here.params, here.d, layer):
                    mlp[out, p] += (now[layer][p, f] - old) * weights[f]
    return embed, mlp

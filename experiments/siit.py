"""Transformers with realistic weights whose circuits are known, because they were trained to have them.

    python -m experiments.siit
    python -m experiments.siit --no-train

Strict interchange-intervention training (Gupta et al. 2024, InterpBench, arXiv 2407.14494): each node (head, MLP) of a
compiled program's circuit is assigned to a node of a small transformer (2 layers, 4 heads, gelu, about half of the
compiled model's width). With inputs x and x' and all answers as cross-entropy,

    loss = behaviour on x  +  x with an assigned node as on x', against the program with its node as on x'
                           +  0.4  x with another node as on x', against the program on x

All networks have one shape and train together. Afterwards: how often they answer as the program, plainly and under both
kinds of interchange; and how well each method ranks the edges of the circuit they were trained to have. A head's query,
key and value are one reader there, with the best of their scores, as only nodes are trained.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import save, say, show
from experiments.rasp.known import read
from experiments.rasp.network import Network, load, padded
from experiments.rasp.oracle import Plain
from experiments.rasp_circuits import auroc
from tcircuits.circuits.acdc import acdc
from tcircuits.circuits.discover import score
from tcircuits.circuits.edges import Edges, edges_of
from tcircuits.circuits.elimination import eliminate
from tcircuits.circuits.forward import run
from tcircuits.circuits.scores import POINTS
from tcircuits.circuits.units import Units, units_of
from tcircuits.models.config import ModelConfig
from tcircuits.models.model import Model
from tcircuits.models.params import Params, abstract, init
from tcircuits.tasks.behaviour import Behaviour
from tcircuits.types import Array, Float, InputError, Int

WEIGHTS = Path(__file__).parent / "rasp" / "siit.npz"
PUBLISHED = {"acdc": 0.95, "eap-ig": 0.90, "gradient": 0.20}  # medians of InterpBench over 86 models, as quoted
SIGNED = ("exact", "topk", "pruning")


@dataclass(frozen=True)
class Config:
    """What to train, and how."""

    programs: tuple[str, ...] = (
        *("hist", "count", "first_token", "next_token", "add_index", "frac_prevs", "share", "count_less_freq"),
        *("unique_here", "detect_pattern", "majority", "difference"),
    )
    """Programs of at most two layers, five positions and 81 inputs."""
    d_model: int = 16
    d_mlp: int = 48
    steps: int = 400
    batch: int = 48
    """Pairs of inputs of each network in a step."""
    lr: float = 5e-3
    """Of Adam; falls to zero on a cosine."""
    strict: float = 0.4
    """Weight of interchanges of unassigned nodes."""
    train: bool = True
    """Train; otherwise take the weights that are kept beside the programs."""
    methods: tuple[str, ...] = ("gradient", "ig", "eap-ig", "exact", "topk", "pruning")
    thresholds: tuple[float, ...] = (1.0, 0.1, 0.01, 0.001)
    """Of ACDC, in nats."""
    pairs: int = 1000
    """Pairs of inputs on which interchanges are tested, of each node."""
    seed: int = 0


@dataclass(frozen=True)
class Goal:
    """A program, which of the network's nodes do what, and what is asked of them.

    Attributes:
        net: the program.
        assigned: node of the program by node of the network, in the numbering of `Units`.
        labels: answers with node u as on another input, [U, N, N, T]: indices of the program's choices, -1 for none.
        edges: of the program's circuit, by names of the network.
    """

    net: Network
    assigned: dict[int, str]
    labels: Int[np.ndarray, "U N N T"]
    edges: frozenset[tuple[str, str]]


def goal(net: Network, units: Units, seed: int) -> Goal:
    """Assign the circuit's nodes: an MLP to that of its layer, a head to one of its layer drawn at random."""
    circuit = [tuple(e.split(" -> ")) for e in read()[net.name]["resample"]["circuits"][0]]
    nodes = sorted({_node(name) for edge in circuit for name in edge} - {"embed", "logits"})
    rng, names = np.random.default_rng(seed), {units.label(u): u for u in range(units.n)}
    free = {layer: rng.permutation(units.n_heads).tolist() for layer in range(units.n_layers)}
    place = {"embed": "embed", "logits": "logits"}
    for node in nodes:
        kind, where = node.split()
        layer = int(where.split(".")[0])
        place[node] = node if kind == "mlp" else f"head {layer}.{free[layer].pop()}"
    assigned = {names[place[node]]: node for node in nodes}
    edges = frozenset((place[_node(w)], place[_node(r)]) for w, r in circuit)
    return Goal(net, assigned, _labels(net, units.n, assigned), edges)


def _node(name: str) -> str:
    """A reader's or writer's node: `head 0.1 q` is of `head 0.1`."""
    return " ".join(name.split()[:2])


def _labels(net: Network, n_units: int, assigned: dict[int, str]) -> Int[np.ndarray, "U N N T"]:
    plain, (N, T) = Plain(net), net.tokens.shape
    asked = np.where(net.asked, net.right, -1).astype(np.int8)
    found = np.broadcast_to(asked[:, None], (n_units, N, N, T)).copy()
    clean = plain.run(net.tokens)[1]
    one, other = (a.ravel() for a in np.mgrid[:N, :N])
    reference = {name: out[other] for name, out in clean.items()}
    for unit, node in assigned.items():
        removed = frozenset(e for e in plain.edges if e[0] == node)
        chosen = plain.chosen(plain.run(net.tokens[one], removed, reference)[0])
        found[unit] = np.where(net.asked[one], chosen, -1).reshape(N, N, T)
    return found


def config(cfg: Config, net: Network) -> ModelConfig:
    """The transformer that is trained: the same for all programs."""
    assert net.sizes is not None
    about: Any = {
        **{"family": "siit", "n_layers": 2, "d_model": cfg.d_model, "n_heads": 4, "n_kv_heads": 4},
        **{"d_head": cfg.d_model // 4, "d_mlp": cfg.d_mlp, "d_vocab": net.sizes.vocab + net.sizes.choices},
        **{"n_ctx": net.tokens.shape[1], "norm": "none", "final_norm": False, "pre_norm": False, "gated": False},
        **{"activation": "gelu", "position": "learned", "causal": False, "qkv_bias": True, "mlp_bias": True},
        **{"o_bias": True, "unembed_bias": True},
    }
    return ModelConfig(**about)


def answers(
    cfg: ModelConfig, units: Units, params: Params, x: Int[Array, " T"], other: Int[Array, " T"], node: Array
) -> Float[Array, "T V"]:
    """Logits on x with one node as on another input."""
    valid = jnp.ones(x.shape, bool)
    reference = run(cfg, params, None, units, other, valid)[1]
    mask = units.split(1.0 - jax.nn.one_hot(node, units.n))
    return run(cfg, params, None, units, x, valid, mask, reference)[0]


def loss(
    cfg: ModelConfig, units: Units, start: int, strict: float, batch: int, params: Params, data: Any, key: Array
) -> Array:
    """The three terms for one network; `data` is its inputs, labels, and which nodes are assigned."""
    tokens, labels, assigned = data
    keys = jax.random.split(key, 4)
    one, other = jax.random.randint(keys[0], (2, batch), 0, len(tokens))
    mine = jax.random.categorical(keys[1], jnp.where(assigned, 0.0, -jnp.inf), shape=(batch,))
    free = jax.random.categorical(keys[2], jnp.where(assigned, -jnp.inf, 0.0), shape=(batch,))
    clean = labels[free[0], one, one]

    def away(logits: Array, label: Array) -> Array:
        log_p = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_p, jnp.maximum(label, 0)[..., None] + start, -1)[..., 0]
        return -jnp.sum(jnp.where(label >= 0, picked, 0)) / jnp.maximum(jnp.sum(label >= 0), 1)

    def patched(node: Array) -> Array:
        return jax.vmap(partial(answers, cfg, units, params))(tokens[one], tokens[other], node)

    valid = jnp.ones(tokens.shape[1], bool)
    plain = jax.vmap(lambda x: run(cfg, params, None, units, x, valid)[0])(tokens[one])
    swapped = away(patched(mine), labels[mine, one, other].astype(jnp.int32))
    kept = away(patched(free), labels[free, one, other].astype(jnp.int32))
    return away(plain, clean.astype(jnp.int32)) + swapped + strict * kept


def train(cfg: Config, model_cfg: ModelConfig, units: Units, goals: Sequence[Goal]) -> Params:
    """All networks, stacked."""
    sizes = goals[0].net.sizes
    assert sizes is not None
    tokens = jnp.asarray(np.stack([g.net.tokens for g in goals]), jnp.int32)
    assigned = np.zeros((len(goals), units.n), bool)
    for row, g in zip(assigned, goals, strict=True):
        row[list(g.assigned)] = True
    data = (tokens, jnp.asarray(np.stack([g.labels for g in goals])), jnp.asarray(assigned))
    first, noise = jax.random.split(jax.random.key(cfg.seed))
    params: Any = jax.vmap(partial(init, model_cfg))(jax.random.split(first, len(goals)))
    adam = optax.adam(optax.cosine_decay_schedule(cfg.lr, cfg.steps))
    each = partial(loss, model_cfg, units, sizes.vocab, cfg.strict, cfg.batch)

    @jax.jit
    def steps(params: Params, state: Any, at: Array) -> Any:
        def step(carry: Any, number: Array) -> tuple[Any, Array]:
            params, state = carry
            keys = jax.random.split(jax.random.fold_in(noise, number), len(goals))

            def total(params: Params) -> tuple[Array, Array]:
                losses = jax.vmap(each)(params, data, keys)
                return losses.sum(), losses

            grads, losses = jax.grad(total, has_aux=True)(params)
            moves, state = adam.update(grads, state)
            return (optax.apply_updates(params, moves), state), losses

        (params, state), losses = jax.lax.scan(step, (params, state), at)
        return params, state, losses.mean(0)

    state, start, every = adam.init(params), time.perf_counter(), 100
    for at in range(0, cfg.steps, every):
        params, state, losses = steps(params, state, jnp.arange(at, at + every))
        say(f"{at + every}: {np.round(np.asarray(losses), 2)} {time.perf_counter() - start:.0f} s")
    return params


def tested(cfg: Config, model: Model, units: Units, g: Goal) -> dict[str, float]:
    """How often all answers to an input are the program's: plainly, with an assigned and with another node swapped."""
    assert g.net.sizes is not None
    V, rng = g.net.sizes.vocab, np.random.default_rng(cfg.seed + 1)
    N, found = len(g.net.tokens), {"assigned": [], "free": []}
    tokens = jnp.asarray(g.net.tokens, jnp.int32)
    for unit in range(units.n):
        one, other = rng.integers(0, N, (2, cfg.pairs))
        logits = _swapped(model.cfg, units, model.params, tokens[one], tokens[other], jnp.full(cfg.pairs, unit))
        label = g.labels[unit, one, other]
        same = ((np.asarray(logits)[..., V:].argmax(-1) == label) | (label < 0)).all(-1)
        found["assigned" if unit in g.assigned else "free"].append(same.mean())
    everything = _swapped(model.cfg, units, model.params, tokens, tokens, jnp.zeros(N, int))
    plain = (np.asarray(everything)[..., V:].argmax(-1) == g.net.right)[g.net.asked].mean()
    return {"accuracy": float(plain)} | {f"interchange_{k}": float(np.mean(v)) for k, v in found.items()}


@partial(jax.jit, static_argnames=("cfg", "units"))
def _swapped(cfg: ModelConfig, units: Units, params: Params, x: Array, other: Array, node: Array) -> Array:
    return jax.vmap(partial(answers, cfg, units, params))(x, other, node)


def ranks(cfg: Config, model: Model, b: Behaviour, g: Goal) -> dict[str, Any]:
    """Edge AUROC of every method, heads' queries, keys and values taken together."""
    edges, found = edges_of(model.cfg), {}
    how: Any = {"ablation": "resample", "errors": "keep", "dictionary": None, "batch": 1024, "seed": cfg.seed}
    for method in cfg.methods:
        name: Any = method
        values = score(model, b, edges, name, points=POINTS, **how).values
        found[method] = _area(edges, values if method in SIGNED else np.abs(values), g)
    kept = [acdc(model, b, edges, threshold=t).mask * t for t in cfg.thresholds]
    found["acdc"] = _area(edges, np.max(kept, 0), g)
    own = eliminate(model, b, edges, tolerance=0.1)
    found["elimination"] = _area(edges, cast(np.ndarray, own.scores), g)
    return found


def _area(edges: Edges, values: Float[np.ndarray, " U"], g: Goal) -> float | None:
    """AUROC over edges between nodes, each with the best score of its readers."""
    best: dict[tuple[str, str], float] = {}
    for value, label in zip(values, map(edges.label, range(edges.n)), strict=True):
        writer, reader = label.split(" -> ")
        edge = (writer, _node(reader))
        best[edge] = max(best.get(edge, -np.inf), float(value))
    return auroc(np.array(list(best.values())), np.array([e in g.edges for e in best]))


def stored(cfg: Config, goals: Sequence[Goal]) -> None:
    """Train, and keep the weights, float16, with the assignment and what it took."""
    start, cpu = time.perf_counter(), time.process_time()
    model_cfg = config(cfg, goals[0].net)
    params = train(cfg, model_cfg, units_of(model_cfg, ("head", "mlp")), goals)
    arrays = {str(i): np.asarray(a, np.float16) for i, a in enumerate(jax.tree.leaves(params))}
    assigned = {g.net.name: {str(u): node for u, node in g.assigned.items()} for g in goals}
    took = {"steps": cfg.steps, "wall_seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    np.savez_compressed(WEIGHTS, about=json.dumps({"assigned": assigned, "training": took}), **cast(Any, arrays))


def taken(model_cfg: ModelConfig, goals: Sequence[Goal]) -> tuple[Params, dict[str, float]]:
    """The weights that `stored` kept, float32, of these goals, and what training took.

    Raises:
        InputError: they were trained with other assignments.
    """
    with np.load(WEIGHTS) as file:
        about = json.loads(str(file["about"]))
        kept = {name: {int(u): node for u, node in row.items()} for name, row in about["assigned"].items()}
        wrong = [g.net.name for g in goals if kept.get(g.net.name) != g.assigned]
        if wrong:
            raise InputError(f"{WEIGHTS.name} has no networks for {', '.join(wrong)} with these assignments: train")
        at = jnp.asarray([list(kept).index(g.net.name) for g in goals])
        tree = jax.tree.structure(abstract(model_cfg))
        leaves = [jnp.asarray(file[str(i)], jnp.float32)[at] for i in range(tree.num_leaves)]
        return jax.tree.unflatten(tree, leaves), about["training"]


def main(cfg: Config) -> None:
    """Train (or load), test, rank, print, write."""
    networks = {net.name: net for net in padded([load(name) for name in cfg.programs])}
    model_cfg = config(cfg, networks[cfg.programs[0]])
    units, rows = units_of(model_cfg, ("head", "mlp")), []
    goals = [goal(networks[name], units, cfg.seed + i) for i, name in enumerate(cfg.programs)]
    if cfg.train:
        stored(cfg, goals)
    params, took = taken(model_cfg, goals)
    for i, g in enumerate(goals):
        model = Model(model_cfg, jax.tree.map(lambda a, i=i: a[i], params), None, g.net.model.name)
        row = {"program": g.net.name, "true": len(g.edges)} | tested(cfg, model, units, g)
        rows.append(row | {"auroc": ranks(cfg, model, g.net.behaviour(seed=cfg.seed), g)})
        show("networks", [{k: v for k, v in r.items() if k != "auroc"} | r["auroc"] for r in rows])
        medians = {m: float(np.median([r["auroc"][m] for r in rows])) for m in rows[0]["auroc"]}
        save("siit", cfg, {"training": took, "median_auroc": medians, "published": PUBLISHED, "rows": rows})


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config))

"""The compiled programs of `extract`, and of the searches that learn, lowered for devices that need not be there.

    graph        what `attribute` runs, once for each prompt
    importance   integrated gradients of all units (`scores.program`)
    circuits     `evaluations` circuits on all prompts: group ablations and elimination, `circuits` in a call
    gates        gates on the tree (`tree_scores`): every step of the training
    network      the membership network (`fit`), trained on the graphs of some behaviours

Each is the very object that the library calls, on arguments that are shapes with shardings. Prompts lie on the mesh's
data axis; everything that has heads or features is split as weights are.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tcircuits.circuits.learning import Learning
from tcircuits.circuits.membership import Network, Training, joint_program
from tcircuits.circuits.membership_data import EDGE_FEATURES, NODE_FEATURES, Sample
from tcircuits.circuits.running import Setting, runs_program
from tcircuits.circuits.scores import POINTS, program
from tcircuits.circuits.tree_gates import gates_program
from tcircuits.circuits.units import units_of
from tcircuits.planning.counting import Cost
from tcircuits.planning.programs import Abstract, Stage, compiled, stages
from tcircuits.planning.result import GRAPH

EDGES = 16  # of each set in each level of a sample
LEAF = 8  # things of a leaf of the tree, about
AT_ONCE = 16  # circuits that `run_circuits` runs together


def extraction_stages(a: Abstract) -> Iterator[Stage]:
    """Every program of an extraction, one line each; a trace's programs have "graph: " before their names."""
    e, held = a.request.behaviour, a.persistent
    assert e is not None
    for stage in stages(a):
        yield replace(stage, name=GRAPH + stage.name, runs=stage.runs * e.prompts, cost=stage.cost.times(e.prompts))
    r = a.request
    s = Setting(r.model, units_of(r.model, ("head", "feature"), r.dictionary), "logit_difference")
    batches = -(-e.prompts // e.batch)
    some, point = prompts_of(a, e.batch), a.array((POINTS,), jnp.float32)
    made = compiled(jax.jit(program(s, "ig")), a.params, a.d, None, point, point, some)
    yield made.stage("importance", held, made.work().times(batches), batches)
    size = min(AT_ONCE, e.circuits)
    groups = a.array((-(-e.circuits // size), size, s.units.n), jnp.float32)
    made = compiled(runs_program, s, a.params, a.d, None, groups, some)
    runs = batches * -(-e.evaluations // e.circuits)
    yield made.stage(f"{e.circuits} circuits", held, made.work().times(runs), runs)
    yield _gates(a, s, held)
    yield _network(a, held)


def prompts_of(a: Abstract, n: int) -> dict[str, Any]:
    """The arrays of n prompts with one right and one wrong answer, on the mesh's data axis."""
    where, T = NamedSharding(a.mesh, PartitionSpec("data")), a.request.tokens
    shapes = {
        "clean": ((n, T), jnp.int32),
        "other": ((n, T), jnp.int32),
        "valid": ((n, T), jnp.bool_),
        "right": ((n, 1), jnp.int32),
        "wrong": ((n, 1), jnp.int32),
        "at": ((n,), jnp.int32),
    }
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, (shape, dtype) in shapes.items()}


def key_of(a: Abstract) -> Any:
    """A key of random numbers, which every device has."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(a.mesh, PartitionSpec()))


def _nodes(a: Abstract) -> int:
    """Things of the tree."""
    e, units = a.request.behaviour, units_of(a.request.model, ("head", "feature"), a.request.dictionary).n
    assert e is not None
    return min(e.nodes, units)


def _gates(a: Abstract, s: Setting, held: int) -> Stage:
    """The whole training of gates on a tree of the graph's nodes."""
    e, nodes = a.request.behaviour, _nodes(a)
    assert e is not None
    leaves = -(-nodes // LEAF)
    levels, n_sets, whole = max(1, math.ceil(math.log2(leaves))), 2 * leaves, jnp.int32
    tree = tuple(a.array((n,), whole) for n in (n_sets, n_sets, nodes, nodes))
    how = Learning(steps=e.steps, batch=e.batch)
    start = a.array((nodes,), jnp.float32)
    given = (a.params, a.d, None, prompts_of(a, e.prompts), tree, start, key_of(a))
    made = compiled(gates_program, s, "pruning", how, e.prompts, levels, *given)
    return made.stage(f"gates, {e.steps} steps", held, made.work())


def _network(a: Abstract, held: int) -> Stage:
    """The whole training of the membership network, on the graphs of `behaviours` behaviours; every device has it."""
    e, nodes = a.request.behaviour, _nodes(a)
    assert e is not None
    how, leaves = Training(), -(-nodes // LEAF)
    n = nodes + 2 * leaves  # all levels: the nodes themselves, and the sets above them
    edges, some = n * EDGES, e.behaviours

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return a.array((some, *shape), dtype)

    whole: Any = {"dtype": jnp.int32}
    ends = {"source": array(edges, **whole), "target": array(edges, **whole), "family": array(n, **whole)}
    live = {"effect": array(n), "real": array(n), "live": array(edges)}
    data = Sample(node=array(n, len(NODE_FEATURES)), edge=array(edges, len(EDGE_FEATURES)), **ends, **live)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), data)
    weights = jax.eval_shape(partial(Network(how).init), jax.random.key(0), first)
    weights = jax.tree.map(lambda x: a.array(x.shape, x.dtype), weights)
    made = compiled(joint_program, how, some, a.array((), jnp.float32), weights, data, key_of(a))
    total: Cost = made.work()
    return made.stage(f"network, {how.steps} steps", held, total)

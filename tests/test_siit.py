"""Networks trained to be a program: what is asked of them, what a step computes, what the kept ones do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import siit
from experiments.rasp.network import load, padded
from tcircuits.circuits.edges import edges_of
from tcircuits.circuits.units import units_of
from tcircuits.models.forward import forward
from tcircuits.models.model import Model
from tcircuits.models.params import init

pytestmark = pytest.mark.usefixtures("quick_compile")
CFG = siit.Config(programs=("hist", "majority"), pairs=200)
NETWORKS = padded([load(name) for name in siit.Config().programs])
MODEL = siit.config(CFG, NETWORKS[0])
UNITS = units_of(MODEL, ("head", "mlp"))


@pytest.fixture(scope="module")
def goals():
    by_name = {net.name: net for net in NETWORKS}
    return {name: siit.goal(by_name[name], UNITS, siit.Config().programs.index(name)) for name in CFG.programs}


def test_labels_are_what_the_program_says_with_a_variable_of_another_input(goals):
    """`hist`: all goes through its MLP, which knows the other input's counts. `majority`: its heads count a and b."""
    g = goals["hist"]
    (mlp,) = (u for u, node in g.assigned.items() if node == "mlp 0")
    right = np.where(g.net.asked, g.net.right, -1)
    np.testing.assert_array_equal(g.labels[mlp], np.broadcast_to(right[None], g.labels[mlp].shape))
    free = [u for u in range(UNITS.n) if u not in g.assigned]
    for u in free:
        np.testing.assert_array_equal(g.labels[u], np.broadcast_to(right[:, None], g.labels[u].shape))
    g = goals["majority"]
    tokens = [[g.net.vocab[t] for t in row[1:]] for row in g.net.tokens]
    counts = np.array([[row.count("a"), row.count("b")] for row in tokens])
    heads = {node: g.labels[u][:, :, 1] for u, node in g.assigned.items() if node.startswith("head")}
    said = np.array([g.net.choices.index(answer) for answer in (False, True)], np.int8)
    own, other = counts[:, None], counts[None, :]
    by_hand = [said[(a > b).astype(int)] for a, b in ((other[..., 0], own[..., 1]), (own[..., 0], other[..., 1]))]
    assert len(heads) == 2
    assert sorted(a.tobytes() for a in heads.values()) == sorted(a.tobytes() for a in by_hand)


def test_the_circuit_is_the_programs_under_other_names(goals):
    g = goals["majority"]
    names = {UNITS.label(u) for u in g.assigned} | {"embed", "logits"}
    assert {n for edge in g.edges for n in edge} == names
    values = np.arange(edges_of(MODEL).n, dtype=float)
    labels = [edges_of(MODEL).label(u) for u in range(len(values))]
    inside = [tuple(label.rsplit(" -> ")) for label in labels]
    perfect = np.array([(w, siit._node(r)) in g.edges for w, r in inside], float)
    assert siit._area(edges_of(MODEL), perfect, g) == 1.0
    assert siit._area(edges_of(MODEL), -perfect, g) == 0.0


def test_the_loss_is_its_three_terms(goals):
    """One batch by plain runs: the same draws, cross-entropy from its definition."""
    g, key, V = goals["majority"], jax.random.key(3), NETWORKS[0].sizes.vocab
    params = init(MODEL, jax.random.key(0))
    assigned = np.zeros(UNITS.n, bool)
    assigned[list(g.assigned)] = True
    data = (jnp.asarray(g.net.tokens, jnp.int32), jnp.asarray(g.labels), jnp.asarray(assigned))
    found = siit.loss(MODEL, UNITS, V, 0.4, 5, params, data, key)
    keys = jax.random.split(key, 4)
    one, other = np.asarray(jax.random.randint(keys[0], (2, 5), 0, len(g.net.tokens)))
    mine = np.asarray(jax.random.categorical(keys[1], jnp.where(data[2], 0.0, -jnp.inf), shape=(5,)))
    free = np.asarray(jax.random.categorical(keys[2], jnp.where(data[2], -jnp.inf, 0.0), shape=(5,)))
    assert assigned[mine].all()
    assert not assigned[free].any()

    def cross_entropy(logits, labels):
        logits = np.asarray(logits, np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        rows = [log_p[b, t, V + labels[b, t]] for b in range(5) for t in range(labels.shape[1]) if labels[b, t] >= 0]
        return -np.mean(rows)

    run = jax.jit(jax.vmap(partial(siit.answers, MODEL, UNITS, params)))
    clean = forward(MODEL, params, data[0][one]).logits
    expected = cross_entropy(clean, np.where(g.net.asked, g.net.right, -1)[one])
    swapped = [run(data[0][one], data[0][other], jnp.asarray(node)) for node in (mine, free)]
    expected += cross_entropy(swapped[0], g.labels[mine, one, other])
    expected += 0.4 * cross_entropy(swapped[1], g.labels[free, one, other])
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(not siit.WEIGHTS.exists(), reason="needs the weights that python -m experiments.siit trains")
def test_the_kept_networks_answer_and_are_interchangeable(goals):
    assert siit.WEIGHTS.stat().st_size < 1_000_000
    stacked, _ = siit.taken(MODEL, list(goals.values()))
    for i, g in enumerate(goals.values()):
        params = jax.tree.map(lambda a, i=i: a[i], stacked)
        found = siit.tested(CFG, Model(MODEL, params, None, "siit"), UNITS, g)
        assert found["accuracy"] > 0.99
        assert found["interchange_assigned"] > 0.9
        assert found["interchange_free"] > 0.9

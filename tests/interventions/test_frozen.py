"""With everything held, an edit moves every feature and logit by its column of the graph: edges are what edits do."""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.attribution.frozen import freeze
from tests import bridge
from tests.interventions import lanes as ln
from tests.interventions.lanes import Lane
from tests.reference import attribution as at
from tests.reference import builders, model
from tests.reference.dictionary import Dictionary

pytestmark = pytest.mark.usefixtures("quick_compile")

TABLE = [(f, d) for f in builders.PUBLISHED for d in builders.ACCEPTANCE]
QUICK = [("gpt2", "plt-skip"), ("neox", "clt-jumprelu"), ("llama", "neurons"), ("gemma2", "plt-topk")]
MORE = [("gemma2", "plt-raw"), ("relu", "some-layers"), ("neox", "clt-skip"), ("toy", "plt-normalized")]
TOLERANCE = {"float64": 1e-13, "float32": 1e-6}
ROUNDING = 8 * 2.0**-24  # eight roundings on the way to a target, in float32
CHANGES = {"gemma2": {"final_softcap": 30.0}}  # the published value: logits can be read from before the cap


def targets_of(case, here):
    """Logits at the last and at an earlier position, and the last of the active features."""
    layer, position, feature = (int(x) for x in here.features[-1])
    wanted = at.Target("feature", position, layer=layer, feature=feature)
    return [*at.top_logits(here.run), at.Target("logit", 2, token=5), wanted]


def every_source(case, here, rng):
    """A lane for every feature, error and token, and how often each is added (features are scaled)."""
    T, times = len(case.tokens), rng.uniform(-2, 2, at.n_sources(here))
    sources = [at.source(here, s) for s in range(at.n_sources(here))]
    lanes = [Lane([("scale", i, p, p + 1, f, 1 + c)]) for (i, p, f), c in zip(here.features, times, strict=False)]
    for s in range(len(here.features), len(times)):
        layer, p = divmod(s - len(here.features), T)
        embed, mlp = sources[s]
        is_token = layer == case.cfg.n_layers
        lanes.append(
            Lane(embed=[(p, times[s] * embed[p])]) if is_token else Lane(mlp=[(layer, p, times[s] * mlp[layer, p])])
        )
    return lanes, times


def combinations(case, here, rng, count=12):
    """Lanes with several edits each: active and silent features set, added to, scaled; ranges; vectors at any place."""
    cfg, T, out = case.cfg, len(case.tokens), []
    for _ in range(count):
        at_random = [here.features[i] for i in rng.choice(len(here.features), 3, replace=False)]
        edits = [("scale", i, p, p + 1, f, rng.uniform(-2, 2)) for i, p, f in at_random]
        edits += [("scale", *edits[0][1:5], -1.0)]  # the same one again
        for mode in ("set", "add"):
            layer = rng.choice(here.d.cfg.layers)
            edits.append((mode, layer, 1, T + 5, rng.integers(here.d.cfg.d_feature), rng.normal()))
        vectors = [(rng.integers(cfg.n_layers), rng.integers(T), rng.normal(size=cfg.d_model)) for _ in range(2)]
        out.append(Lane(edits, vectors, [(rng.integers(T), rng.normal(size=cfg.d_model))]))
    return out


def held_by(case, dtype):
    """What the package holds on the prompt in one dtype, for the oracle: patterns, denominators, neurons' factors.

    Of a gate near zero float32 keeps few digits, whoever computes it; here both sides hold the same.
    """
    model_, d = bridge.both(case, dtype)
    frozen = jax.jit(freeze, static_argnums=0)(model_.cfg, model_.params, d, jnp.asarray(case.tokens))
    shape = (case.cfg.n_layers, len(case.tokens))
    scales = {name: getattr(frozen.hold, name) for name in (*model.NORMS, "final_norm")}
    scales = {n: np.ones(shape) if x is None else np.asarray(x, np.float64) for n, x in scales.items()}
    arrays = dict(case.d.arrays)
    if case.d.cfg.kind == "neurons":
        arrays["factor"] = np.asarray(frozen.factor, np.float64)
    return model.Frozen(np.asarray(frozen.hold.pattern, np.float64), scales), Dictionary(case.d.cfg, arrays)


@cache
def observed(family, name, dtype):
    """The case, what single sources and combinations are worth, and every node's value in each of their runs."""
    case, rng = builders.make_case(family, name, **CHANGES.get(family, {})), np.random.default_rng(0)
    frozen = None
    if dtype == "float32":
        frozen, case.d = held_by(case, dtype)
    here = at.localise(case.cfg, case.params, case.d, case.tokens, frozen=frozen)
    targets = targets_of(case, here)
    lanes, times = every_source(case, here, rng)
    several = combinations(case, here, rng)
    values = ln.node_values(case, here, targets, ln.everything_held(case, [Lane(), *lanes, *several], dtype))
    return case, here, targets, times, several, values


@dataclass
class Gaps:
    """The largest errors of what edits move, over row L1 and bias: of single sources, of combinations.

    `later` leaves out the targets in layer 0: their few sources are single dot products, in which products may nearly
    cancel. `rounding` is over the sum of |products| in a row, so for all targets: of single sources, of combinations.
    """

    alone: float
    together: float
    later: float
    rounding: tuple[float, float]


def gaps_of(family, name, dtype, adjacency=None):
    """How far edits are from the edges of the oracle, or of another `adjacency`."""
    case, here, targets, times, several, values = observed(family, name, dtype)
    a = at.rows(here, targets, here.frozen)
    A = a.A if adjacency is None else adjacency(case, targets)
    alone = (A[:, : len(times)] * times).T
    together = [at.moved(here, targets, *ln.written(here, lane)) for lane in several]
    expected = np.concatenate([alone, together])
    assert (np.abs(expected) > 1e-3).any(1)[: len(here.features)].mean() > 0.2, "edits that move nothing test nothing"
    size, products = np.abs(a.A).sum(1) + np.abs(a.bias), at.products(here, targets)
    np.testing.assert_allclose(values[0], a.values, rtol=0, atol=TOLERANCE[dtype] * size.max())
    moved = np.abs(values[1:] - values[0] - expected)
    later = np.ones(len(size), bool)
    later[: len(here.features)] = here.features[:, 0] > 0
    share, rounded = moved / np.maximum(size, 1e-300), moved / np.maximum(products, 1e-300)
    n = len(alone)
    rounding = float(rounded[:n].max()), float(rounded[n:].max())
    return Gaps(share[:n].max(), share[n:].max(), share[:n, later].max(), rounding)


def rows_of(table):
    """The table; of the acceptance table all but a covering part is marked exhaustive, all but the quick rows slow."""
    rest, slow = set(TABLE) - set(builders.covering(1)), set(TABLE) - set(QUICK)
    marks = {e: [pytest.mark.exhaustive] * (e in rest) + [pytest.mark.slow] * (e in slow) for e in table}
    return [pytest.param(*entry, marks=marks[entry]) for entry in table]


def rows_of_rest():
    """The acceptance table but the quick rows, marked exhaustive."""
    return [pytest.param(*entry, marks=pytest.mark.exhaustive) for entry in TABLE if entry not in QUICK]


@pytest.mark.parametrize(("family", "name"), rows_of(TABLE + MORE))
def test_edits_move_every_node_by_its_edge(family, name, x64):
    gaps = gaps_of(family, name, "float64")
    assert gaps.later <= 1e-13
    assert gaps.alone <= (5e-13 if name == "neurons" else 1e-13)  # why: see the last test
    # Up to nine changes at once. One row misses the bound by rounding (1.21e-12); it alone is let pass.
    assert gaps.together <= (1.3e-12 if (family, name) == ("smollm3", "neurons") else 1e-12)


@pytest.mark.parametrize(
    ("family", "name"),
    [*QUICK[:2], *(pytest.param(*e, marks=pytest.mark.slow) for e in QUICK[2:]), *rows_of_rest()],
)
def test_edits_move_every_node_by_its_edge_in_float32(family, name):
    gaps = gaps_of(family, name, "float32")
    assert gaps.later <= 1e-6
    assert gaps.rounding[0] <= ROUNDING
    assert gaps.rounding[1] <= 2 * ROUNDING  # up to nine changes at once
    assert gaps.together <= 1e-5
    assert gaps.alone <= (1e-5 if name == "neurons" else 3e-6)


def dense(case, targets):
    model, d = bridge.both(case)
    return tc.attribute(model, d, case.tokens, targets=bridge.specs(targets)).dense()


FAST = [("gpt2", "plt-skip"), ("neox", "clt-jumprelu")]
SLOW = [pair for pair in builders.covering(1) if pair not in FAST]


@pytest.mark.parametrize(("family", "name"), [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)])
def test_edits_move_every_node_by_its_column_of_the_graph(family, name, x64):
    # A neuron with one source may have a total a thousand times below the products that nearly cancel in it. The
    # rounding is that of the products (2.2e-16 each), so such a row misses 1e-13 of its total (1.4e-13 was seen).
    gaps = gaps_of(family, name, "float64", dense)
    assert gaps.later <= 1e-13
    assert gaps.alone <= (5e-13 if name == "neurons" else 1e-13)

"""Models that compute a known function: problems against `forward`, training that resumes, Fourier measures, assets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from experiments import algorithmic, circuit_baselines
from experiments.algorithms import addition, dictionaries, folders, fourier, small, training
from tcircuits.models.forward import forward
from tcircuits.models.params import count
from tcircuits.tasks import check_capability
from tcircuits.tasks.algorithms import trained_sums
from tcircuits.types import InputError

SAVED = (*folders.PACKAGED, *(name for name in folders.SEEDS if name not in folders.PACKAGED), folders.DEEPER)
DEEP = (folders.DEEPER, "sorting")
TASK = {name: spec.task for name, spec in algorithmic.SPECS.items()}


@pytest.fixture(scope="module")
def seven():
    """A model of addition modulo 7 that was trained for 200 steps."""
    return addition.problem("seven", addition.config(7, d_mlp=32, d_model=16))


def test_sizes_are_those_of_the_literature():
    cfg = addition.config()
    assert count(cfg) - cfg.d_model == 226_688  # but for the unembedding of "="
    assert [len(rows) for rows in addition.pairs(113)] == [3830, 8939]
    params = addition.start(cfg, 0)
    assert not np.asarray(params.unembed)[:, -1].any()


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_the_last_position_alone_is_what_forward_gives(n_layers, x64):
    cfg = addition.config(11, n_layers, d_mlp=24, d_model=16)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), addition.start(cfg, 3))
    tokens = jnp.asarray(np.concatenate(addition.pairs(11)))
    whole = forward(cfg, params, tokens).logits[:, -1, :-1]
    np.testing.assert_allclose(addition.logits(cfg, params, tokens), whole, atol=1e-13)


def test_training_resumes_to_the_same_bits_and_stops_in_time(seven, tmp_path):
    recipe = training.Recipe(most=300, keep_every=100, enough=2.0)
    whole, log = training.train(seven, recipe, tmp_path / "whole")
    training.train(seven, dataclasses.replace(recipe, most=100), tmp_path / "parts")
    parts, again = training.train(seven, recipe, tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row["step"] for row in log] == [row["step"] for row in again] == [100, 200, 300]
    assert log[-1]["train_loss"] < 0.1 * log[0]["train_loss"]
    short = dataclasses.replace(recipe, enough=0.0, after=100)  # reached at the first measurement
    assert training.train(seven, short, tmp_path / "short")[1][-1]["step"] == 200


def test_steps_are_adamw(seven):
    """Two steps against AdamW written out in float64."""
    recipe = training.Recipe()
    state = training.begin(seven, recipe)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
    m = v = jax.tree.map(np.zeros_like, params)
    for step in range(training.CHUNK):
        grads = jax.grad(seven.loss)(jax.tree.map(jnp.float32, params), ())
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * np.asarray(g, np.float64), m, grads)
        v = jax.tree.map(lambda a, g: 0.98 * a + 0.02 * np.asarray(g, np.float64) ** 2, v, grads)
        rate = 1e-3 * min(1.0, 0.1 + 0.9 * step / 10)

        def new(p, a, b, rate=rate, n=step + 1):
            return p - rate * (a / (1 - 0.9**n) / (np.sqrt(b / (1 - 0.98**n)) + 1e-8) + p)

        params = jax.tree.map(new, params, m, v)
    state = training.advance(seven, recipe)(state, ())
    assert int(state.step) == training.CHUNK
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)  # a hundred steps of at most 1e-3: rounding turns few of them over


def test_rows_of_bits_and_numbers_are_texts_with_answers():
    rows = small.bit_rows(["1011", "0000000001"])
    assert rows[0].tolist() == [-1] * 6 + [1, 0, 1, 1, 2, 1]
    assert rows[1].tolist() == [0] * 9 + [1, 2, 1]
    drawn = small.draw_numbers(np.random.default_rng(0), 50, trained=False)
    for row, text in zip(drawn.tolist(), small.number_rows(drawn).tolist(), strict=True):
        assert len(set(row)) == 5
        assert text == [*row, 30, *sorted(row)]


def test_rows_of_dictionaries_are_functions_of_their_number():
    drawn = dictionaries.Rows("addition", dictionaries.rows_of("addition", held_out=False))
    whole = drawn.rows(0, 9000)
    np.testing.assert_array_equal(drawn.rows(3000, 4000), whole[3000:7000])
    assert {tuple(x) for x in whole[:3830].tolist()} == {tuple(x) for x in drawn.pool.tolist()}
    assert not np.array_equal(whole[:3830], whole[3830:7660])


@pytest.mark.parametrize("task", ["addition", "parity", "sorting"])
def test_answers_stand_where_they_can_be_computed(task):
    rows = dictionaries.rows_of(task, held_out=True)[:200]
    answers = dictionaries.answers_of(task, rows)
    for row, found in zip(rows.tolist(), answers.tolist(), strict=True):
        if task == "addition":
            assert found == [-1, -1, (row[0] + row[1]) % 113]
        elif task == "parity":
            end = row.index(2)
            assert found == [sum(row[:end]) % 2 if i == end else -1 for i in range(11)]
        else:
            assert found == [-1] * 5 + sorted(row[:5])


def known_table(p, keys, rng):
    """Logits of a model that adds by the literature's algorithm, and others on top."""
    a = np.arange(p)
    angle = a[:, None, None] + a[:, None] - a
    exact = sum(size * np.cos(2 * np.pi * k * angle / p) for k, size in keys.items())
    return exact, exact + rng.normal(size=exact.shape) / 4 + 5 * rng.normal(size=(p, p, 1))


def test_progress_measures_of_a_model_that_is_known():
    rng, keys, p = np.random.default_rng(0), {3: 8.0, 7: 6.0, 12: 5.0}, 31
    exact, noisy = known_table(p, keys, rng)
    np.testing.assert_allclose(fourier.sum_parts(exact, list(keys)), exact, atol=1e-12)
    np.testing.assert_allclose(fourier.sum_parts(exact, [4, 5]), 0, atol=1e-12)
    trained = trained_sums(p)
    found = fourier.progress(noisy, list(keys), trained)
    clean = fourier.loss(exact, ~trained)
    assert found["restricted_test_loss"] == pytest.approx(clean, rel=0.05)
    assert found["test_loss"] > 1.02 * clean
    assert found["excluded_train_loss"] == pytest.approx(np.log(p), rel=0.05)  # what is left is chance
    assert found["sum_share"] == pytest.approx(np.mean(exact**2) / (np.mean(exact**2) + 1 / 16), rel=0.01)
    right = (np.arange(p)[:, None] + np.arange(p)) % p
    log_p = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    assert fourier.loss(exact, trained) == pytest.approx(
        -np.mean([log_p[i, j, right[i, j]] for i, j in np.argwhere(trained)])
    )


def test_frequencies_of_embeddings_and_units_are_found():
    rng, p = np.random.default_rng(0), 31
    parts = [fourier.basis(p, k) for k in fourier.frequencies(p)]
    every = np.concatenate([np.full((p, 1), 1 / np.sqrt(p)), *parts], 1)
    np.testing.assert_allclose(every.T @ every, np.eye(p), atol=1e-12)
    embed = np.concatenate([3 * parts[4], 2 * parts[10]], 1) @ rng.normal(size=(4, 16)) + 0.01 * rng.normal(
        size=(p, 16)
    )
    assert sorted(fourier.key_frequencies(embed)) == [5, 11]
    assert fourier.energies(embed).sum() == pytest.approx(1)
    t = 2 * np.pi * np.arange(p) / p
    weights = np.stack([np.cos(5 * t + 0.7), np.cos(5 * t) + np.cos(9 * t), rng.normal(size=p)], 1)
    frequency, r2 = fourier.weight_tuning(weights)
    np.testing.assert_allclose(r2[:2], [1, 0.5], atol=1e-12)
    assert frequency[0] == 5
    assert r2[2] < 0.5
    table = np.cos(4 * t[:, None] + 0.3) * np.cos(4 * t - 1) + np.sin(4 * t) - 2
    mixed = table + 3 * np.cos(6 * t[:, None])
    frequency, r2 = fourier.table_tuning(np.stack([table, mixed], -1))
    variance = np.var(table), np.var(mixed)
    np.testing.assert_allclose(r2, [1, 1 - variance[0] / variance[1]], atol=1e-12)
    assert frequency.tolist() == [4, 6]


def test_a_small_model_goes_the_whole_way(seven, tmp_path):
    """Train, write, load: the folder answers as the parameters do, and knows its words."""
    params, _ = training.train(seven, training.Recipe(most=200, enough=2.0), tmp_path / "run")
    folders.write(tmp_path / "seven", seven.cfg, params)
    model = tc.load_model(tmp_path / "seven")
    assert model.encode("3 5 =") == [3, 5, 7]
    every = np.argwhere(np.ones((7, 7), bool))
    tokens = jnp.asarray(np.insert(every, 2, 7, 1))
    ours, theirs = addition.logits(seven.cfg, params, tokens), tc.forward(model.cfg, model.params, tokens).logits[:, -1]
    np.testing.assert_allclose(theirs[:, :-1], ours, atol=0.02 * float(jnp.abs(ours).max()))  # float16 files
    assert (theirs[:, -1] == folders.NEVER).all()
    table = algorithmic.table(seven.cfg, params, 7)
    np.testing.assert_allclose(table.reshape(49, 7), ours, rtol=1e-6, atol=1e-6)
    found = algorithmic.tuning(model, tc.load_transcoders("neurons", model=model), [1, 2, 3])
    assert found["input"]["key_share"] == found["table"]["key_share"] == 1.0  # there are no other frequencies
    with pytest.raises(InputError, match="no tokens of this model"):
        model.encode("9 + 9")


@pytest.mark.parametrize("name", SAVED)
def test_saved_models_load_and_pass_the_gate(name):
    model = tc.load_model(folders.reference(name))
    behaviour = tc.make_behaviour(model, TASK[name])
    for split in behaviour.splits:
        assert check_capability(model, behaviour, split).exact >= 0.97
    with pytest.raises(InputError, match="no tokens of this model"):
        tc.make_behaviour(model, "ioi")


@pytest.mark.parametrize("name", [*folders.SEEDS, folders.DEEPER])
def test_the_whole_table_is_right_by_the_known_algorithm(name):
    model = tc.load_model(folders.reference(name))
    logits, trained = algorithmic.table(model.cfg, model.params, 113), trained_sums(113)
    right = (np.arange(113)[:, None] + np.arange(113)) % 113
    assert np.mean(logits.argmax(-1) == right) > 0.99
    keys = fourier.key_frequencies(np.asarray(model.params.embed[:-1], np.float64))
    found = fourier.progress(logits, keys, trained)
    assert 2 <= len(keys) <= 10
    assert found["restricted_test_loss"] < 0.1
    assert found["excluded_train_loss"] > np.log(113)


@pytest.mark.slow  # a program of evaluation for every size of model
@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "transcoder") for name in SAVED), *((name, "clt") for name in DEEP)]
)
def test_with_their_transcoders_models_still_answer(name, kind):
    model = tc.load_model(folders.reference(name))
    source = folders.own_set(name) if kind == "transcoder" else folders.home(name) / algorithmic.FOLDERS[kind]
    d = tc.load_transcoders(source, model=model)
    assert (d.cfg.kind, d.cfg.d_feature, d.cfg.n_layers) == (kind, 256, model.cfg.n_layers)
    rows = dictionaries.rows_of(TASK[name], held_out=True)[:512]
    found = dictionaries.worth(model, d, rows, dictionaries.answers_of(TASK[name], rows))
    assert found["accuracy_original"] > 0.97
    assert found["accuracy_replaced"] > 0.8
    assert max(found["fvu"]) < 0.2


def test_figures_over_models_are_means_with_students_interval():
    row = {"task": "addition", "units": "edge", "method": "ig"} | dict.fromkeys(circuit_baselines.COSTS, 2)

    def case(x):
        numbers = dict.fromkeys(circuit_baselines.AREAS, x)
        value = {"value": x}
        nulls = dict.fromkeys(("nothing_phi", "random_faithfulness_95", "random_phi_95", "p_faithfulness", "p_phi"), x)
        return {
            "rows": [row | numbers | {"faithfulness": value, "phi": value, "a_ok": {"share": value}}],
            "nulls": nulls,
        }

    (found,) = circuit_baselines.over_models([case(0.1), case(0.2), case(0.6)])
    assert found["models"] == 3
    half = 4.302652729911275 * np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3)  # t of two degrees of freedom
    assert found["CMD"] == pytest.approx({"value": 0.3, "low": 0.3 - half, "high": 0.3 + half})
    assert (found["p_phi"], found["nothing_phi"], found["kept"]) == (0.6, pytest.approx(0.3), 2)

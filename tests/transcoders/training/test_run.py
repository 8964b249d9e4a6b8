"""Runs on a small model: what is harvested, resuming bit for bit, damaged checkpoints, refusals, a loss that breaks."""

import json
import shutil
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tcircuits as tc
from tcircuits.models.config import ModelConfig
from tcircuits.models.forward import forward
from tcircuits.models.model import Model
from tcircuits.models.params import init
from tcircuits.transcoders.config import TranscoderConfig
from tcircuits.transcoders.training import folder
from tcircuits.transcoders.training.harvest import Fill, activations, buffer
from tcircuits.transcoders.training.recipe import Objective, Optimizer, Recipe
from tcircuits.transcoders.training.run import TrainingError, train
from tcircuits.types import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
CFG = ModelConfig("llama", 2, 8, 2, 1, 4, 16, 30, 16, rotary_dim=4)
MODEL = Model(CFG, init(CFG, jax.random.key(0)), None, "small")
FILL = Fill(context=9, rows=4, steps=4)
RECIPE = Recipe(
    TranscoderConfig("transcoder", 2, 8, 24, (0, 1), "topk", k=3),
    Objective(error="fvu", auxk=1 / 32, dead_after=200),
    Optimizer(lr=1e-2, warmup=4),
    steps=22,
    batch=24,
)


class Numbers:
    """Rows that are a function of their number; `calls` counts, `broken` ends the process's run at that call."""

    def __init__(self, seed=0, broken=None):
        self.seed, self.calls, self.broken = seed, 0, broken

    def rows(self, first, n):
        self.calls += 1
        if self.calls == self.broken:
            raise KeyboardInterrupt
        row = [np.random.default_rng((self.seed, i)).integers(0, 30, 9) for i in range(first, first + n)]
        return np.stack(row).astype(np.int32)

    def describe(self):
        return {"seed": self.seed}


def arrays(outcome):
    return {
        n: np.asarray(a) for n, a in vars(outcome.transcoders).items() if n not in ("cfg", "source") and a is not None
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its arrays."""
    run = tmp_path_factory.mktemp("whole") / "run"
    outcome = train(MODEL, RECIPE, Numbers(), run, fill=FILL, checkpoint_every=2)
    assert (outcome.status, outcome.step) == ("done", 22)
    return run, arrays(outcome)


def same(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize(
    ("reads", "writes", "kind", "layer"),
    [
        ("mlp_in", "mlp_out", "transcoder", 1), ("resid_mid", "mlp_raw", "transcoder", 1),
        ("normalized", "mlp_out", "transcoder", 0), ("resid_post", "resid_post", "sae", 0),
        ("resid_mid", "resid_mid", "sae", 1),
    ],
)  # fmt: skip
def test_harvest(reads, writes, kind, layer):
    d = TranscoderConfig(kind, 2, 8, 24, (layer,), reads=reads, writes=writes)
    tokens = Numbers().rows(0, 8).reshape(2, 4, 9)
    x, y = buffer(CFG, MODEL.params, d, jnp.asarray(tokens))
    assert x.shape == y.shape == (1, 2 * 4 * 8, 8)
    names = ("resid_mid", "mlp_in", "mlp_raw", "mlp_out", "resid_post")
    acts = {
        n: np.asarray(a)[layer, :, 1:].reshape(-1, 8)
        for n, a in forward(CFG, MODEL.params, jnp.asarray(tokens.reshape(8, 9)), sites=names).acts.items()
    }
    acts["normalized"] = acts["resid_mid"] / np.sqrt((acts["resid_mid"] ** 2).mean(-1, keepdims=True) + CFG.norm_eps)
    for got, name in ((x, reads), (y, writes)):  # float32 compiled in another way: 8 roundings of the largest value
        np.testing.assert_allclose(got[0], acts[name], rtol=0, atol=8 * 2.0**-23 * np.abs(acts[name]).max())
    one = activations(CFG, MODEL.params, d, jnp.asarray(tokens[1]))[0]
    np.testing.assert_allclose(one[0], x[0, 32:], rtol=0, atol=8 * 2.0**-23 * float(jnp.abs(x).max()))


def test_a_run_writes_what_it_trained(whole):
    run, made = whole
    loaded = tc.load_transcoders(str(run / "transcoders"), model=MODEL)
    same(made, {n: np.asarray(getattr(loaded, n)) for n in made})
    rows = folder.read_metrics(run)
    assert [r["step"] for r in rows] == [4, 8, 12, 16, 20, 22]
    assert [r["tokens"] for r in rows] == [24 * s for s in (4, 8, 12, 16, 20, 22)]
    assert np.mean(rows[-1]["fvu"]) < np.mean(rows[0]["fvu"])
    assert all(np.isfinite(r["loss"]).all() and len(r["dead"]) == 2 for r in rows)
    assert [p.name for p in folder.checkpoints(run)] == ["0000000022", "0000000016"]


@pytest.mark.parametrize("broken", [2, 3, 5, 6])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(whole, tmp_path, broken):
    with pytest.raises(KeyboardInterrupt):
        train(MODEL, RECIPE, Numbers(broken=broken), tmp_path / "run", fill=FILL, checkpoint_every=2)
    outcome = train(MODEL, RECIPE, Numbers(), tmp_path / "run", fill=FILL, checkpoint_every=2)
    same(arrays(outcome), whole[1])
    kept = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in folder.read_metrics(tmp_path / "run")]
    assert kept == [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in folder.read_metrics(whole[0])]


def test_a_signal_saves_first(whole, tmp_path):
    def watch(row):
        if row["step"] == 12:
            signal.raise_signal(signal.SIGTERM)

    outcome = train(MODEL, RECIPE, Numbers(), tmp_path / "run", fill=FILL, checkpoint_every=100, watch=watch)
    assert (outcome.status, outcome.step) == ("stopped", 12)
    assert [p.name for p in folder.checkpoints(tmp_path / "run")] == ["0000000012"]
    same(arrays(train(MODEL, RECIPE, Numbers(), tmp_path / "run", fill=FILL)), whole[1])


def test_no_more_than_max_hours(tmp_path):
    outcome = train(MODEL, RECIPE, Numbers(), tmp_path / "run", fill=FILL, max_hours=0.0)
    assert (outcome.status, outcome.step) == ("stopped", 4)


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    shutil.rmtree(run / "transcoders")
    newest = folder.checkpoints(run)[0]
    data = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.warns(folder.DamagedCheckpoint, match="0000000022 is passed over"):
        outcome = train(MODEL, RECIPE, Numbers(), run, fill=FILL, checkpoint_every=2)
    same(arrays(outcome), whole[1])


def test_an_sae_is_written_too(tmp_path):
    d = TranscoderConfig("sae", 2, 8, 24, (0, 1), "topk", k=3, reads="mlp_out", writes="mlp_out")
    outcome = train(MODEL, replace(RECIPE, dictionary=d, steps=2), Numbers(), tmp_path / "run", fill=FILL)
    loaded = tc.load_transcoders(str(tmp_path / "run" / "transcoders"), model=MODEL, check=False)
    same(arrays(outcome), {n: np.asarray(getattr(loaded, n)) for n in arrays(outcome)})


def test_what_a_killed_save_left_is_removed(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    half = run / "checkpoints" / "0000000020.orbax-checkpoint-tmp-1"
    half.mkdir()
    (half / "part").write_bytes(b"x")
    shutil.copytree(folder.checkpoints(run)[1], run / "checkpoints" / "0000000018")
    (run / "checkpoints" / "0000000018" / "commit_success.txt").unlink()
    train(MODEL, RECIPE, Numbers(), run, fill=FILL)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["0000000016", "0000000022"]


def test_a_checkpoint_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, whole):
    calls = []

    def full(path, *args, **more):
        calls.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.checkpoint, "save_async", full)
    with pytest.warns(folder.DamagedCheckpoint, match="No space left"):
        outcome = train(MODEL, RECIPE, Numbers(), tmp_path / "run", fill=FILL, checkpoint_every=2)
    assert len(calls) == 3
    same(arrays(outcome), whole[1])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"recipe": replace(RECIPE, batch=12)}, "recipe.batch: 24 -> 12"),
        ({"corpus": Numbers(seed=1)}, "data.seed: 0 -> 1"),
        ({"fill": replace(FILL, steps=2)}, "fill.steps: 4 -> 2"),
        ({"model": Model(CFG, init(CFG, jax.random.key(1)), None, "small")}, "model.fingerprint"),
    ],
)
def test_other_settings_are_refused(whole, change, complaint):
    given = {"model": MODEL, "recipe": RECIPE, "corpus": Numbers(), "run": whole[0], "fill": FILL} | change
    with pytest.raises(InputError, match=complaint):
        train(**given)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"recipe": replace(RECIPE, dictionary=replace(RECIPE.dictionary, n_layers=3))}, "3 layers of width 8"),
        ({"fill": replace(FILL, context=17)}, "the model takes 2..16"),
        ({"fill": replace(FILL, rows=0)}, "at least 1 of each"),
        ({"fill": replace(FILL, context=8)}, r"rows of shape \(12, 9\), not \(12, 8\)|rows of shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, complaint):
    given = {"model": MODEL, "recipe": RECIPE, "corpus": Numbers(), "run": tmp_path / "run", "fill": FILL} | change
    with pytest.raises(InputError, match=complaint):
        train(**given)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    recipe = replace(
        RECIPE,
        dictionary=replace(RECIPE.dictionary, activation="relu", k=None),
        objective=Objective(l1=1e-3),
        optimizer=Optimizer(lr=1e30, warmup=0, clip=None),
        decoder_norm="free",
    )
    with pytest.raises(TrainingError, match=r"step \d+, layer [01]; no checkpoint was written yet"):
        train(MODEL, recipe, Numbers(), tmp_path / "run", fill=FILL)
    assert folder.checkpoints(tmp_path / "run") == []
    rows = (tmp_path / "run" / folder.METRICS).read_text().splitlines()
    assert all(np.isfinite(json.loads(row)["loss"]).all() for row in rows)

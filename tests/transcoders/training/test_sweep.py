"""Sweeps: each member ends where `train` alone ends, one harvest feeds all, resuming, members that fail, refusals."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tcircuits.transcoders.training import folder
from tcircuits.transcoders.training import sweep as module
from tcircuits.transcoders.training.grid import grid, paper_grid
from tcircuits.transcoders.training.recipe import differences
from tcircuits.transcoders.training.run import TrainingError, train
from tcircuits.transcoders.training.sweep import sweep
from tcircuits.types import InputError
from tests.transcoders.training.test_run import CFG, FILL, MODEL, Numbers, same
from tests.transcoders.training.test_train_command import GPT2

pytestmark = pytest.mark.usefixtures("quick_compile")
SIZES = {"tokens": 22 * 24, "batch": 24, "expansions": (3,)}
GRID = {"kinds": ("transcoder", "sae"), "k": (3,), "layers": (1,), "seeds": (0, 3), **SIZES}


def arrays(d):
    return {n: np.asarray(a) for n, a in vars(d).items() if n not in ("cfg", "source") and a is not None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted sweep: folder, members, outcome, and how often rows were read."""
    run, members, corpus = tmp_path_factory.mktemp("sweep") / "run", grid(CFG, **GRID), Numbers()
    outcome = sweep(MODEL, members, corpus, run, fill=FILL, checkpoint_every=2)
    assert (outcome.status, outcome.step, outcome.failed) == ("done", 22, {})
    return run, members, outcome, corpus.calls


@pytest.mark.parametrize("name", ["transcoder-k3-s3", "sae-k3-s0"])
def test_a_member_is_what_train_gives(whole, tmp_path, name):
    run, members, outcome, _ = whole
    member = next(m for m in members if m.name == name)
    alone = train(MODEL, member.recipe, Numbers(), tmp_path / "run", fill=FILL)
    same(arrays(alone.transcoders), arrays(outcome.made[name]))
    kept = [folder.read_metrics(path) for path in (tmp_path / "run", run / "members" / name)]
    for row in (row for rows in kept for row in rows):
        del row["tokens_per_second"]
    assert kept[0] == kept[1]


OTHERS = [
    (("skip", "relu", {"l1": (1e-3,)}), ("clt", "batchtopk", {"k": (3,)})),
    pytest.param((("clt", "topk", {"k": (3,)}), ("sae", "relu", {"l1": (1e-3,)})), marks=pytest.mark.exhaustive),
    pytest.param((("transcoder", "jumprelu", {"k": (3,)}),), marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("others", OTHERS, ids=lambda others: " ".join(f"{k}-{a}" for k, a, _ in others))
def test_so_is_one_of_other_layers_beside_other_kinds(tmp_path, others):
    sizes = SIZES | {"tokens": 8 * 24}
    beside = grid(CFG, kinds=("transcoder",), k=(2,), layers=(0,), **sizes)
    ours = [grid(CFG, kinds=(kind,), activations=(a,), **points, seeds=(2,), **sizes)[0] for kind, a, points in others]
    outcome = sweep(MODEL, (*beside, *ours), Numbers(), tmp_path / "sweep", fill=FILL)
    for member in ours:
        alone = train(MODEL, member.recipe, Numbers(), tmp_path / member.name, fill=FILL)
        same(arrays(alone.transcoders), arrays(outcome.made[member.name]))


def test_the_model_runs_once_for_all_and_seeds_share_programs(whole, tmp_path, monkeypatch):
    _, members, _, calls = whole
    assert calls == 8  # the first state, six fills, and one read ahead: what a single run reads
    work = module._Work(MODEL, members, FILL, None)
    assert len(members) == 4
    assert len(work.programs) == 2
    traced = []
    monkeypatch.setattr(module, "buffers", lambda *args: traced.append(args[2:4]) or {})
    jax.eval_shape(work.harvest, MODEL.params, jax.ShapeDtypeStruct((2, 4, 9), np.int32))
    assert traced == [(("mlp_in", "mlp_out"), (1,))]


@pytest.mark.parametrize("broken", [6, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_a_sweep_that_was_cut_off_ends_with_the_same_bits(whole, tmp_path, broken):
    run, members, outcome, _ = whole
    with pytest.raises(KeyboardInterrupt):
        sweep(MODEL, members, Numbers(broken=broken), tmp_path / "run", fill=FILL, checkpoint_every=2)
    again = sweep(MODEL, members, Numbers(), tmp_path / "run", fill=FILL, checkpoint_every=2)
    assert again.made.keys() == outcome.made.keys()
    for name, d in again.made.items():
        same(arrays(d), arrays(outcome.made[name]))
        steps = [[r["step"] for r in folder.read_metrics(top / "members" / name)] for top in (run, tmp_path / "run")]
        assert steps[0] == steps[1] == [4, 8, 12, 16, 20, 22]


def test_the_clock_stops_it_with_a_checkpoint(whole, tmp_path):
    stopped = sweep(MODEL, whole[1][:1], Numbers(), tmp_path / "run", fill=FILL, max_hours=0.0)
    assert (stopped.status, stopped.step, stopped.made) == ("stopped", 4, {})
    assert [p.name for p in folder.checkpoints(tmp_path / "run")] == ["0000000004"]


def test_a_member_that_breaks_is_left_out(whole, tmp_path):
    good = whole[1][0]
    hot = replace(good.recipe.optimizer, lr=1e30, clip=None)
    bad = replace(good, name="bad", recipe=replace(good.recipe, optimizer=hot))
    for _ in range(2):  # the second time nothing is left to train, and the failure is known
        outcome = sweep(MODEL, (good, bad), Numbers(), tmp_path / "run", fill=FILL)
        assert list(outcome.made) == [good.name]
        assert "not finite" in outcome.failed["bad"]
    same(arrays(outcome.made[good.name]), arrays(whole[2].made[good.name]))
    with pytest.raises(TrainingError, match="no member is left: bad: the loss is not finite"):
        sweep(MODEL, (bad,), Numbers(), tmp_path / "alone", fill=FILL)


def test_another_grid_is_refused(whole):
    run, members, _, _ = whole
    more = grid(CFG, **GRID | {"seeds": (0, 4)})
    with pytest.raises(InputError) as caught:
        sweep(MODEL, more, Numbers(), run, fill=FILL)
    told = str(caught.value)
    assert "members.transcoder-k3-s3: stored -> absent" in told
    assert "members.sae-k3-s4: absent -> given" in told
    assert "k3-s0" not in told
    assert len(told) < 500
    with pytest.raises(InputError, match=r"fill.steps: 4 -> 2"):
        sweep(MODEL, members, Numbers(), run, fill=replace(FILL, steps=2))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kinds": ("transcoder", "crosscoder")}, "kinds: crosscoder unknown; there are transcoder, skip, sae, clt"),
        ({"activations": ("gelu",)}, "activations: gelu unknown"),
        ({"kinds": ()}, "kinds is empty"),
        ({"k": ()}, "k is empty, and topk, batchtopk and jumprelu needs it"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (1, 1)}, "seeds repeats 1"),
        ({"k": (3, 25)}, r"k=25 is outside 1..24"),
        ({"l1": (1e-3,)}, "l1 is given, but it is for activation relu"),
        ({"activations": ("relu",), "k": (), "l1": (-1.0,)}, "give numbers above 0"),
        ({"layers": (2,)}, "layer 2 does not exist"),
        ({"kinds": ("clt",)}, "covers all 2 layers"),
        ({"expansions": (0,)}, "give numbers from 1 on"),
    ],
)
def test_a_grid_that_is_none(change, complaint):
    with pytest.raises(InputError, match=complaint):
        grid(CFG, **GRID | change)


def test_members_that_do_not_fit_each_other(whole, tmp_path):
    members = whole[1]
    other = replace(members[1], recipe=replace(members[1].recipe, steps=9))
    for given, complaint in (
        ((), "empty"),
        (members[:1] * 2, "share a name"),
        ((members[0], other), "differ in steps"),
    ):
        with pytest.raises(InputError, match=complaint):
            sweep(MODEL, given, Numbers(), tmp_path / "run", fill=FILL)


MESH = """
import jax, tempfile, numpy as np
jax.config.update("jax_disable_most_optimizations", True)  # nearly all of the time is compilation
from pathlib import Path
from experiments.training_meshes import CFG, FILL, Numbers, model_on
from tcircuits.parallel import make_mesh
from tcircuits.transcoders.training.grid import grid
from tcircuits.transcoders.training.sweep import sweep
members = grid(CFG, k=(4,), layers=(1,), tokens=8 * 32, batch=32, expansions=(4,))
found = []
for mesh in (None, make_mesh((2, 1))):
    with tempfile.TemporaryDirectory() as run:
        found.append(sweep(model_on(mesh), members, Numbers(), Path(run), fill=FILL, mesh=mesh).made)
for m in members:
    a, b = (np.asarray(f[m.name].w_dec) for f in found)
    assert 0 < np.abs(a).max()
    assert np.abs(a - b).max() < 1e-5 * np.abs(a).max(), m.name  # as the losses of `train` on meshes
print("ok")
"""


@pytest.mark.slow
def test_two_devices_train_what_one_trains(run_python):
    assert run_python(MESH, devices=2).stdout.splitlines()[-1] == "ok"


def test_the_papers_panel():
    members = paper_grid("gpt2-l8", GPT2)
    assert len(members) == 2 * 8
    assert members[0].name == "transcoder-l1_6e-05-s42"
    assert {m.recipe.dictionary.d_feature for m in members} == {24_576}
    with pytest.raises(InputError, match="the paper has no clt"):
        paper_grid("gpt2-l8", GPT2, kinds=("clt",))
    with pytest.raises(InputError, match="there are gpt2-l8"):
        paper_grid("gpt2-l9", GPT2)


def test_parts_that_one_side_lacks_are_named():
    assert differences({"a": {"x": 1}, "b": {"y": 2}}, {"b": {"y": 3}, "c": {"z": 4}}) == [
        "a: absent -> given",
        "b.y: 3 -> 2",
        "c: stored -> absent",
    ]

"""`tcircuits sweep`: from text to a page, whose picture holds the numbers of sweep.json; event files; bad input."""

import json
import re
import sys
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest

import tcircuits as tc
from tcircuits import cli
from tcircuits.cli import common
from tcircuits.transcoders.evaluation import families
from tcircuits.transcoders.evaluation.saved import load_evaluation
from tcircuits.transcoders.evaluation.table import evaluate
from tcircuits.transcoders.training import folder
from tcircuits.types import InputError
from tcircuits.view import plots, tensorboard
from tcircuits.view.chart import Axis, Chart, Line
from tcircuits.view.sweep import write_page

needs_glassllm = pytest.mark.skipif(find_spec("glassllm") is None, reason="pip install --no-deps glassllm==0.1.0")
pytestmark = pytest.mark.usefixtures("quick_compile")
MEMBERS = ["transcoder-k2-s0", "transcoder-k5-s0", "sae-k2-s0", "sae-k5-s0"]
SIZES = (
    *("--model", "glassllm", "--expansion", "1", "--k", "2,5", "--layers", "1-2", "--batch", "30", "--tokens", "180"),
    *("--context", "16", "--rows", "4", "--buffer", "2", "--held-out", "0.3", "--eval-tokens", "640"),
)


def no_cache(patch):
    patch.setattr(common, "start_jax", lambda: None)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    for i in range(12):
        story = f"Story {i}. Once upon a time there was a little dog who had {i} friends. " * 12
        (path / f"{i:02}.txt").write_text(story, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(text, tmp_path_factory):
    """A sweep of four members by the command line, with a fake TensorBoard: its folder and what the fake was given."""
    run, scalars = tmp_path_factory.mktemp("sweep") / "run", []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, tag, data, step):
            scalars.append((self.folder, tag, float(data), step))

        def flush(self):
            pass

        def close(self):
            scalars.append((self.folder, "closed", 0.0, 0))

    with pytest.MonkeyPatch.context() as patch:
        no_cache(patch)
        fake = ModuleType("tensorboard.summary")
        patch.setattr(fake, "Writer", Writer, raising=False)
        patch.setitem(sys.modules, "tensorboard.summary", fake)
        patch.setattr(tensorboard, "find_spec", lambda name: name)
        plot = ("--plot", "png") if find_spec("matplotlib") else ()
        code = cli.main(["sweep", str(run), "--data", str(text), *SIZES, "--tensorboard", *plot])
    assert code == 0
    return run, scalars


@pytest.fixture(scope="module")
def told(done):
    return json.loads((done[0] / "sweep.json").read_text(encoding="utf-8"))


@needs_glassllm
def test_members_are_measured_as_eval_would(done, told):
    """The last member's ablations come from the first one's evaluation; a whole evaluation of it agrees."""
    assert [m["name"] for m in told["members"]] == MEMBERS
    assert (told["status"], told["step"], told["tokens"]) == ("done", 6, 180)
    kept = load_evaluation(done[0] / "members" / MEMBERS[-1] / families.FILE)
    model = tc.load_model("glassllm")
    d = tc.load_transcoders(str(done[0] / "members" / MEMBERS[-1] / "transcoders"), model=model, check=False)
    rows = tc_rows(done[0], kept.n_rows)
    whole = evaluate(model, d, rows)
    assert whole.about == kept.about
    np.testing.assert_array_equal(whole.l0, kept.l0)
    # Sums over some 15 predictions of log probabilities up to 10, in float32, compiled in two ways.
    for name in ("original", "ce", "kl"):
        np.testing.assert_allclose(getattr(whole.losses, name), getattr(kept.losses, name), rtol=0, atol=150 * 2.0**-23)
    first = told["members"][0]["evaluation"]
    assert told["ce_original"] == first["ce_original"]
    assert first["replaced"][0]["ce"]["zero"] == told["members"][3]["evaluation"]["replaced"][0]["ce"]["zero"]
    with pytest.raises(InputError, match="sets is"):
        evaluate(model, d, rows, conditions=[(1,)], ablated=kept)


def tc_rows(run, n):
    from tcircuits.data.rows import Rows
    from tcircuits.data.tokens import open_tokens

    return Rows(open_tokens(run / "data" / "0.tokens"), 16, 0, "held_out", held_out=0.3).rows(0, n)


@needs_glassllm
def test_families_are_compared_at_equal_l0(told):
    each, every = told["comparisons"]
    assert [(v["first"], v["second"], v["replaced"]) for v in (each, every)] == [
        ("transcoder", "sae", "each"),
        ("transcoder", "sae", "all"),
    ]
    assert [p["layers"] for p in each["pairs"]] == [[1], [2]]
    assert [p["layers"] for p in every["pairs"]] == [[1, 2]]
    assert each["overall"]["value"] == pytest.approx(np.mean([p["difference"]["value"] for p in each["pairs"]]))
    for p in each["pairs"]:
        ends = [m["evaluation"]["by_layer"][p["layers"][0] - 1]["l0"] for m in told["members"]]
        assert p["l0"] == pytest.approx(np.sqrt(max(ends[0], ends[2]) * min(ends[1], ends[3])))


@needs_glassllm
def test_the_picture_holds_the_numbers(done, told):
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    assert all(page.count(f">{name}<") >= 3 for name in MEMBERS)  # table, density, curves
    panels = re.findall(r"<svg.*?</svg>", page)[:3]
    for panel, layers in zip(panels, ([1], [2], [1, 2]), strict=True):
        assert f"MLP of layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))} replaced" in panel
        ticks = re.findall(r'y="([\d.]+)" text-anchor="end" fill="#222222">(-?[\d.]+)<', panel)
        at, value = np.asarray(ticks, float)[[0, -1]].T
        drawn = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)" r="4" fill', panel)]
        drawn = sorted(y for y in drawn if y != 36)  # not the legend's
        scale = (value[1] - value[0]) / (at[1] - at[0])
        seen = [value[0] + scale * (y + 4 - at[0]) for y in drawn]  # a tick's number stands 4 below its line
        members = [m["evaluation"]["replaced"] for m in told["members"][:2]]
        rows = [next(r for r in rows if r["layers"] == layers) for rows in members]
        # Positions are written to a tenth: half of that for each of the point and both ticks.
        np.testing.assert_allclose(
            seen, sorted((r["ce"]["dictionary"] for r in rows), reverse=True), atol=0.15 * abs(scale)
        )
        for name in ("mean", "zero"):
            assert f"{name}-ablated {rows[0]['ce'][name]:.3f}" in panel
        assert f"original model {told['ce_original']:.3f}" in panel


@needs_glassllm
@pytest.mark.browser
def test_the_page_opens_clean(done, visit):
    page = visit((done[0] / "report.html").as_uri(), wait=False)
    assert page.locator("svg").count() == 3 + 2 + 2
    assert page.locator("td", has_text="sae-k5-s0").count() == 1
    assert page.seen.console == []
    assert page.seen.errors == []
    assert page.seen.requests in ([page.url], [page.url, "data:,"])
    assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


@needs_glassllm
def test_event_files_hold_what_the_lines_hold(done):
    run, scalars = done
    for name in MEMBERS:
        own = {(tag, step): value for path, tag, value, step in scalars if path == str(run / "tensorboard" / name)}
        assert ("closed", 0) in own
        for row in folder.read_metrics(run / "members" / name):
            assert own["fvu/layer 2", row["step"]] == row["fvu"][1]
            assert own["dead/layer 1", row["step"]] == row["dead"][0]
            assert own["lr", row["step"]] == row["lr"]


@needs_glassllm
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")
def test_a_plot_to_print(done):
    from matplotlib.image import imread

    picture = imread(done[0] / "figure3.png")
    assert picture.shape[1] > picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05


@needs_glassllm
def test_the_same_command_again_measures_nothing(done, text, capsys, monkeypatch):
    no_cache(monkeypatch)
    monkeypatch.setattr(families, "evaluate", lambda *_, **__: pytest.fail("measured again"))
    before = (done[0] / "sweep.json").read_text(encoding="utf-8")
    assert cli.main(["sweep", str(done[0]), "--data", str(text), *SIZES, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plain = {n: v for n, v in json.loads(before).items() if n != "plot"}
    assert found == plain
    assert cli.main(["sweep", str(done[0]), "--data", str(text), *SIZES, "--seeds", "1"]) == 2
    assert "members.sae-k2-s1: absent -> given" in capsys.readouterr().err


@needs_glassllm
@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--kinds", "transcoder,crosscoder"), "crosscoder unknown"),
        (("--kinds", ""), "kinds is empty"),
        (("--k", "5,100000"), "k=100000 is outside 1.."),
        (("--k", "5;6"), "--k '5;6': write some whole numbers"),
        (("--activations", "relu"), "k is given, but it is for activation topk"),
        (("--l1", "x"), "--l1 'x': write some numbers"),
        (("--layers", "9"), "layer 9 does not exist"),
        (("--preset", "gpt2-l8"), "--preset says layers, widths, activation and batch"),
        (("--mesh", "2"), "--mesh '2': write 2 whole numbers"),
        (("--l0", "0"), "--l0 0: give numbers above 0"),
        (("--eval-tokens", "3"), "3 tokens were asked for; a row has 16"),
        (("--held-out", "0"), "held_out=0.0 is a share of the documents"),
    ],
)
def test_bad_options_end_with_one_line(tmp_path, text, capsys, monkeypatch, more, complaint):
    no_cache(monkeypatch)
    assert cli.main(["sweep", str(tmp_path / "run"), "--data", str(text), *SIZES, *more]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_what_is_not_installed_is_said_first(tmp_path, capsys, monkeypatch, verb):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    run = [verb, str(tmp_path / "run"), "--data", str(tmp_path)]
    assert cli.main([*run, "--tensorboard"]) == 2
    assert "pip install 'tcircuits[tensorboard]'" in capsys.readouterr().err
    if verb == "sweep":
        assert cli.main([*run, "--plot", "pdf"]) == 2
        assert "pip install 'tcircuits[plot]'" in capsys.readouterr().err


def test_members_without_figures_are_named(tmp_path):
    lost = {
        "name": "sae-k2-s0",
        "family": "sae",
        "point": ["k", 2],
        "seed": 0,
        "evaluation": None,
        "failed": "<not finite>",
    }
    told = {"model": "m", "tokens": 3, "ce_original": None, "members": [lost], "comparisons": []}
    page = write_page(told, tmp_path).read_text(encoding="utf-8")
    assert "&lt;not finite&gt;" in page
    assert "sae-k2-s0" in page
    assert "<svg" not in page


def test_ticks_are_round_and_within():
    for low, high, log in (
        (3.329, 3.371, False),
        (-8.0, 0.0, False),
        (0.0, 9.6e7, False),
        (3.0, 600.0, True),
        (1e-4, 9.0, True),
    ):
        found = Axis(low, high, log).ticks()
        assert 2 <= len(found) <= 8
        assert all(low <= v <= high for v in found)
        assert all(float(f"{v:.3g}") == v or abs(v - float(f"{v:.3g}")) < 1e-9 for v in found)


def test_levels_far_above_do_not_stretch_the_axis():
    line = Line("a", (1.0, 2.0), (3.4, 3.2), low=(3.39, 3.19), high=(3.41, 3.21))
    chart = Chart("t", "x", "y", (line,), (("original", 3.1), ("mean", 3.5), ("zero", 10.0)))
    assert chart.far() == [("zero", 10.0)]
    assert "zero 10.000" in chart.svg()
    assert Chart("t", "x", "y", (Line("a", (), ()),)).svg() == ""
    assert plots.COLOURS[0] in chart.svg()

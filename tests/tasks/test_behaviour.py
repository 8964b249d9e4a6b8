"""Behaviours of the embedded model: splits that share nothing, answers in the right place, the gate, files."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import tcircuits as tc
from tcircuits.models.forward import forward
from tcircuits.tasks import (
    TASKS,
    capability,
    check_capability,
    load_behaviour,
    make_behaviour,
    own_choices,
    save_behaviour,
)
from tcircuits.tasks.behaviour import SPLITS, Behaviour, Prompts, check_behaviour
from tcircuits.types import InputError

SIZES = {"attribution": 6, "selection": 5, "report": 7}
OTHERS = {"addition", "addition_digits", "parity", "sorting", "gendered_pronoun", "factual_recall"}
GRAMMARS = [task for task in TASKS if task not in OTHERS | {"winogrande", "hellaswag"}]  # the others have own tests
FEW = {task: {"attribution": 3, "selection": 3, "report": 4} for task in ("capitals", "two_hops")}


@pytest.fixture(scope="module")
def tiny():
    return tc.load_model("tiny")


@pytest.fixture(scope="module")
def made(tiny):
    return {task: make_behaviour(tiny, task, sizes=FEW.get(task, SIZES), seed=3) for task in GRAMMARS}


def texts(model, p, name):
    return [
        model.tokenizer.decode(row[start:].tolist()) for row, start in zip(getattr(p, name), p.padding, strict=True)
    ]


@pytest.mark.parametrize("task", GRAMMARS)
def test_splits_share_no_text(task, tiny, made):
    b = made[task]
    seen = [t for s in SPLITS for name in ("clean", "other") for t in set(texts(tiny, b[s], name))]
    assert len(seen) == len(set(seen))
    assert {s: b[s].n for s in SPLITS} == FEW.get(task, SIZES)
    again = make_behaviour(tiny, task, sizes=FEW.get(task, SIZES), seed=3)
    np.testing.assert_array_equal(again["report"].clean, b["report"].clean)


def test_answers_are_what_the_text_asks_for(tiny, made):
    p = made["ioi"]["report"]
    for clean, other, right, wrong in zip(
        texts(tiny, p, "clean"), texts(tiny, p, "other"), p.right, p.wrong, strict=True
    ):
        io, s = (tiny.token(int(ids[0])).strip() for ids in (right, wrong))
        assert (clean.count(io), clean.count(s)) == (1, 2)
        assert (other.count(io), other.count(s)) == (2, 1)
    p = made["modular"]["report"]
    for text, right in zip(texts(tiny, p, "clean"), p.right, strict=True):
        a, b = (int(x) for x in text.split("Modulo 23,")[1].rstrip(" =").split("+"))
        assert int(tiny.token(int(right[0]))) == (a + b) % 23
    p = made["greater_than"]["report"]
    for text, right, wrong in zip(texts(tiny, p, "clean"), p.right, p.wrong, strict=True):
        yy = int("".join(c for c in text if c.isdigit())[2:4])
        above, others = ({int(tiny.token(int(i))) for i in ids if i >= 0} for ids in (right, wrong))
        assert above == set(range(yy + 1, 100))
        assert others == set(range(yy + 1))


def test_prompts_end_where_the_answer_follows(tiny, made):
    p = made["pronoun"]["report"]
    assert p.valid[:, -1].all()
    assert p.valid.sum(1).tolist() == (p.clean.shape[1] - p.padding).tolist()
    assert p.take(2).n == 2


def test_the_gate(tiny, made):
    good = check_capability(tiny, made["greater_than"])
    assert good.exact == good.choice == 1.0
    bad = capability(tiny, made["modular"], "report")
    assert (bad.n, bad.exact) == (7, 0.0)
    with pytest.raises(InputError, match=r"cannot do 'modular'.*80 % are asked for"):
        check_capability(tiny, made["modular"])


def test_files_come_back_and_damaged_ones_are_refused(made, tmp_path):
    b = made["agreement"]
    save_behaviour(b, tmp_path / "deep" / "b.json")
    again = load_behaviour(tmp_path / "deep" / "b")
    assert (again.name, again.model, again.metric, again.about) == (b.name, b.model, b.metric, b.about)
    for split in SPLITS:
        for name in ("clean", "other", "padding", "right", "wrong"):
            np.testing.assert_array_equal(getattr(again[split], name), getattr(b[split], name))
    assert sorted(f.name for f in (tmp_path / "deep").iterdir()) == ["b.json", "b.npz"]
    whole = (tmp_path / "deep" / "b.npz").read_bytes()
    (tmp_path / "deep" / "b.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"b\.npz"):
        load_behaviour(tmp_path / "deep" / "b")
    (tmp_path / "deep" / "b.json").write_text('{"tcircuits": "graph"}')
    with pytest.raises(InputError, match="no behaviour of version"):
        load_behaviour(tmp_path / "deep" / "b")
    with pytest.raises(InputError, match="missing"):
        load_behaviour(tmp_path / "nowhere")


def test_what_does_not_fit_is_refused(tiny, made):
    b = made["ioi"]
    for change, words in (
        ({"metric": "loss"}, "metric 'loss'"),
        ({"splits": {"report": b["report"]}}, "splits are"),
        ({"splits": dict(b.splits) | {"selection": b["report"]}}, "is in"),
        ({"splits": dict(b.splits) | {"report": replace(b["report"], wrong=b["report"].right)}}, "right and wrong"),
        (
            {"splits": dict(b.splits) | {"report": replace(b["report"], right=-1 - 0 * b["report"].right)}},
            "no right answer",
        ),
        ({"splits": dict(b.splits) | {"report": replace(b["report"], clean=b["report"].clean + 9999)}}, "vocabulary"),
        (
            {"splits": dict(b.splits) | {"report": replace(b["report"], padding=b["report"].padding[1:])}},
            "same prompts",
        ),
        (
            {"splits": dict(b.splits) | {"report": replace(b["report"], back=np.full(b["report"].n, 99))}},
            "outside the prompts",
        ),
    ):
        with pytest.raises(InputError, match=words):
            check_behaviour(replace(b, **change), tiny.cfg.d_vocab)
    for given, words in (
        ({"task": "chess"}, "'chess' is unknown"),
        ({"task": "ioi", "sizes": {"test": 3}}, "splits are"),
        ({"task": "ioi", "sizes": {"report": 0}}, "at least one prompt"),
        ({"task": "two_hops", "sizes": {"report": 500}}, "splits only"),
    ):
        with pytest.raises(InputError, match=words):
            make_behaviour(tiny, given.pop("task"), **given)
    with pytest.raises(InputError, match="'exam' is unknown"):
        b["exam"]


def record(path, head=None, **arrays):
    """Change a saved behaviour: fields of its JSON, and arrays (functions of the old ones; None drops one)."""
    said = json.loads(path.with_suffix(".json").read_text()) | (head or {})
    path.with_suffix(".json").write_text(json.dumps(said))
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    for name, f in arrays.items():
        values[f"report.{name}"] = None if f is None else f(values[f"report.{name}"])
    np.savez(path.with_suffix(".npz"), **{k: v for k, v in values.items() if v is not None})


DAMAGE = {
    "name": ({"name": 3}, {}, "name: 3 is no text"),
    "metric": ({"metric": "luck"}, {}, '"luck" is none of'),
    "about": ({"about": [1]}, {}, "about: a JSON list of 1 is no object"),
    "missing": ({}, {"right": None}, r"report\.right is missing"),
    "type": ({}, {"clean": lambda x: x.astype(float)}, r"report\.clean holds F64"),
    "shape": ({}, {"other": lambda x: x[:, 1:]}, r"report\.other has shape"),
    "rows": ({}, {"padding": lambda x: x[:-1]}, r"report\.padding has shape"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_changed_files_are_refused(name, made, tmp_path):
    head, arrays, message = DAMAGE[name]
    save_behaviour(made["agreement"], tmp_path / "b")
    record(tmp_path / "b", head, **arrays)
    with pytest.raises(InputError, match=message):
        load_behaviour(tmp_path / "b")


def test_answers_of_any_number_take_no_more_memory_than_their_file():
    """Comparing every right with every wrong answer at once would take 2 GB here."""
    ids = np.arange(1, 45_001)[None]
    part = Prompts(np.array([[7]]), np.array([[8]]), np.array([0]), 2 * ids, 2 * ids + 1)
    splits = {s: replace(part, clean=part.clean + 10 * i, other=part.other + 10 * i) for i, s in enumerate(SPLITS)}
    tracemalloc.start()
    check_behaviour(Behaviour("b", "m", "logit_difference", splits))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    both = replace(part, wrong=part.wrong.copy())
    both.wrong[0, 77] = 90_000
    with pytest.raises(InputError, match="prompt 0 has an answer that is right and wrong"):
        check_behaviour(Behaviour("b", "m", "logit_difference", splits | {"report": both}))


def test_an_answer_before_the_last_position_is_that_of_the_shorter_prompt(tiny, made, tmp_path):
    """A causal model says at a position what it says at the end of the prompt that ends there."""
    b = replace(made["agreement"], splits={name: p.take(2) for name, p in made["agreement"].splits.items()})
    p, back = b["report"], np.arange(2, dtype=np.int32)
    early = replace(b, splits={name: replace(q, back=back) for name, q in b.splits.items()})
    np.testing.assert_array_equal(early["report"].at, p.clean.shape[1] - 1 - back)
    save_behaviour(early, tmp_path / "early")
    np.testing.assert_array_equal(load_behaviour(tmp_path / "early")["report"].part(1, 2).back, [1])
    short = replace(p.part(1, 1), clean=p.clean[1:, :-1], other=p.other[1:, :-1])
    cut = replace(b, splits=dict(b.splits) | {"report": short})
    units = tc.units_of(tiny.cfg, ("head",))
    found, whole, ends = (tc.run_circuits(tiny, x, np.ones((1, units.n)), units).model.metric for x in (early, b, cut))
    np.testing.assert_allclose(found, [whole[0], ends[0]], atol=1e-5)
    assert abs(whole[1] - ends[0]) > 1e-3
    alone = replace(early, splits={"report": early["report"].part(1, 1)})
    assert capability(tiny, alone, "report") == capability(tiny, cut, "report")


@pytest.mark.parametrize("task", ["modular", "greater_than", "induction"])
def test_own_choices_are_the_likeliest_tokens(task, tiny, made):
    own, p = own_choices(tiny, made[task], batch=4), made[task]["report"]
    check_behaviour(own, tiny.cfg.d_vocab)
    for i in range(p.n):
        said = int(forward(tiny.cfg, tiny.params, p.clean[i][p.padding[i] :][None]).logits[0, -1].argmax())
        assert own["report"].right[i].tolist() == [said]
        others = p.wrong[i] if said in p.right[i] else p.right[i]
        assert set(own["report"].wrong[i]) - {-1} == set(others) - {-1}
    assert capability(tiny, own, "report").exact == 1
    assert own.about["answers"] == "the model's own choices"

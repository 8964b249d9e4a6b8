"""JSON and YAML from strangers: what is read, and what is refused before it takes memory."""

import json
import tracemalloc

import pytest

from tcircuits.files import limits
from tcircuits.files.limits import read_json, read_yaml
from tcircuits.types import InputError

PLAIN = {"a": [1, -2.5, None, True, "\u00fc \U0001f600"], "b": {"c": {"d": []}}, "n": 2**63, "": 0}


def test_json_and_yaml_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(PLAIN))
    (tmp_path / "b.json").write_text(json.dumps(PLAIN, ensure_ascii=False), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == read_json(tmp_path / "b.json") == PLAIN
    (tmp_path / "a.yaml").write_text("a: [1, -2.5, null, true]\nb:\n  c: \u00fc\n  d: 'x: y'\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, -2.5, None, True], "b": {"c": "\u00fc", "d": "x: y"}}
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") is None


def test_a_large_index_is_read(tmp_path):
    """The largest index of shards that was published names some ninety thousand tensors."""
    names = {
        f"model.layers.{i}.mlp.experts.{j}.up_proj.weight": f"model-{i:05d}.safetensors"
        for i in range(60)
        for j in range(1500)
    }
    (tmp_path / "a.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert read_json(tmp_path / "a.json")["weight_map"] == names


def deep(n, opening, closing):
    return opening * n + closing * n


BAD_JSON = {
    "missing": (None, "no such file"),
    "empty": (b"", "no JSON"),
    "no object": (b"[1]", "a JSON list"),
    "no UTF-8": (b'{"a": "\xff"}', "no JSON"),
    "cut off": (b'{"a": ', "no JSON"),
    "large": (b'{"a": "' + b"x" * (17 << 20) + b'"}', "up to 16777216"),
    "deep": (deep(100_000, b"[", b"]"), "deeply|values"),
    "rather deep": (b'{"a":' + deep(80, b"[", b"]") + b"}", "64 deep"),
    "many lists": (b'{"a":[' + b"[]," * 5_000_000 + b"1]}", "more values"),
    "many objects": (b'{"a":[' + b"{}," * 5_000_000 + b"1]}", "more values"),
    "wide letters": (b'{"a":"' + b"x" * 12_000_000 + b'\\ud83d\\ude00"}', "more values"),
    "long integer": (b'{"a":' + b"1" * 100 + b"}", "64 bits"),
    "endless integer": (b'{"a":' + b"1" * 10_000 + b"}", "no JSON"),
    "half a letter": (b'{"a":["\\ud800"]}', "surrogate"),
    "half a letter as key": (b'{"\\udc00":1}', "surrogate"),
}
BAD_YAML = {
    "alias": (b"a: &x [1]\nb: *x\n", "alias"),
    "laughs": (b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "alias"),
    "object": (b"a: !!python/object/apply:os.system ['touch CANARY']\n", "constructor|tag"),
    "name": (b"a: !!python/name:os.system\n", "constructor|tag"),
    "tab": (b"a:\t- b\n\tc", ""),
    "date": (b"a: 2001-99-99\n", "month"),
    "binary": (b"a: !!binary x\n", "base64|padding|binary"),
    "key": (b"? [a]\n: b\n", "unhashable"),
    "deep": (deep(5000, b"[", b"]"), "deeply"),
    "rather deep": (deep(70, b"[", b"]"), "deeply"),
    "large": (b"#" * (2 << 20), "up to 1048576"),
    "many": (b"- a\n" * 30_000, "more than 20000"),
    "many in a line": (b"[" + b"a," * 30_000 + b"]", "more than 20000"),
    "long integer": (b"a: 0x" + b"f" * 10_000, "64 bits"),
    "two documents": (b"a: 1\n---\nb: 2\n", "document"),
    "no UTF-8": (b"a: \xff", "utf-8"),
    "sexagesimal": (b"a: !!int '1:x'\n", ""),
    "control letters": (b"a: \x00", "special characters|allowed"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_refused(name, tmp_path):
    refused(read_json, tmp_path / "a.json", *BAD_JSON[name])


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_that_is_refused(name, tmp_path):
    read_yaml_once(tmp_path)
    refused(read_yaml, tmp_path / "a.yaml", *BAD_YAML[name])
    assert not (tmp_path / "CANARY").exists()


def read_yaml_once(folder):
    """The library is imported before memory is counted."""
    (folder / "b.yaml").write_text("a: 1")
    read_yaml(folder / "b.yaml")


def refused(read, path, data, message):
    if data is not None:
        path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message or None) as error:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert peak < (64 << 20) + 3 * len(data or b"")


@pytest.mark.parametrize(
    "mark", [b"[]", b"{}", b'""', b'{"":0}', b"[[]]", b'{"a":"b"}', b"1.5", b"123456", b'{"k":[{}]}']
)
def test_the_estimate_is_no_less_than_what_values_take(mark, tmp_path):
    """Memory of a parsed text, at most what `weigh` counts for it and a tenth more."""
    data = b'{"a":[' + mark + (b"," + mark) * 20_000 + b"]}"
    budget = limits.Budget(1 << 40)
    limits.weigh(data, budget)
    tracemalloc.start()
    value = json.loads(data)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(value["a"]) == 20_001
    assert taken < 1.1 * ((1 << 40) - budget.left)

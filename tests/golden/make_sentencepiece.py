"""Makes `sentencepiece.json`: two tiny SentencePiece BPE models with the ids that they give to awkward texts.

Run once in an environment of its own (nothing of this is a dependency of the package):

    pip install torch==2.13.0 transformers==5.23.0 safetensors sentencepiece
    python tests/golden/make_sentencepiece.py

`prefix` puts a space before every text, as Llama 2 and Mistral do; `plain` does not, and has tokens of its own for runs
of spaces and for markup, as Gemma does. For each: pieces, scores and kinds (numbers as in GGUF files), and pairs of a
text and its ids.
"""

import io
import json
import random
from pathlib import Path

import sentencepiece as spm
from make_models import PARAGRAPH

AWKWARD = [
    "", " ", "  ", "   leading", "trailing   ", "a  b   c", "The harbour", " the harbour", "harbour harbourharbour",
    "line\nline\n\nline", "tab\tbed", "naïve café — 東京 🙂🏽", "1732 1893", "aaaaaaaaaaa", "eeeee tttt", "ththththe",
    "<b>bold</b>", "a<b> b", "\u2581odd\u2581", "don't", "x" * 40, " ".join("abcdefghij"), "\u202eright", "\x00\x01",
]  # fmt: skip


def texts() -> list[str]:
    """The awkward ones, the paragraph, random cuts of it, and random strings over a few letters."""
    rng, whole = random.Random(0), PARAGRAPH.replace("\n", " ")
    cuts = [whole[a : a + rng.randrange(1, 30)] for a in (rng.randrange(len(whole)) for _ in range(60))]
    mixed = ["".join(rng.choices("aehot \n.", k=rng.randrange(1, 25))) for _ in range(120)]
    return [*AWKWARD, whole, *cuts, *mixed]


def make(prefix: bool, own: list[str]) -> dict:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(PARAGRAPH.split("\n") * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=own,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    p = spm.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(p.get_piece_size())
    kinds = [
        2 if p.is_unknown(i) else 3 if p.is_control(i) else 6 if p.is_byte(i) else 4 if p.id_to_piece(i) in own else 1
        for i in ids
    ]
    return {
        "pieces": [p.id_to_piece(i) for i in ids],
        "scores": [p.get_score(i) for i in ids],
        "kinds": kinds,
        "encoded": [[text, p.encode(text)] for text in texts()],
    }


if __name__ == "__main__":
    out = {"prefix": make(True, []), "plain": make(False, ["\u2581\u2581", "\u2581\u2581\u2581", "\n", "\n\n", "<b>"])}
    path = Path(__file__).parent / "sentencepiece.json"
    path.write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")

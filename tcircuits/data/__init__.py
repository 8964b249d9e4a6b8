"""Data: text -> token ids on disk -> rows of equal length, reached by number, the same on any machine.

    from tcircuits import data

    tokens = data.tokenize(data.open_text(["books/"]), model, "books.tokens")
    train, held_out = data.train_and_held_out(tokens, context=128)
    train.rows(0, 32)  # int32 [32, 128]

Rows through grain: `tcircuits.data.grain_source`, which needs that package.
"""

from tcircuits.data.mixture import Mixture
from tcircuits.data.rows import Rows, RowSource, local_rows, train_and_held_out
from tcircuits.data.sampled import sample_tokens, starts_of
from tcircuits.data.summary import summary
from tcircuits.data.text import Corpus, Document, open_text
from tcircuits.data.tokenizing import check_tokenizer, fingerprint, tokenize
from tcircuits.data.tokens import TokenFile, is_token_file, open_tokens
from tcircuits.data.writing import TokenWriter, write_tokens

__all__ = [
    "Corpus",
    "Document",
    "Mixture",
    "RowSource",
    "Rows",
    "TokenFile",
    "TokenWriter",
    "check_tokenizer",
    "fingerprint",
    "is_token_file",
    "local_rows",
    "open_text",
    "open_tokens",
    "sample_tokens",
    "starts_of",
    "summary",
    "tokenize",
    "train_and_held_out",
    "write_tokens",
]

"""What a person wants to know of tokens on disk."""

from typing import Any

from tcircuits.data.tokens import TokenFile


def summary(tokens: TokenFile, context: int) -> dict[str, Any]:
    """Sizes of token ids on disk.

    Returns:
        `tokens_per_byte` and `unknown_share` (of the tokens) leave separators out; both are None for tokens that no
        text was made into. `rows` is how many rows of `context` tokens an epoch over all of them has.
    """
    about = tokens.about
    own = about.n_tokens - (0 if about.separator is None else about.n_documents)
    return {
        "path": str(tokens.path),
        "name": about.name,
        "documents": about.n_documents,
        "tokens": about.n_tokens,
        "bytes": about.n_bytes,
        "tokens_per_byte": round(own / about.n_bytes, 4) if about.n_bytes else None,
        "unknown_share": None if about.n_unknown is None else about.n_unknown / own,
        "vocab_size": about.vocab_size,
        "bos_id": about.bos_id,
        "separator": about.separator,
        "digest": about.digest,
        "context": context,
        "rows": about.n_tokens // (context - (about.bos_id is not None)),
    }

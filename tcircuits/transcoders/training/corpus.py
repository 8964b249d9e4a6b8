"""The rows of a run, from what a person names: folders of tokens, or text, which is tokenized into the run's folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tcircuits.data.mixture import Mixture
from tcircuits.data.rows import Rows
from tcircuits.data.text import open_text
from tcircuits.data.tokenizing import check_tokenizer, tokenize
from tcircuits.data.tokens import TokenFile, is_token_file, open_tokens
from tcircuits.models.model import Model
from tcircuits.parallel import is_lead
from tcircuits.types import InputError


def open_corpus(
    sources: Iterable[str],
    model: Model,
    run: Path,
    context: int,
    *,
    seed: int = 0,
    bos: Literal["auto", "add", "none"] = "auto",
    held_out: float = 0.05,
    part: Literal["train", "held_out"] = "train",
) -> Any:
    """Rows of the documents that training may see (or of those that it may not), of all sources in equal parts.

    Args:
        sources: folders that `tokenize` wrote, or what `tcircuits.data.open_text` reads.
        model: whose tokens they must be.
        run: text is tokenized to `run/data`, once.
        context: tokens of a row.
        seed: of the order of rows.
        bos: as in `Rows`.
        held_out: share of documents that are left out.
        part: `train`, or `held_out`: the documents left out.

    Raises:
        InputError: nothing there, tokens of another model, too little text for a row.
    """
    parts = []
    for number, source in enumerate(sources):
        tokens = _tokens(source, model, run / "data" / f"{number}.tokens")
        check_tokenizer(tokens, model)
        parts.append(Rows(tokens, context, seed, part, held_out=held_out, bos=bos))
    if not parts:
        raise InputError("give at least one source of tokens or text")
    return parts[0] if len(parts) == 1 else Mixture(tuple(parts), (1.0,) * len(parts), seed)


def _tokens(source: str, model: Model, own: Path) -> TokenFile:
    """The tokens of a source; text is tokenized by the lead process, which the others wait for."""
    if is_token_file(source):
        return open_tokens(source)
    if is_lead() and not own.exists():
        own.parent.mkdir(parents=True, exist_ok=True)
        tokenize(open_text([source]), model, own)
    _together()
    return open_tokens(own)


def _together() -> None:
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("the corpus is tokenized")

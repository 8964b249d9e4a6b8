"""Text that the model writes itself, as token ids on disk.

Its own text is what a model is most at home in, and needs no corpus. Blocks of samples are written one by one beside
the result and renamed into place, so that a run that is cut off goes on with the first block that is missing. The same
seed gives the same text on the same kind of device; another kind rounds otherwise, and draws other tokens.

    sample_tokens(tc.load_model("glassllm"), "own.tokens", 1_000_000, context=128)
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tcircuits.data.tokenizing import fingerprint
from tcircuits.data.tokens import TokenFile, open_tokens
from tcircuits.data.writing import TokenWriter, check_new, synced, write_json
from tcircuits.files.limits import read_json
from tcircuits.files.opening import open_tensors
from tcircuits.files.tensor_file import Header
from tcircuits.models.generate import generate
from tcircuits.models.model import Model
from tcircuits.types import InputError

SETTINGS = "settings.json"


def sample_tokens(
    model: Model,
    path: str | PathLike[str],
    n_tokens: int,
    *,
    context: int,
    batch: int = 64,
    seed: int = 0,
    starts: Sequence[Sequence[int]] | np.ndarray | None = None,
    temperature: float = 1.0,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TokenFile:
    """Let the model write texts, each as long as a row of `context` tokens; what follows its EOS token is kept.

    Without separators between them, the pieces of `Rows` with the same context are these texts, one each.

    Args:
        model: what writes; parameters that are spread over several processes are refused.
        path: a new folder; blocks lie in PATH.blocks until all are there.
        n_tokens: how many tokens, rounded up to whole blocks of `batch` texts.
        context: tokens of a row, BOS included where the model has it; texts have one less then.
        batch: texts that are written together.
        seed: of all draws, in 0..2**63 - 1.
        starts: [*, T] token ids: each text begins with one of them, drawn evenly. None begins with BOS alone.
        temperature: of the softmax that tokens are drawn from; 1 is the model's own distribution.
        name: how people call the tokens.
        progress: called with the tokens that are there, and all.

    Raises:
        InputError: the folder exists, no BOS token and no starts, a context that is too long, blocks of a run with
            other settings, more than one process.
    """
    check_new(path)
    bos = None if model.tokenizer is None else model.tokenizer.bos_id
    beginnings = _beginnings(model, bos, starts)
    length = context - (bos is not None)
    _check(model, context, context - beginnings.shape[1], n_tokens, batch, seed, temperature)
    n_blocks = -(-n_tokens // (batch * length))
    settings = {"model": _identity(model), "context": context, "batch": batch, "seed": seed, "temperature": temperature}
    settings["starts"] = blake2b(beginnings.tobytes(), digest_size=16).hexdigest()
    folder = _folder(Path(path), settings)
    for number in range(n_blocks):
        file = folder / f"block-{number:06d}.npy"
        if not file.exists():
            _save(file, _block(model, beginnings, context - beginnings.shape[1], batch, seed, number, temperature))
        if progress is not None:
            progress((number + 1) * batch * length, n_blocks * batch * length)
    tokenizer = None if model.tokenizer is None else fingerprint(model.tokenizer)
    options = {"vocab_size": model.cfg.d_vocab, "bos_id": bos, "tokenizer": tokenizer, "name": name}
    with TokenWriter(path, **options) as writer:
        writer.facts(sources=(f"written by {model.name}, temperature {temperature}, seed {seed}",))
        for number in range(n_blocks):
            for text in _load(folder / f"block-{number:06d}.npy", (batch, context)):
                writer.add(text[context - length :])
    shutil.rmtree(folder)
    return open_tokens(path)


def starts_of(documents: Iterable[Sequence[int] | np.ndarray], length: int = 4, most: int = 4096) -> np.ndarray:
    """How the first `most` documents begin, for texts that shall be about the same things: int32 [*, length].

    Raises:
        InputError: no document is as long.
    """
    long = (np.asarray(ids[:length], np.int32) for ids in documents if len(ids) >= length)
    found = list(islice(long, most)) if length > 0 else []
    if not found:
        raise InputError(f"no document has {length} tokens to begin a text with")
    return np.stack(found)


def _beginnings(model: Model, bos: int | None, starts: Any) -> np.ndarray:
    """Prompts int32 [*, T], BOS before each where the model has it."""
    if starts is None and bos is None:
        raise InputError(f"the model {model.name!r} has no BOS token: give `starts`, the tokens that texts begin with")
    ids = np.zeros((1, 0), np.int32) if starts is None else np.asarray(starts)
    if ids.ndim != 2 or ids.shape[0] < 1 or ids.dtype.kind not in "iu":
        raise InputError(f"starts of shape {ids.shape}, {ids.dtype}: give lists of token ids, all of one length")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= model.cfg.d_vocab):
        raise InputError(f"starts: ids {ids.min()}..{ids.max()} leave the vocabulary 0..{model.cfg.d_vocab - 1}")
    first = np.full((len(ids), 0 if bos is None else 1), bos or 0, np.int32)
    return np.concatenate([first, ids.astype(np.int32)], axis=1)


def _check(model: Model, context: int, left: int, n_tokens: int, batch: int, seed: int, temperature: float) -> None:
    if jax.process_count() > 1:
        raise InputError("text is sampled by one process: start a run of one, and share the folder that it writes")
    if not 2 <= context <= model.cfg.n_ctx:
        raise InputError(f"context={context}: the model {model.name!r} takes 2..{model.cfg.n_ctx} tokens")
    if left < 1:
        raise InputError(f"context={context} leaves no room behind the starts: give shorter ones")
    if n_tokens < 1 or batch < 1 or not 0 <= seed < 2**63 or not 0 < temperature < float("inf"):
        given = f"n_tokens={n_tokens}, batch={batch}, seed={seed}, temperature={temperature}"
        raise InputError(f"{given}: give at least 1 token and text, a seed in 0..2**63 - 1, a positive temperature")


def _identity(model: Model) -> str:
    """A hash of the configuration and of some of every parameter: a model that was trained on has another."""
    digest = blake2b(repr(sorted(asdict(model.cfg).items())).encode(), digest_size=16)
    for leaf in jax.tree.leaves(model.params):
        digest.update(np.asarray(leaf[(0,) * (leaf.ndim - 1)]).tobytes())
    return f"{model.name} {digest.hexdigest()}"


def _folder(path: Path, settings: dict[str, Any]) -> Path:
    """Where blocks lie: a new folder, or that of a run with the same settings."""
    folder = path.expanduser().absolute().with_name(path.name + ".blocks")
    if (folder / SETTINGS).exists():
        found = read_json(folder / SETTINGS)
        other = [f"{k}={found.get(k)!r} there, {v!r} now" for k, v in settings.items() if found.get(k) != v]
        if other:
            raise InputError(f"{folder} holds blocks of another run: {'; '.join(other)}; remove it, or go on as it was")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{SETTINGS}"
        write_json(draft, settings)
        draft.rename(folder / SETTINGS)
    return folder


def _block(
    model: Model, beginnings: np.ndarray, n: int, batch: int, seed: int, number: int, temperature: float
) -> np.ndarray:
    """The texts of one block with their beginnings: int32 [batch, T + n]."""
    low, high = seed & 0xFFFFFFFF, seed >> 32
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(low), high), number)
    chosen = np.random.default_rng([seed, number]).integers(len(beginnings), size=batch)
    prompts = beginnings[chosen]
    written = generate(model, prompts, n, temperature=temperature, key=key)
    return np.concatenate([prompts, written.astype(np.int32)], axis=1)


def _save(file: Path, block: np.ndarray) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("wb") as out:
        np.save(out, block)
        synced(out)
    draft.rename(file)


def _load(file: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        block = open_tensors(file)
        if dict(block.headers) != {"": Header(shape, "I32")}:
            raise InputError(f"it holds other than int32 {shape}")
        return np.asarray(block.read("", None))
    except InputError as problem:
        raise InputError(f"{file} is damaged ({problem}): remove it, and it is made again") from None

"""Folders as the Hugging Face hub has them: `config.json`, weights (one file, or shards with index), tokenizer.

Weights are safetensors, or else the pickles that older models have (`pytorch_model.bin`), of which nothing is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.limits import read_json
from tcircuits.files.opening import open_tensors as open_file
from tcircuits.files.tensor_file import Header, TensorFile
from tcircuits.models.source import Source, need
from tcircuits.models.tokenizers import Tokenizer, from_folder
from tcircuits.types import InputError

SHOWN = 20  # problems that a message lists


@dataclass(frozen=True)
class Weights:
    """How weights are kept: the name of a single file, of the index of several, and what to download."""

    single: str
    index: str
    pattern: str


KINDS = (
    Weights("model.safetensors", "model.safetensors.index.json", "model*.safetensors"),
    Weights("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin"),
)
# What `load_model` downloads of a repository beside its weights: configuration and tokenizer.
BESIDE = (
    "config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "spiece.model",
)  # fmt: skip


def _check_index(folder: Path, index: str, listed: Mapping[str, str]) -> list[str]:
    """What is wrong with an index before any shard is opened."""
    wrong = []
    for name in sorted({*listed.values()}):
        if Path(name).name != name or len(name) > 200:
            wrong.append(f"{index} names the file {name!r}, which is not a plain file name")
        elif not (folder / name).is_file():
            wrong.append(f"{index} names the file {name!r}, which is not there")
    return wrong


def _kind_in(folder: Path) -> Weights:
    """The first kind of weights that is there."""
    for kind in KINDS:
        if (folder / kind.single).is_file() or (folder / kind.index).is_file():
            return kind
    names = [name for kind in KINDS for name in (kind.single, kind.index)]
    raise InputError(f"{folder} has no weights: none of {', '.join(names)}; other formats are not read")


def open_tensors(folder: Path) -> tuple[dict[str, Header], dict[str, TensorFile]]:
    """Headers of all tensors of a folder, and for each the open file that has it.

    Raises:
        InputError: no weights, missing, damaged or cut-off files, or an index that its files contradict.
    """
    kind = _kind_in(folder)
    single = (folder / kind.single).is_file()
    listed = None if single else read_json(folder / kind.index).get("weight_map")
    if not single and not isinstance(listed, dict):
        raise InputError(f"{folder / kind.index} has no 'weight_map' from tensors to files")
    listed = None if listed is None else {tensor: str(file) for tensor, file in listed.items()}
    wrong = [] if listed is None else _check_index(folder, kind.index, listed)
    headers: dict[str, Header] = {}
    files: dict[str, TensorFile] = {}
    for name in [] if wrong else [kind.single] if listed is None else sorted(set(listed.values())):
        try:
            file = open_file(folder / name)
        except InputError as error:
            wrong.append(f"no complete file of weights (cut off or damaged?): {error}")
            continue
        here = file.headers.keys()
        expected = here if listed is None else {t for t, f in listed.items() if f == name}
        wrong += [f"{kind.index} and {name} disagree about the tensor {t!r}" for t in sorted(expected ^ here)]
        headers |= file.headers
        files |= dict.fromkeys(file.headers, file)
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise InputError("; ".join(problem[:400] for problem in wrong[:SHOWN]) + more)
    return headers, files


def open_folder(path: Path, name: str | None = None) -> Source:
    """A local folder.

    Raises:
        InputError: files that are missing, damaged or contradict each other.
    """
    config = read_json(path / "config.json")
    headers, files = open_tensors(path)

    def read(tensor: str) -> np.ndarray:
        return files[tensor].read(tensor, None)

    def tokenizer() -> Tokenizer | None:
        return from_folder(path, config)

    return Source(name or path.resolve().name, str(path), config, headers, read, tokenizer)


def _wanted(hub: Any, errors: Any, repository: str) -> list[str]:
    """Patterns of what to download: no pickles where there are safetensors."""
    try:
        names = {*hub.list_repo_files(repository)}
    except (errors.HfHubHTTPError, OSError, ValueError):
        names = set()  # offline, all that counts is what the local cache has; other causes are told by the download
    kind = next((kind for kind in KINDS if {kind.single, kind.index} & names), KINDS[0])
    return [*BESIDE, kind.index, kind.pattern]


def open_hub(repository: str) -> Source:
    """A repository of the Hugging Face hub, downloaded (or found in its local cache).

    Raises:
        InputError: it does not exist, needs a login, or cannot be reached.
    """
    hub = need("huggingface_hub", "huggingface_hub")
    errors = need("huggingface_hub.errors", "huggingface_hub")
    try:
        folder = hub.snapshot_download(repository, allow_patterns=_wanted(hub, errors, repository))
    except errors.GatedRepoError as error:
        raise InputError(f"{repository} on the hub needs a login: ask for access, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"there is no folder {repository!r} here and no repository of that name on the hub") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"there is no folder {repository!r} here, and the hub could not be reached for a repository of that name "
            f"({type(error).__name__}): check the network, or download it where there is one, "
            f"`hf download {repository} --local-dir DIR`, and give the path of DIR"
        ) from error
    return open_folder(Path(folder), repository)

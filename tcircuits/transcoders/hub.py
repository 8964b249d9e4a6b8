"""Where a set of dictionaries lies: a local folder or file, or a repository of the Hugging Face hub.

A reference is `owner/repository[/subfolder][@revision]`, or an address `hf://owner/repository/path[?revision=...]`. Of
a repository only those files are downloaded (or found in the local cache) that are loaded.

>>> parse_reference("mntss/clt-gemma-2-2b-426k@main")
Reference(repository='mntss/clt-gemma-2-2b-426k', path='', revision='main')
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tcircuits.models.source import need
from tcircuits.transcoders.formats.ct_config import CONFIG
from tcircuits.transcoders.formats.place import Place, UnreachableError, local_place
from tcircuits.types import InputError

NAME = r"[\w-][\w.-]*"
REFERENCE = rf"(?P<repository>{NAME}/{NAME})(?P<path>(/{NAME})*)/?(@(?P<revision>[\w./-]+))?"
ADDRESS = "hf://"
PATIENCE = 10.0  # seconds until a hub that does not answer counts as out of reach
# Libraries whose errors that of the hub passes on as they are.
TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


@dataclass(frozen=True)
class Reference:
    """A repository, a folder or file in it ('' is its top), and a branch, tag or commit (None is the newest)."""

    repository: str
    path: str
    revision: str | None


def parse_reference(text: str) -> Reference | None:
    """The parts of a reference; None where `text` is none."""
    address = urlsplit(text)
    asked = None
    if address.scheme == "hf":
        text, asked = address.netloc + address.path, parse_qs(address.query).get("revision", [None])[0]
    match = re.fullmatch(REFERENCE, text)
    if match is None:
        return None
    return Reference(match["repository"], match["path"].strip("/"), match["revision"] or asked)


def locate(name: str) -> Place:
    """The place of a source; files that it names by an address are downloaded when they are asked for.

    Raises:
        InputError: neither a folder or file here nor a reference to the hub, or a hub that cannot be reached.
    """
    path = Path(name).expanduser()
    if name and path.exists():
        return _with_addresses(_listed(path) if path.suffix in (".yaml", ".yml") else local_place(path))
    reference = parse_reference(name)
    if reference is None:
        raise InputError(
            f"transcoders {name!r} are unknown; give 'neurons', the name of a published set (tcircuits info), "
            "an existing folder or file, or a hub reference 'owner/repository[/folder][@revision]'"
        )
    return _with_addresses(hub_place(reference))


def _listed(path: Path) -> Place:
    """A configuration that lists files, under any name; they lie beside and below it."""
    beside = local_place(path.parent)
    names = tuple(sorted({*beside.names, CONFIG}))
    return Place(str(path), names, lambda name: path if name == CONFIG else beside.get(name))


def _with_addresses(place: Place) -> Place:
    return replace(place, get=lambda name: fetch_file(name) if name.startswith(ADDRESS) else place.get(name))


def listed_place(where: str, addresses: tuple[str, ...]) -> Place:
    """A place that is nothing but the addresses of files on the hub, one a layer."""
    return Place(where, addresses, fetch_file, listed=True)


def hub_place(reference: Reference) -> Place:
    """A folder (or a file) of a repository; its list of files is asked for, nothing is downloaded yet.

    Without network, the part of the repository that is in the local cache.

    Raises:
        InputError: it does not exist, needs a login, or cannot be reached and is not in the local cache.
    """
    lead = f"{reference.path}/" if reference.path else ""
    try:
        about = _about(reference)
    except UnreachableError:
        return _cached(reference)
    names = [file.rfilename for file in about.siblings or ()]
    if reference.path in names:
        return Place(str(reference), (Path(reference.path).name,), lambda _: fetch(reference), single=True)
    below = tuple(sorted(name.removeprefix(lead) for name in names if name.startswith(lead)))
    if not below:
        raise InputError(f"{reference.repository} on the hub has no folder {reference.path!r} with dictionaries")
    return Place(str(reference), below, lambda name: fetch(replace(reference, path=lead + name)))


def _about(reference: Reference) -> Any:
    options = {"revision": reference.revision, "timeout": PATIENCE}
    return _ask_hub(reference, lambda hub: hub.HfApi().model_info(reference.repository, **options))


def _cached(reference: Reference) -> Place:
    """The snapshot of a repository in the local cache."""

    def get(hub: Any) -> str:
        return hub.snapshot_download(reference.repository, revision=reference.revision, local_files_only=True)

    folder = Path(_ask_hub(reference, get)) / reference.path
    if not folder.exists():
        raise InputError(f"{reference.repository} in the local cache has no {reference.path!r}: go online once")
    return local_place(folder)


def fetch(reference: Reference) -> Path:
    """A file of a repository: from the local cache, without a look at the network, or else downloaded.

    Raises:
        InputError: it does not exist, needs a login, or cannot be reached.
    """
    hub = need("huggingface_hub", "huggingface_hub")
    name, revision = reference.path, reference.revision
    cached = hub.try_to_load_from_cache(reference.repository, name, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    _about(reference)  # gives up soon; a download would try for half a minute
    return Path(_ask_hub(reference, lambda hub: hub.hf_hub_download(reference.repository, name, revision=revision)))


def fetch_file(address: str) -> Path:
    """Download one file, given as `hf://owner/repository/path[?revision=...]`.

    Raises:
        InputError: no such address, it does not exist, needs a login, or cannot be reached.
    """
    reference = parse_reference(address)
    if reference is None or not reference.path:
        raise InputError(f"{address!r} is no address of a file on the hub (hf://owner/repository/path)")
    return fetch(reference)


def _ask_hub(reference: Reference, get: Callable[[Any], Any]) -> Any:
    hub = need("huggingface_hub", "huggingface_hub")
    errors = need("huggingface_hub.errors", "huggingface_hub")
    name = reference.repository
    try:
        return get(hub)
    except errors.GatedRepoError as error:
        raise InputError(f"{name} on the hub needs a login: ask for access, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"there is no folder {name!r} here and no repository of that name on the hub") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{name} on the hub has no revision {reference.revision!r}") from error
    except errors.EntryNotFoundError as error:
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise InputError(f"{name} on the hub has no file {reference.path!r}") from error
        raise UnreachableError(_unreachable(name, error)) from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise UnreachableError(_unreachable(name, error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in TRANSPORTS:
            raise
        raise UnreachableError(_unreachable(name, error)) from error


def _unreachable(name: str, error: Exception) -> str:
    return (
        f"there is no folder {name!r} here, and the hub could not be reached for a repository of that name "
        f"({type(error).__name__}): check the network, or where there is one run `hf download {name} --local-dir DIR` "
        "(add --include PATTERN for a part) and give DIR"
    )

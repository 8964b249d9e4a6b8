"""The files from which published viewers show features: `features/index.json.gz` and `features/layer_N.bin`.

    index.json.gz    {"0": {"filename": "layer_0.bin", "offsets": [0, 812, ...]}, ...}, one offset more than features
    layer_N.bin      a record for each feature: its length (4 bytes, little-endian), then so many bytes of gzip'd JSON

| field of a record | holds |
|---|---|
| transcoder_id, index | layer, and number of the feature |
| examples_quantiles | groups: `quantile_name` and `examples` |
| top_logits, bottom_logits | tokens that it promotes and suppresses most |
| act_min, act_max | smallest and largest activation |
| quantile_values, histogram | quantiles 0, 1/20, ..., 1 of its activations; counts |
| activation_frequency | share of positions where it is on |

| field of an example | holds |
|---|---|
| tokens, tokens_acts_list | texts of tokens, and the activation at each |
| train_token_ind | which of the tokens it is about |
| is_repeated_datapoint | whether an earlier group has it too |

A viewer reads the index and then one record by its offsets. Files of others are read too: lengths are checked against
offsets and file, decompressed sizes have a cap, and nothing but JSON is in them. Records compressed by zlib are read.
"""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcircuits.files.limits import MEMORY, Budget, parse_json
from tcircuits.files.storage import MalformedError
from tcircuits.types import InputError

FOLDER, INDEX = "features", "index.json.gz"
OFFSETS = re.compile(rb"\[\s*+(?:\d{1,18}+\s*+,\s*+)*+(?:\d{1,18}+\s*+)?\]")
LARGEST_RECORD, LARGEST_INDEX = 64 * 2**20, 512 * 2**20  # bytes, decompressed


def write_features(folder: Path, layers: Mapping[int, Iterable[Mapping[str, Any]]]) -> None:
    """Write `folder/features`; the index last, so that it never names what is not there.

    Args:
        folder: where `features` is made; files of the same names are replaced.
        layers: for each layer the records of its features, in the order of their numbers.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    index = {}
    for layer, records in layers.items():
        name = f"layer_{layer}.bin"
        index[str(layer)] = {"filename": name, "offsets": _write_layer(place / name, records)}
    _whole(place / INDEX, gzip.compress(json.dumps(index).encode(), mtime=0))


def _write_layer(path: Path, records: Iterable[Mapping[str, Any]]) -> list[int]:
    draft, offsets = path.with_name(f".{path.name}"), [0]
    with draft.open("wb") as file:
        for record in records:
            text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            packed = gzip.compress(text.encode(errors="replace"), 6, mtime=0)
            offsets.append(offsets[-1] + file.write(struct.pack("<I", len(packed))) + file.write(packed))
    draft.replace(path)
    return offsets


def _whole(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(content)
    draft.replace(path)


class FeatureFiles:
    """Records of a folder, read one at a time.

    Args:
        folder: what holds `features/index.json.gz`, or the folder `features` itself.

    Raises:
        InputError: no index there, or one that cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        places = [Path(folder) / FOLDER, Path(folder)]
        self.folder = next((p for p in places if (p / INDEX).is_file()), None) or _absent(folder)
        self._layers = _read_index(self.folder / INDEX)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have records."""
        return tuple(sorted(self._layers))

    def n_features(self, layer: int) -> int:
        """Records of a layer.

        Raises:
            InputError: there is no such layer.
        """
        if layer not in self._layers:
            raise InputError(f"{self.folder} has no layer {layer}; there are {list(self.layers)}")
        return len(self._layers[layer][1]) - 1

    def read(self, layer: int, feature: int) -> dict[str, Any]:
        """The record of a feature.

        Raises:
            InputError: there is no such layer or feature, or its record is damaged.
        """
        n = self.n_features(layer)
        if not 0 <= feature < n:
            raise InputError(f"feature {feature} of layer {layer} in {self.folder}: there are 0..{n - 1}")
        name, offsets = self._layers[layer]
        begin, end = map(int, offsets[feature : feature + 2])
        where = f"{self.folder / name}, feature {feature}"
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(begin)
                content = file.read(end - begin)
        except OSError as problem:
            raise InputError(f"{where} cannot be read: {problem.strerror or problem}") from None
        if len(content) != end - begin:
            raise InputError(f"{where}: the file ends before the record does")
        record = _json(_record(content, where), where)
        if not isinstance(record, dict):
            raise InputError(f"{where} is damaged: a record is an object")
        return record


def _absent(folder: str | Path) -> Path:
    raise InputError(f"{folder} has no {FOLDER}/{INDEX}: `tcircuits features --out {folder}` writes one")


def _record(content: bytes, where: str) -> bytes:
    """The JSON of a record."""
    if len(content) < 4 or struct.unpack("<I", content[:4])[0] != len(content) - 4:
        raise InputError(f"{where} is damaged: its length does not fit the index")
    return unpacked(content[4:], LARGEST_RECORD, where)


def unpacked(content: bytes, largest: int, where: str) -> bytes:
    """Decompressed gzip or zlib, at most `largest` bytes.

    Raises:
        InputError: damaged, or larger.
    """
    machine = zlib.decompressobj(wbits=47)  # gzip or zlib, by their first bytes
    try:
        found = machine.decompress(content, largest + 1)
    except zlib.error as problem:
        raise InputError(f"{where} is damaged: {problem}") from None
    if len(found) > largest:
        raise InputError(f"{where} is larger than {largest:,} bytes when decompressed: it is refused")
    if not machine.eof:
        raise InputError(f"{where} is damaged: it ends too early")
    return found


def _json(text: bytes, where: str) -> Any:
    try:
        return parse_json(text, Budget(MEMORY + 3 * len(text)))
    except MalformedError as problem:
        raise InputError(f"{where} is damaged: {problem}") from None


def _without_offsets(text: bytes, where: str) -> tuple[bytes, list[np.ndarray]]:
    """An index whose lists of whole numbers are taken out, and those: as Python's integers they would take much memory.

    In place of list number k stands `[k]`.
    """
    found, budget = [], Budget(MEMORY + 2 * len(text))

    def take(match: re.Match[bytes]) -> bytes:
        numbers = match[0][1:-1]
        budget.spend(8 * (numbers.count(b",") + 1))
        found.append(np.fromstring(numbers, np.int64, sep=",") if numbers.strip() else np.zeros(0, np.int64))
        return b"[%d]" % (len(found) - 1)

    try:
        return OFFSETS.sub(take, text), found
    except MalformedError:
        raise InputError(f"{where} is damaged: it has more offsets than its bytes can be") from None


def _listed(place: Any, lists: list[np.ndarray]) -> np.ndarray:
    """The list that stood where `_without_offsets` put its number; an empty one where none stood."""
    one = place[0] if isinstance(place, list) and len(place) == 1 else None
    return lists[one] if type(one) is int and one < len(lists) else np.zeros(0, np.int64)


def _read_index(path: Path) -> dict[int, tuple[str, np.ndarray]]:
    """File name and offsets of each layer; names stay inside the folder, offsets rise and stay inside the file."""
    if path.stat().st_size > LARGEST_INDEX:
        raise InputError(f"{path} is larger than {LARGEST_INDEX:,} bytes: it is refused")
    text, lists = _without_offsets(unpacked(path.read_bytes(), LARGEST_INDEX, str(path)), str(path))
    raw = _json(text, str(path))
    del text
    entries = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    found = {}
    for layer, entry in entries:
        if not isinstance(entry, dict) or not str(layer).isdecimal():
            raise InputError(f"{path} is damaged: layer {layer!r:.40} has no filename and offsets")
        name, offsets = entry.get("filename"), _listed(entry.get("offsets"), lists)
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"{path}: the file of layer {layer} is named {name!r:.80}; a plain name is needed")
        if not len(offsets):
            raise InputError(f"{path} is damaged: offsets of layer {layer} are no list of whole numbers")
        if (offsets[:-1] > offsets[1:]).any():
            raise InputError(f"{path} is damaged: offsets of layer {layer} fall")
        if not (path.parent / name).is_file() or (path.parent / name).stat().st_size < offsets[-1]:
            raise InputError(f"{path.parent / name} is missing or shorter than {path.name} says")
        found[int(layer)] = (name, offsets)
    if not found:
        raise InputError(f"{path} names no layer")
    return found

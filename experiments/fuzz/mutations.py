"""Damage to files: blind (bits, stretches, numbers) and informed (headers, members, opcodes), all from a seed.

Informed damage keeps what stands around it valid, checksums and lengths included, so that it reaches the code behind
the first check.
"""

import gzip
import io
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]
EXTREME = (0, 1, 2, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
NUMBERS = (
    b"0", b"-1", b"1", b"99999999", b"4294967296", b"4611686018427387904", b"9223372036854775807",
    b"99999999999999999999", b"1e999", b"1" * 400, b"1" * 5000, b"0.5", b"true", b"null", b"NaN", b"[]", b'"x"', b"{}",
)  # fmt: skip
CANARY = b"touch CANARY"


def _pick(rng: Rng, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _span(data: bytes, rng: Rng, longest: int = 4096) -> tuple[int, int]:
    start = int(rng.integers(len(data) + 1))
    return start, min(len(data), start + int(rng.integers(1, max(2, min(longest, len(data)) + 1))))


def truncate(data: bytes, rng: Rng) -> bytes:
    """The file ends early, often just so."""
    return data[: -int(rng.integers(1, 9))] if rng.random() < 0.3 else data[: int(rng.integers(len(data) + 1))]


def flip(data: bytes, rng: Rng) -> bytes:
    """A few bits change."""
    out = bytearray(data)
    for _ in range(int(2 ** rng.integers(0, 5)) if out else 0):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def flip_early(data: bytes, rng: Rng) -> bytes:
    """A few bits change in the first kilobyte, where most headers are."""
    return flip(data[:1024], rng) + data[1024:]


def overwrite(data: bytes, rng: Rng) -> bytes:
    """A field of 1 to 8 bytes gets an extreme value."""
    n = _pick(rng, (1, 2, 4, 8))
    value = (_pick(rng, EXTREME) + int(rng.integers(-1, 2))) % 256**n
    at = int(rng.integers(max(1, len(data) - n + 1)))
    return data[:at] + value.to_bytes(n, _pick(rng, ("little", "big"))) + data[at + n :]


def overwrite_length(data: bytes, rng: Rng) -> bytes:
    """A field that may be a length or a place (its number is positive and below the file's size) gets another value."""
    n = _pick(rng, (2, 4, 8))
    edge = min(len(data), 4096)
    windows = [*range(edge - n + 1), *range(max(edge, len(data) - 1024), len(data) - n + 1)]
    places = [i for i in windows if 0 < int.from_bytes(data[i : i + n], "little") <= len(data)]
    if not places:
        return overwrite(data, rng)
    at = _pick(rng, places)
    old = int.from_bytes(data[at : at + n], "little")
    value = _pick(rng, (*EXTREME, old + 1, old - 1, old * 2, old + len(data), len(data), len(data) - at)) % 256**n
    return data[:at] + value.to_bytes(n, "little") + data[at + n :]


def duplicate(data: bytes, rng: Rng) -> bytes:
    """A stretch stands twice."""
    a, b = _span(data, rng)
    return data[:b] + data[a:b] + data[b:]


def delete(data: bytes, rng: Rng) -> bytes:
    """A stretch is missing."""
    a, b = _span(data, rng)
    return data[:a] + data[b:]


def swap(data: bytes, rng: Rng) -> bytes:
    """Two stretches change places."""
    (a, b), (c, d) = sorted((_span(data, rng, 256), _span(data, rng, 256)))
    return data if c < b else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def insert(data: bytes, rng: Rng) -> bytes:
    """Random bytes, zeros or text come in between."""
    at, n = int(rng.integers(len(data) + 1)), int(2 ** rng.integers(0, 12))
    return data[:at] + _pick(rng, (rng.bytes(n), bytes(n), b"[" * n, b'{"a":' * n, b"9" * n)) + data[at:]


def renumber(data: bytes, rng: Rng) -> bytes:
    """A number written in digits becomes another one, or another value."""
    places = list(re.finditer(rb"\d+", data[:20000]))
    if not places:
        return overwrite(data, rng)
    match = _pick(rng, places)
    return data[: match.start()] + _pick(rng, NUMBERS) + data[match.end() :]


def reword(data: bytes, rng: Rng) -> bytes:
    """A quoted word becomes another one of the file, or a strange one."""
    words = list(re.finditer(rb"[\"']([\w.\-/<>|]*)[\"']", data[:20000]))
    if not words:
        return flip(data, rng)
    strange = (b"", b"../../etc/passwd", b"/etc/passwd", b"\\u0000", b"A" * 3000, b"|O", b"O8", b"<U99999999", b"\xff")
    new = _pick(rng, strange) if rng.random() < 0.5 else _pick(rng, words)[1]
    match = _pick(rng, words)
    return data[: match.start(1)] + new + data[match.end(1) :]


def nest(data: bytes, rng: Rng) -> bytes:
    """Brackets without end where a value stands."""
    places = [m.end() for m in re.finditer(rb"[:\[]", data[:20000])] or [0]
    at, n = _pick(rng, places), int(10 ** rng.integers(2, 6))
    return data[:at] + _pick(rng, (b"[" * n, b"[" * n + b"]" * n, b'{"a":' * n, b"[[],[]," * n, b"- " * n)) + data[at:]


BLIND: tuple[Mutation, ...] = (
    *(truncate, flip, flip_early, overwrite, overwrite_length, duplicate, delete, swap, insert, renumber, reword),
)


@cache
def zeros_deflated(n: int) -> tuple[bytes, int]:
    """A raw deflate stream of `n` zeros, and their checksum."""
    stream, crc, chunk, packed = zlib.compressobj(9, wbits=-15), 0, bytes(1 << 20), b""
    for _ in range(n >> 20):
        packed, crc = packed + stream.compress(chunk), zlib.crc32(chunk, crc)
    return packed + stream.flush(), crc


def in_safetensors(data: bytes, rng: Rng) -> bytes:
    """The header as JSON changes; its length is right again."""
    n = int.from_bytes(data[:8], "little")
    header = _pick(rng, (renumber, renumber, reword, nest, json_value))(data[8 : 8 + n], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + n :]


def json_value(data: bytes, rng: Rng) -> bytes:
    """One value of a JSON text becomes another kind of value; one key becomes another."""
    try:
        tree = json.loads(data)
    except ValueError:
        return renumber(data, rng)
    node, path = tree, []
    while isinstance(node, dict | list) and node and (not path or rng.random() < 0.8):
        key = _pick(rng, list(node) if isinstance(node, dict) else range(len(node)))
        path.append((node, key))
        node = node[key]
    if not path:
        return b"[]"
    values: tuple[Any, ...] = (
        None,
        -1,
        0,
        2**63,
        2**62,
        1e308,
        "x",
        "",
        [],
        {},
        [2**31] * 9,
        [0] * 70,
        True,
        "F64",
        "BF16",
    )
    parent, key = path[-1]
    if isinstance(parent, dict) and rng.random() < 0.3:
        parent[_pick(rng, ("", "x", "__metadata__", "a" * 1000, "\ud800"))] = parent.pop(key)
    else:
        parent[key] = _pick(rng, values)
    return json.dumps(tree).encode()


def _rebuilt(members: list[tuple[str, bytes]], method: int, crc: Callable[[bytes], int] = zlib.crc32) -> bytes:
    """A zip archive, written field by field so that wrong ones can be written."""
    out, table = io.BytesIO(), b""
    for name, content in members:
        packed = content
        if method == zipfile.ZIP_DEFLATED:
            stream = zlib.compressobj(wbits=-15)
            packed = stream.compress(content) + stream.flush()
        raw = name.encode("utf-8", "surrogateescape")
        table += _entry(raw, method, crc(content), len(packed), len(content), out.tell())
        out.write(
            struct.pack(
                "<4s5H3L2H", b"PK\3\4", 20, 2048, method, 0, 33, crc(content), len(packed), len(content), len(raw), 0
            )
        )
        out.write(raw + packed)
    return _with_table(out.getvalue(), table, len(members))


def _entry(raw: bytes, method: int, crc: int, packed: int, size: int, start: int) -> bytes:
    fields = (b"PK\1\2", 20, 20, 2048, method, 0, 33, crc, packed, size, len(raw), 0, 0, 0, 0, 0, start)
    return struct.pack("<4s6H3L5H2L", *fields) + raw


def _with_table(body: bytes, table: bytes, count: int) -> bytes:
    return body + table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(table), len(body), 0)


def in_zip(data: bytes, rng: Rng) -> bytes:
    """One member changes, or the list of members; checksums and lengths are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    i = int(rng.integers(len(members)))
    weights = [4 if name.endswith(".pkl") else 1 for name, _ in members]
    i = int(rng.choice(len(members), p=np.array(weights) / sum(weights)))
    name, content = members[i]
    kind = rng.random()
    if kind < 0.75:
        members[i] = (name, inner(name, content, rng))
    elif kind < 0.80:
        members[i] = (_pick(rng, ("../" + name, "/" + name, name.upper(), "x/data.pkl", "", "a\\b", "\udcff")), content)
    elif kind < 0.85:
        members.insert(int(rng.integers(len(members) + 1)), members[i])
    elif kind < 0.90:
        del members[i]
    elif kind < 0.95:
        members += [(f"n{j}", b"") for j in range(int(10 ** rng.uniform(0, 4.5)))]
    else:
        return zip_bomb(members, i, rng)
    return _rebuilt(members, _pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def zip_bomb(members: list[tuple[str, bytes]], i: int, rng: Rng) -> bytes:
    """A member decodes to hundreds of megabytes, and says so, or lies."""
    size = _pick(rng, (64, 256)) << 20
    packed, crc = zeros_deflated(size)
    name, content = members[i]
    declared = _pick(rng, (size, len(content), size * 2, 2**32 - 2, size - 1))
    rest = members[:i] + members[i + 1 :]
    body = _rebuilt(rest, zipfile.ZIP_STORED)
    end = body.rindex(b"PK\5\6")
    count, length, start = struct.unpack_from("<10xH2L", body, end)
    raw = name.encode()
    local = (
        struct.pack("<4s5H3L2H", b"PK\3\4", 20, 2048, 8, 0, 33, crc, len(packed), declared, len(raw), 0) + raw + packed
    )
    table = body[start : start + length] + _entry(raw, 8, crc, len(packed), declared, start)
    return _with_table(body[:start] + local, table, count + 1)


def inner(name: str, content: bytes, rng: Rng) -> bytes:
    """Damage to what a member of an archive holds."""
    if name.endswith(".pkl"):
        return in_pickle(content, rng)
    if content[:6] == b"\x93NUMPY":
        return in_npy(content, rng)
    return _pick(rng, BLIND)(content, rng)


def in_npy(data: bytes, rng: Rng) -> bytes:
    """The header's text changes; its length is right again."""
    n = int.from_bytes(data[8:10], "little")
    header = _pick(rng, (renumber, reword, reword, flip, insert))(data[10 : 10 + n], rng)
    if rng.random() < 0.2:
        header = header.replace(b"False", b"True").replace(b"<", b">")
    return data[:8] + (len(header) % 65536).to_bytes(2, "little") + header + data[10 + n :]


def _short_text(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


# What a hostile pickle calls; each would leave the file CANARY in the current folder.
CALLS: tuple[bytes, ...] = tuple(
    b"c" + module + b"\n" + name + b"\n" + argument + b"\x85R"
    for module, name, argument in (
        (b"os", b"system", _short_text(CANARY)),
        (b"posix", b"system", _short_text(CANARY)),
        (b"nt", b"system", _short_text(CANARY)),
        (b"subprocess", b"Popen", b"]" + b"".join(_short_text(w) + b"a" for w in CANARY.split())),
        (b"subprocess", b"check_output", b"]" + b"".join(_short_text(w) + b"a" for w in CANARY.split())),
        (b"builtins", b"eval", _short_text(b"open('CANARY', 'w')")),
        (b"builtins", b"exec", _short_text(b"open('CANARY', 'w')")),
        (b"__builtin__", b"eval", _short_text(b"open('CANARY', 'w')")),
        (b"builtins", b"__import__", _short_text(b"antigravity")),
        (b"builtins", b"compile", _short_text(b"1")),
        (b"builtins", b"getattr", _short_text(b"x")),
        (b"builtins", b"open", _short_text(b"CANARY")),
        (b"builtins", b"input", _short_text(b"CANARY")),
        (b"operator", b"attrgetter", _short_text(b"system")),
        (b"operator", b"methodcaller", _short_text(b"system")),
        (b"runpy", b"run_path", _short_text(b"CANARY")),
        (b"runpy", b"_run_code", _short_text(b"1")),
        (b"importlib", b"import_module", _short_text(b"antigravity")),
        (b"torch.hub", b"load", _short_text(b"CANARY")),
        (b"torch", b"load", _short_text(b"CANARY")),
        (b"torch.utils.cpp_extension", b"load_inline", _short_text(b"CANARY")),
        (b"torch.jit", b"load", _short_text(b"CANARY")),
        (b"torch.nn", b"Linear", b"K\3"),
        (b"numpy", b"load", _short_text(b"CANARY")),
        (b"numpy.testing._private.utils", b"runstring", _short_text(b"1")),
        (b"numpy.f2py.crackfortran", b"getlincoef", _short_text(b"1")),
        (b"numpy.distutils.exec_command", b"exec_command", _short_text(CANARY)),
        (b"pydoc", b"pipepager", _short_text(CANARY)),
        (b"pty", b"spawn", _short_text(b"sh")),
        (b"socket", b"create_connection", _short_text(b"localhost")),
        (b"shutil", b"rmtree", _short_text(b".")),
        (b"webbrowser", b"open", _short_text(b"x")),
        (b"ctypes", b"CDLL", _short_text(b"libc.so.6")),
        (b"pickle", b"loads", _short_text(b"x")),
        (b"marshal", b"loads", b"C\1N"),
        (b"types", b"FunctionType", b"N"),
        (b"timeit", b"timeit", _short_text(b"open('CANARY','w')")),
        (b"code", b"interact", b"N"),
        (b"functools", b"partial", b"N"),
        (b"sys", b"exit", b"K\3"),
        (b"os", b"_exit", b"K\3"),
        (b"os", b"abort", b"N"),
        (b"sae_training.config", b"os.system", _short_text(CANARY)),
        (b"torch._utils", b"_rebuild_tensor_v2", b"N"),
        (b"torch.storage", b"_load_from_bytes", b"C\4PK\3\4"),
        (b"torch.storage", b"_load_from_bytes", b"C\x05\x80\x02N.."),
        (b"collections", b"OrderedDict", b"K\3"),
        (b"builtins", b"set", b"K\3"),
        (b"builtins", b"bytearray", b"J\xff\xff\xff\x7f"),
        (b"builtins", b"bytes", b"J\xff\xff\xff\x7f"),
        (b"numpy", b"ndarray", b"J\xff\xff\xff\x7f"),
        (b"numpy", b"dtype", _short_text(b"O8")),
        (b"_codecs", b"encode", _short_text(b"x")),
    )
)
# Opcodes that make much out of little, or nothing that is whole.
BOMBS: tuple[bytes, ...] = (
    b"Nr\xff\xff\xff\x7f", b"Nr\xff\xff\xff\xff", b"\x96" + b"\xff" * 7 + b"\x7f", b"\x8e" + b"\xff" * 7 + b"\0",
    b"\x8d\0\0\0\x40\0\0\0\0", b"\x8b\xff\xff\xff\x7f", b"\x95" + b"\xff" * 8, b"B\xff\xff\xff\x7f",
    b"T\xff\xff\xff\x7f", b"\x84\xff\xff\xff\x7f", b"\x82\1",
    b"]" * 200_000, b"}" * 300_000, b"\x8f" * 300_000, b"(" * 300_000, b")" + b"\x85" * 300_000, b"N" + b"2" * 500_000,
    b"]2\x94" + b"2a" * 50_000, b"]2" + b"2" * 50_000 + b"e", b"X\1\0\0\0a" + b"2\x86" * 60, b"]\x94" + b"(2222e" * 40,
    b"cbuiltins\nset\n](" + b"K\1" * 20_000 + b"e\x94\x85R" + b"cbuiltins\nset\nh\0\x85R" * 5_000,
    b"I99999999\n", b"S'x'\n", b"P0\n", b"i os\nsystem\n", b"o", b"\x97", b"\x98", b"b", b"R", b"\x81", b"\x92",
    b"s", b"u", b"a", b"e", b"0" * 50, b"1" * 5, b"t", b"Q", b"h\xff", b".",
)  # fmt: skip


def _places(data: bytes) -> list[int]:
    """Where opcodes begin, in the pickles that stand one behind the other."""
    places, start = [], 0
    while start < len(data) and len(places) < 20_000:
        try:
            found = [start + int(at) for _, _, at in pickletools.genops(data[start:]) if at is not None]
        except Exception:  # damaged before
            break
        places += found
        start = found[-1] + 1
    return places or [0]


def in_pickle(data: bytes, rng: Rng) -> bytes:
    """Opcodes are added, deleted, changed, moved; a dangerous call or a bomb comes in."""
    if rng.random() < 0.9:
        data = re.sub(rb"\x95.{6}\0\0", b"", data, flags=re.DOTALL)  # a frame's length would only be found wrong
    places = _places(data)
    at, kind = _pick(rng, places), rng.random()
    if kind < 0.35:
        return data[:at] + _pick(rng, CALLS) + _pick(rng, (b"", b"0", b"0")) + data[at:]
    if kind < 0.45:
        return data[:at] + _pick(rng, BOMBS) + data[at:]
    following = [p for p in places if p > at][: int(rng.integers(1, 6))]
    end = following[-1] if following else len(data)
    if kind < 0.55:
        return data[:at] + data[end:]
    if kind < 0.65:
        return data[:end] + data[at:end] + data[end:]
    if kind < 0.75:
        to = _pick(rng, places)
        return data[:to] + data[at:end] + data[to:]
    if kind < 0.85 and (globals_ := list(re.finditer(rb"c[\w.]+\n[\w.]+\n", data))):
        match, call = _pick(rng, globals_), _pick(rng, CALLS)
        name = call[: call.index(b"\n", call.index(b"\n") + 1) + 1]
        return data[: match.start()] + name + data[match.end() :]
    if kind < 0.95:
        value = _pick(
            rng,
            (
                b"K\xff",
                b"M\xff\xff",
                b"J\xff\xff\xff\x7f",
                b"J\xff\xff\xff\xff",
                b"N",
                b"}",
                b")",
                b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
            ),
        )
        return data[:at] + value + data[end:]
    return data[:at] + bytes([int(rng.integers(256))]) + data[at + 1 :]


def in_gzip(data: bytes, rng: Rng) -> bytes:
    """What is packed changes, or is a bomb."""
    content = gzip.decompress(data)
    kind = rng.random()
    if kind < 0.06:
        size = _pick(rng, (64, 256)) << 20
        packed, crc = zeros_deflated(size)
        return data[:10] + packed + struct.pack("<2L", crc, size)
    if kind < 0.12:  # a valid beginning, then a bomb as a second member
        size = _pick(rng, (64, 256)) << 20
        packed, crc = zeros_deflated(size)
        return data + data[:10] + packed + struct.pack("<2L", crc, size)
    content = in_zip(content, rng) if content[:4] == b"PK\3\4" else in_pickle(content, rng)
    return gzip.compress(content, 1, mtime=0)


INFORMED: tuple[tuple[Callable[[str, bytes], bool], tuple[Mutation, ...]], ...] = (
    (lambda name, data: name.endswith(".safetensors"), (in_safetensors,)),
    (lambda name, data: data[:4] == b"PK\3\4", (in_zip,)),
    (lambda name, data: data[:6] == b"\x93NUMPY", (in_npy,)),
    (lambda name, data: data[:2] == b"\x1f\x8b", (in_gzip,)),
    (lambda name, data: data[:1] == b"\x80", (in_pickle,)),
    (lambda name, data: name.endswith(".json"), (json_value, renumber, nest)),
    (lambda name, data: data[:1] == b"{" and name.startswith(("_", "process_")), (json_value, renumber, nest)),
    (lambda name, data: name.endswith((".yaml", ".gguf")), (renumber, reword, nest, overwrite_length)),
)


def mutate(name: str, data: bytes, rng: Rng) -> tuple[bytes, list[str]]:
    """A damaged copy of a file, and how it was damaged."""
    informed = next((list(some) for fits, some in INFORMED if fits(name, data)), [])
    if informed and rng.random() < 0.65:
        chosen: list[Mutation] = [_pick(rng, informed)]
        more = int(rng.random() < 0.1)  # blind damage on top would mostly be found by a checksum
    else:
        chosen, more = [_pick(rng, BLIND)], int(rng.choice(4, p=(0.6, 0.25, 0.1, 0.05)))
    chosen += [_pick(rng, BLIND) for _ in range(more)]
    for mutation in chosen:
        data = mutation(data, rng)
    return data, [mutation.__name__ for mutation in chosen]

"""A file server for traced graphs: this machine only, files of one folder only.

It listens on 127.0.0.1, answers GET and HEAD, and checks the Host header, so that a page on the network cannot reach it
under another name (DNS rebinding). A path is split at its slashes before it is decoded, once; anything that could mean
another folder after that is refused. Nothing is listed but the graphs' own pages.
"""

import html
import os
import re
import stat
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote_to_bytes

from tcircuits.types import InputError
from tcircuits.view.graph_file import folder_of

PORT = 8041
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
}
# A page brings its own policy; every other file may do nothing at all should a browser open it.
_POLICIES = {".html": "frame-ancestors 'self'"}
_STRICT = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
_ENCODED = re.compile(r"%[0-9a-fA-F]{2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def serve(directory: str | Path, port: int = PORT) -> None:
    """Serves the graphs in `directory` on 127.0.0.1 until interrupted; of a file, the page of the graph in it.

    Raises:
        InputError: the folder does not exist, or neither it nor a folder in it holds an index.html; a file that is no
            graph.
        OSError: the port is taken.
    """
    with folder_of(directory) as folder, make_server(folder, port) as server:
        print(f"Serving {Path(directory)} at {address(server)} (Ctrl-C stops)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def make_server(directory: str | Path, port: int = PORT) -> ThreadingHTTPServer:
    """The bound server, not yet running; port 0 takes a free one. Raises as `serve`."""
    root = _checked(Path(directory))
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} is outside 0..65535")
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, root))
    server.daemon_threads = True
    return server


def address(server: ThreadingHTTPServer) -> str:
    """The address to open in a browser."""
    return f"http://127.0.0.1:{server.server_address[1]}/"


def _checked(directory: Path) -> Path:
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} {what}; give the folder that `tcircuits trace --out` wrote")
    if not (directory / "index.html").is_file() and not graph_folders(directory):
        raise InputError(f"{directory} holds no index.html; give the folder that `tcircuits trace --out` wrote")
    return directory.resolve()


def graph_folders(root: Path) -> list[str]:
    """Names of the folders in `root` that hold a page, sorted; hidden ones and links are left out."""
    return sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir(follow_symlinks=False)
        and not entry.name.startswith(".")
        and (Path(entry.path) / "index.html").is_file()
    )


def resolve(root: Path, target: str) -> Path | None:
    """The regular file under `root` that a request target names, or None.

    Refused: anything but `/segment/segment`, empty, hidden or dot segments, backslashes, control characters, and
    segments that decode to a slash or to something still encoded; links that lead out of `root`.
    """
    path = target.split("?", 1)[0].split("#", 1)[0]
    if not path.startswith("/") or "\\" in path or not path.isascii():
        return None
    raw = path[1:].split("/")
    if raw[-1] == "":
        raw[-1] = "index.html"
    segments = []
    for piece in raw:
        try:
            segment = unquote_to_bytes(piece).decode()
        except UnicodeDecodeError:
            return None
        if not segment or segment.startswith((".", "~")) or _CONTROL.search(segment) or _ENCODED.search(segment):
            return None
        if any(c in segment for c in '/\\:*?"<>|'):
            return None
        segments.append(segment)
    return _within(root, segments)


def _within(root: Path, segments: list[str]) -> Path | None:
    """The regular file at the end of the segments, when no step on the way, links followed, is outside or hidden."""
    found = root
    try:
        for segment in segments:
            found = (found / segment).resolve(strict=True)
            if not found.is_relative_to(root) or any(p.startswith(".") for p in found.relative_to(root).parts):
                return None
        return found if stat.S_ISREG(found.stat().st_mode) else None
    except (OSError, RuntimeError, ValueError):
        return None


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; `root` is resolved, so a resolved file can be compared with it."""

    server_version = "tcircuits"
    sys_version = ""
    timeout = 30

    def __init__(self, root: Path, *args: Any) -> None:
        self.root = root
        super().__init__(*args)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        if not self._host_is_local():
            return self._say(HTTPStatus.MISDIRECTED_REQUEST, "This server answers on 127.0.0.1 only.", body)
        found = resolve(self.root, self.path)
        if found is not None:
            return self._send_file(found, body)
        if self.path in ("/", "/index.html"):
            return self._send(_index_page(self.root).encode(), ".html", body)
        if self.path == "/favicon.ico":
            return self._say(HTTPStatus.NO_CONTENT, "", body)
        return self._say(HTTPStatus.NOT_FOUND, "No such file.", body)

    def _host_is_local(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        port = self.connection.getsockname()[1]
        allowed = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        return len(hosts) == 1 and hosts[0].strip().lower() in allowed

    def _send_file(self, found: Path, body: bool) -> None:
        try:
            file = _open_regular(found)
        except OSError:
            return self._say(HTTPStatus.NOT_FOUND, "No such file.", body)
        with file:
            self._send(file.read(), found.suffix.lower(), body)

    def _send(self, content: bytes, suffix: str, body: bool, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", _TYPES.get(suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICIES.get(suffix, _STRICT))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _say(self, status: HTTPStatus, text: str, body: bool) -> None:
        self._send(text.encode(), ".txt", body, status)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: one line per request helps nobody who looks at a page."""


def _open_regular(found: Path) -> BinaryIO:
    """Opens a resolved path; a link or pipe that took its place in the meantime is refused."""
    handle = os.open(found, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{found} is no regular file")
    return os.fdopen(handle, "rb")


def _index_page(root: Path) -> str:
    """Links to the graphs, where the folder holds several and no page of its own."""
    items = "\n".join(
        f'<li><a href="/{quote(name, safe="")}/index.html"><bdi>{html.escape(name)}</bdi></a></li>'
        for name in graph_folders(root)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>Graphs</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'"></head>
<body><h1>Graphs</h1><ul>
{items}
</ul></body></html>
"""

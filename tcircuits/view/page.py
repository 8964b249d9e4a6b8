"""The page: one HTML file that shows a graph, opens from disk, and can reach no network.

The page's sources are in `static/` and are put together here. Text from the graph enters as JSON inside a data block
with `<`, `>`, `&` and all non-ASCII characters escaped, and leaves it through `textContent` only. The
Content-Security-Policy allows this one script and this one style sheet, by their hashes, and nothing else.

>>> graph = {"metadata": {"slug": "s", "scan": "m", "prompt_tokens": ["a"], "prompt": "a"}, "qParams": {}, "links": [],
...          "nodes": [{"node_id": "E_0_0", "feature": 0, "layer": "E", "ctx_idx": 0, "feature_type": "embedding",
...                     "jsNodeId": "E_0-0", "clerp": ""}]}
>>> render(graph).startswith("<!doctype html>")
True
"""

import base64
import hashlib
import html
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

# In order of use: each file may call what stands before it.
SCRIPTS = (
    "text.js",
    "model.js",
    "influence.js",
    "state.js",
    "layout.js",
    "paint.js",
    "picture.js",
    "linkgraph.js",
    "detail.js",
    "subgraph.js",
    "subgraphview.js",
    "exports.js",
    "header.js",
    "main.js",
)
_MAX_PROBLEMS = 8
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def render(graph_json: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> str:
    """The page for a graph in the viewers' JSON form (`metadata`, `qParams`, `nodes`, `links`).

    Args:
        graph_json: the graph; files of other tools, old error ids and repeated ids are shown too.
        extra: entries for `metadata.tcircuits` (model, scores, shares), over those that are there.

    Raises:
        ValueError: the graph lacks what the page needs; all problems in one message.
    """
    check_graph(graph_json)
    if extra:
        metadata = dict(graph_json["metadata"])
        metadata["tcircuits"] = {**(metadata.get("tcircuits") or {}), **extra}
        graph_json = {**graph_json, "metadata": metadata}
    return filled("template.html", ("style.css",), SCRIPTS, graph_json)


def filled(template: str, styles: tuple[str, ...], scripts: tuple[str, ...], data: Mapping[str, Any]) -> str:
    """A page of the sources named, with its data.

    Raises:
        ValueError: data that JSON cannot say.
    """
    frame, style, script = _sources(template, styles, scripts)
    parts = {"policy": _policy(style, script), "style": style, "script": script, "graph": _data(data)}
    pieces = frame.split("{{")
    found = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        found += [parts[name], rest]
    return "".join(found)


def write_page(graph_json: Mapping[str, Any], path: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
    """Writes `render(graph_json, extra)` to `path`, whole or not at all, and returns the path.

    Raises:
        ValueError: as `render`.
        OSError: the folder does not exist or cannot be written.
    """
    return write_html(render(graph_json, extra), path)


def write_html(text: str, path: str | Path) -> Path:
    """Writes a page to `path`, whole or not at all, and returns the path.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def html_fragment(graph_json: Mapping[str, Any], extra: Mapping[str, Any] | None = None, *, height: int = 760) -> str:
    """The page inside a frame, for a notebook's output cell; `height` in pixels.

    The frame is sandboxed: its script runs, but has no origin, so it reaches neither the notebook nor its server.
    """
    source = html.escape(render(graph_json, extra), quote=True)
    return (
        f'<iframe srcdoc="{source}" sandbox="allow-scripts allow-downloads" title="Attribution graph" '
        f'style="width:100%;height:{int(height)}px;border:0"></iframe>'
    )


def check_graph(graph_json: Any) -> None:
    """Raises ValueError with what is wrong when the page could not show this graph."""
    problems = []
    for problem in _problems(graph_json):
        if len(problems) == _MAX_PROBLEMS:
            problems.append("...")
            break
        problems.append(problem)
    if problems:
        raise ValueError("this is no attribution graph that the page can show:\n  " + "\n  ".join(problems))


def _problems(graph: Any) -> Iterator[str]:
    if not isinstance(graph, Mapping):
        yield f"it is a {type(graph).__name__}; an object with metadata, qParams, nodes and links is needed"
        return
    for name, kind in (("metadata", Mapping), ("nodes", list), ("links", list)):
        if not isinstance(graph.get(name), kind):
            yield f"{name!r} is missing or is no {'object' if kind is Mapping else 'list'}"
    if isinstance(graph.get("nodes"), list):
        yield from _node_problems(graph["nodes"])
    if isinstance(graph.get("links"), list):
        yield from _link_problems(graph["links"])


def _node_problems(nodes: list[Any]) -> Iterator[str]:
    for i, node in enumerate(nodes):
        if not isinstance(node, Mapping):
            yield f"nodes[{i}] is a {type(node).__name__}, not an object"
            continue
        missing = [key for key in ("node_id", "layer", "ctx_idx", "feature_type") if key not in node]
        if missing:
            yield f"nodes[{i}] has no {', '.join(missing)}"
        elif not isinstance(node["node_id"], str):
            yield f"nodes[{i}].node_id is {node['node_id']!r}; a string is needed"
        elif not isinstance(node["ctx_idx"], int) or node["ctx_idx"] < 0:
            yield f"nodes[{i}].ctx_idx is {node['ctx_idx']!r}; a position (0, 1, ...) is needed"


def _link_problems(links: list[Any]) -> Iterator[str]:
    for i, link in enumerate(links):
        if not isinstance(link, Mapping) or not {"source", "target", "weight"} <= link.keys():
            yield f"links[{i}] has no source, target and weight"
        elif not isinstance(link["weight"], int | float) or not math.isfinite(link["weight"]):
            yield f"links[{i}].weight is {link['weight']!r}; a finite number is needed"


@cache
def _sources(template: str, styles: tuple[str, ...], scripts: tuple[str, ...]) -> tuple[str, str, str]:
    """Template, style sheet and script, with the line ends that the hashes are made of."""
    folder = resources.files("tcircuits.view") / "static"

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8").replace("\r\n", "\n")

    body, style = "\n".join(map(read, scripts)), "\n".join(map(read, styles))
    return read(template), style, f'\n(() => {{\n"use strict";\n\n{body}\n}})();\n'


def _policy(style: str, script: str) -> str:
    """The Content-Security-Policy: nothing but this script and this style; text cannot become markup."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {digest(script)}",
            f"style-src {digest(style)}",
            "connect-src 'none'",
            "img-src 'none'",
            "font-src 'none'",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _data(graph_json: Mapping[str, Any]) -> str:
    """The graph as JSON that can stand inside a script element."""
    try:
        text = json.dumps(graph_json, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the graph holds what JSON cannot say ({error}); numbers must be finite") from error
    return text.translate(_ESCAPES)

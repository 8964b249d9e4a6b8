"""The web page that shows a graph, and the loopback server for it."""

from tcircuits.view.page import html_fragment, render, write_page
from tcircuits.view.server import make_server, serve

__all__ = ["html_fragment", "make_server", "render", "serve", "write_page"]

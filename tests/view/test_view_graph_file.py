"""`tcircuits view FILE`: the page of a graph file, served from a folder that is gone afterwards."""

import threading
import urllib.request
from pathlib import Path

import pytest

from tcircuits.attribution.graph_io import load_graph, save_graph
from tcircuits.attribution.prune import prune
from tcircuits.types import InputError
from tcircuits.view import server
from tcircuits.view.graph_file import folder_of

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "circuit_tracer_graphs"


@pytest.mark.parametrize("name", ["graph.pt", "graph.npz"])
def test_the_page_shows_the_graph_of_the_file(name, tmp_path):
    graph, path = prune(load_graph(GOLDEN / "plt.pt")), tmp_path / name
    if name.endswith(".npz"):
        save_graph(graph.compact(), path)
    else:
        path.write_bytes((GOLDEN / "plt.pt").read_bytes())
    with folder_of(path) as folder:
        page = (folder / "index.html").read_text(encoding="utf-8")
        assert page.count('"weight":') == graph.edge_mask.sum()
        assert "w0 w5 w11 w3" in page
    assert not folder.exists()
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing is written beside the file"


def test_a_folder_is_served_as_it_is(tmp_path):
    with folder_of(tmp_path) as folder:
        assert folder == tmp_path


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes((GOLDEN / "plt.pt").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"is a file; give the folder that .* or a graph: .*damaged"):
        server.serve(path)


def test_serve_answers_with_the_page_of_a_file(monkeypatch):
    asked = []

    def answer_once(self):
        def ask():
            with urllib.request.urlopen(server.address(self), timeout=5) as response:
                asked.append(response.read())

        thread = threading.Thread(target=ask)
        thread.start()
        self.handle_request()
        thread.join()

    monkeypatch.setattr(server.ThreadingHTTPServer, "serve_forever", answer_once)
    server.serve(GOLDEN / "plt.pt", 0)
    assert b"w0 w5 w11 w3" in asked[0]

"""The server: files of one folder, asked for by this machine under its own name, and nothing else."""

import http.client
import os
import socket
import threading

import pytest

from tcircuits.view.server import make_server

SECRET = b"secret"


@pytest.fixture
def served(tmp_path):
    """A folder with a page, files that may be read, and several ways out of it."""
    root = tmp_path / "graphs"
    (root / "sub").mkdir(parents=True)
    (root / "index.html").write_text("<!doctype html><title>page</title>")
    (root / "graph.json").write_text("{}")
    (root / "sub" / "graph.npz").write_bytes(b"\x00\x01")
    (root / "a b ü.json").write_text("[]")
    (root / "twice%41.json").write_bytes(SECRET)  # only a name that is encoded twice leads here
    (root / ".hidden").write_bytes(SECRET)
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "graphs-two").mkdir()
    (tmp_path / "graphs-two" / "secret.txt").write_bytes(SECRET)
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "outdir").symlink_to(tmp_path)
    (root / "in.json").symlink_to(root / "graph.json")
    (root / "to-hidden.txt").symlink_to(root / ".hidden")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe.txt")
    yield from running(root)


def running(root):
    server = make_server(root, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, target, method="GET", host=None):
    """One request with the target exactly as given."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


@pytest.mark.parametrize(
    ("target", "kind", "body"),
    [
        ("/", "text/html; charset=utf-8", b"<!doctype html><title>page</title>"),
        ("/?x=/../..", "text/html; charset=utf-8", b"<!doctype html><title>page</title>"),
        ("/graph.json", "application/json; charset=utf-8", b"{}"),
        ("/sub/graph.npz", "application/octet-stream", b"\x00\x01"),
        ("/a%20b%20%C3%BC.json", "application/json; charset=utf-8", b"[]"),
        ("/in.json", "application/json; charset=utf-8", b"{}"),
    ],
)
def test_files_of_the_folder_are_served_with_their_types(served, target, kind, body):
    response, got = ask(served, target)
    assert (response.status, response.headers["Content-Type"], got) == (200, kind, body)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert not any(name.lower().startswith("access-control") for name in response.headers)


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/sub/../graph.json",
        "/%2e%2e/secret.txt",
        "/.%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/%252e%252e/secret.txt",
        "/%252e%252e%252fsecret.txt",
        "/twice%2541.json",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/../graphs-two/secret.txt",
        "//secret.txt",
        "/{absolute}",
        "{absolute}",
        "/%2f{absolute}",
        "http://127.0.0.1/graph.json",
        "file://{absolute}",
        "/out.txt",
        "/outdir/secret.txt",
        "/outdir/graphs/graph.json",
        "/to-hidden.txt",
        "/loop",
        "/pipe.txt",
        "/.hidden",
        "/sub",
        "/sub/",
        "/graph.json/",
        "/graph.json%00.html",
        "/%ff%fe",
        "/./graph.json",
        "/none.json",
    ],
)
def test_everything_else_is_not_found(served, tmp_path, target):
    absolute = str(tmp_path / "secret.txt")
    response, body = ask(served, target.replace("{absolute}", absolute))
    assert response.status == 404
    assert SECRET not in body


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1.evil.example:{port}", "127.0.0.1:1", "[::1]:{port}"]
)
def test_another_name_for_this_machine_is_refused(served, host):
    response, body = ask(served, "/", host=host.format(port=served.server_address[1]))
    assert response.status == 421
    assert b"title" not in body


def test_localhost_is_a_name_for_this_machine(served):
    assert ask(served, "/", host=f"localhost:{served.server_address[1]}")[0].status == 200


@pytest.mark.parametrize("head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"])
def test_a_request_without_one_host_is_refused(served, head):
    with socket.create_connection(("127.0.0.1", served.server_address[1]), timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(200).split(b" ")[1] == b"421"


def test_head_sends_the_headers_only_and_writing_is_not_offered(served):
    response, body = ask(served, "/graph.json", "HEAD")
    assert (response.status, response.headers["Content-Length"], body) == (200, "2", b"")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(served, "/graph.json", method)[0].status == 501


def test_it_listens_on_loopback_only(served):
    assert served.server_address[0] == "127.0.0.1"


def test_a_folder_of_graphs_gets_an_index_with_escaped_names(tmp_path):
    for name in ("b&<b>", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text(name)
    (tmp_path / "empty").mkdir()
    server = running(tmp_path)
    first = next(server)
    response, body = ask(first, "/")
    assert response.status == 200
    assert b'<a href="/a/index.html">' in body
    assert b"<b>" not in body
    assert b"b&amp;&lt;b&gt;" in body
    assert b"empty" not in body
    assert ask(first, "/a/index.html")[1] == b"a"
    assert ask(first, "/a/")[1] == b"a"
    server.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text(""), "is a file"),
        (lambda path: path.mkdir(), "holds no index.html"),
    ],
)
def test_a_folder_without_a_page_is_refused_before_binding(tmp_path, make, says, monkeypatch):
    monkeypatch.setattr(socket.socket, "bind", lambda *_: pytest.fail("bound"))
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=says):
        make_server(tmp_path / "x", 0)

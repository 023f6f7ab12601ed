"""The page's server against clients that are late, wrong, many or from elsewhere; its model is a stand-in."""

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from attneck import cli
from attneck.commands import serve
from attneck.errors import UserError
from attneck.serve import gallery as galleries
from attneck.serve import server as servers
from attneck.serve.gallery import Gallery
from attneck.serve.page import document
from attneck.serve.server import MOST_BYTES, open_server, serving


class StandIn:
    """Sees the image's size."""

    def told(self):
        return {"name": "</script><b>stand-in", "note": ""}

    def see(self, image):
        if image.size == (3, 3):
            raise ValueError("the model does not take it")
        return Seen(image.size)


class Seen:
    def __init__(self, size):
        self.size = size

    def told(self):
        return {"size": self.size}

    def rows(self, cells):
        if cells == [(9, 9)]:
            raise ValueError("row y=9 is not on the map")
        if cells == [(8, 8)]:
            raise RuntimeError("a fault")
        return repr(cells).encode()


@pytest.fixture(scope="module")
def port():
    server = open_server(Gallery([StandIn()]), 0)
    with serving(server):
        yield server.server_port


def ask(port, method, path, body=None, headers=None):
    """Status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        found = connection.getresponse()
        return found.status, found.headers, found.read()
    finally:
        connection.close()


def raw(port, data, *, more=b"", after=0.0):
    """The status line and the rest of what comes back to bytes that need be no request."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(data)
        if after:
            time.sleep(after)
        client.sendall(more)
        found = b""
        while part := client.recv(1 << 16):
            found += part
    return found


def picture(size=(40, 30), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


def refused(answer, status):
    """The sentence of a refusal."""
    assert answer[0] == status, answer
    assert answer[1]["Content-Type"] == "application/json"
    return json.loads(answer[2])["error"]


def test_an_image_is_seen(port):
    status, _, body = ask(port, "POST", "/image", picture())
    key = json.loads(body)["image"]
    assert (status, json.loads(body)) == (200, {"image": key, "width": 40, "height": 30})
    assert json.loads(ask(port, "GET", f"/look?image={key}&model=0")[2]) == {"size": [40, 30]}
    assert ask(port, "GET", f"/rows?image={key}&model=0&at=3,4;5,6")[2] == b"[(3, 4), (5, 6)]"
    photo = ask(port, "GET", f"/photo?image={key}")
    assert photo[1]["Content-Type"] == "image/jpeg"
    assert Image.open(io.BytesIO(photo[2])).size == (40, 30)
    assert "not on the map" in refused(ask(port, "GET", f"/rows?image={key}&model=0&at=9,9"), 400)
    assert "no model 1" in refused(ask(port, "GET", f"/look?image={key}&model=1"), 404)


def test_the_page_is_one_document_that_reaches_nothing_else(port):
    status, headers, body = ask(port, "GET", "/")
    page, policy = body.decode(), headers["Content-Security-Policy"]
    assert status == 200
    assert "<!--" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.count("</script>") == 2, "a model's name ends no element"
    assert ask(port, "HEAD", "/")[2] == b""
    for name in ("Cross-Origin-Resource-Policy", "X-Content-Type-Options", "X-Frame-Options"):
        assert headers[name]
    assert "connect-src" not in document({}, alone=True)[1]


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "//etc/passwd",
        "/%2e%2e/etc/passwd",
        "/page.js",
        "/photo?image=../../etc/passwd",
        "/image",
        "/?",
        "/photo",
    ],
)
def test_no_file_has_an_address(port, path):
    found = ask(port, "GET", path)
    assert found[0] in (404, 410) or path == "/?"
    assert b"root:" not in found[2]


@pytest.mark.parametrize(
    "host",
    [
        "attacker.example",
        "attacker.example:8765",
        "127.0.0.1.attacker.example",
        "localhost@attacker.example",
        "",
        "127.0.0.1:8765:1",
        "0.0.0.0",
    ],
)
def test_a_foreign_host_is_refused(port, host):
    assert "127.0.0.1 and localhost alone" in refused(ask(port, "GET", "/", headers={"Host": host}), 421)
    assert refused(ask(port, "POST", "/image", picture(), {"Host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9"])
def test_this_machines_names_are_not(port, host):
    assert ask(port, "GET", "/", headers={"Host": host})[0] == 200


def test_two_hosts_are_refused(port):
    assert raw(
        port, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: attacker.example\r\nConnection: close\r\n\r\n"
    ).startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://attacker.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "https://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
    ids=str,
)
def test_another_origin_may_not_post(port, headers):
    assert "another site" in refused(ask(port, "POST", "/image", picture(), headers), 403)


def test_another_site_may_link_to_the_page_and_no_more(port):
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(port, "GET", "/", headers=linked)[0] == 200
    assert refused(ask(port, "GET", "/photo?image=x", headers=linked), 403)
    assert refused(ask(port, "GET", "/", headers={"Sec-Fetch-Site": "cross-site"}), 403)
    own = {"Sec-Fetch-Site": "same-origin", "Origin": f"http://127.0.0.1:{port}"}
    assert ask(port, "POST", "/image", picture(), own)[0] == 200


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"just some words", "is none of JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n", "cannot read the file"),
        (picture()[:60], "cannot read the file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is none of"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is none of"),
    ],
    ids=["text", "signature", "broken off", "PostScript", "SVG"],
)
def test_what_is_no_image_is_refused_in_a_sentence(port, data, says):
    said = refused(ask(port, "POST", "/image", data), 415)
    assert says in said
    assert said.endswith("choose an image")
    assert "/" not in said, "no path of this machine"


def test_too_many_pixels_and_too_many_bytes_are_refused(port, monkeypatch):
    monkeypatch.setattr(galleries, "MAX_PIXELS", 1000)
    assert "over 1,000 pixels" in refused(ask(port, "POST", "/image", picture()), 413)
    monkeypatch.undo()
    assert "a side of over 65,500 pixels" in refused(ask(port, "POST", "/image", picture((65_501, 1))), 413)
    key = json.loads(ask(port, "POST", "/image", picture((65_500, 1)))[2])["image"]
    assert ask(port, "GET", f"/photo?image={key}")[0] == 200
    assert "32.0 at most" in refused(ask(port, "POST", "/image", b"\0" * (MOST_BYTES + 1)), 413)


@pytest.mark.parametrize(
    "length",
    [
        b"",
        b"Content-Length: -1\r\n",
        b"Content-Length: many\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ],
)
def test_an_upload_says_its_length(port, length):
    found = raw(
        port,
        b"POST /image HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n5\r\nhello\r\n0\r\n\r\n",
    )
    assert found.startswith(b"HTTP/1.1 411")
    assert found.count(b"HTTP/1.1") == 1, "the body is no next request"


def test_an_empty_one_is_refused(port):
    assert "empty" in refused(ask(port, "POST", "/image", b""), 400)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"\0\1\2\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET //[ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /?" + b"a=1&" * 20 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
)
def test_a_malformed_request_is_answered_and_forgotten(port, data, capfd):
    found = raw(port, data)
    assert b"<html" not in found.lower()
    assert b" 200 " not in found[:20] or data.startswith(b"GET /?")
    assert ask(port, "GET", "/")[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "at", ["", "1", "1,", "a,b", "-1,2", "1,2;", "1,2;;3,4", "9" * 10 + ",1", ";".join(["1,1"] * 300)]
)
def test_places_that_are_none_are_refused(port, at):
    key = json.loads(ask(port, "POST", "/image", picture())[2])["image"]
    found = ask(port, "GET", f"/rows?image={key}&model=0&at={at}")
    assert found[0] == 400 or (at == "" and found[2] == b"[]")


def test_a_fault_is_told_in_the_terminal_and_as_a_sentence(port, capfd):
    key = json.loads(ask(port, "POST", "/image", picture())[2])["image"]
    assert "fault of the program" in refused(ask(port, "GET", f"/rows?image={key}&model=0&at=8,8"), 500)
    assert "RuntimeError: a fault" in capfd.readouterr().err
    key = json.loads(ask(port, "POST", "/image", picture((3, 3)))[2])["image"]
    assert "fault of the program" in refused(ask(port, "GET", f"/look?image={key}&model=0"), 500)
    assert "ValueError: the model does not take it" in capfd.readouterr().err


def test_an_image_that_is_gone_says_so(port):
    first = json.loads(ask(port, "POST", "/image", picture())[2])["image"]
    for _ in range(galleries.MOST_IMAGES):
        ask(port, "POST", "/image", picture())
    assert "choose it again" in refused(ask(port, "GET", f"/look?image={first}&model=0"), 410)


def test_two_hundred_at_once_are_all_answered(port):
    key = json.loads(ask(port, "POST", "/image", picture())[2])["image"]
    start = threading.Barrier(200)

    def one(number):
        start.wait()
        if number % 20 == 0:
            return ask(port, "POST", "/image", picture())[0] == 200
        return ask(port, "GET", f"/rows?image={key}&model=0&at={number},1")[2] == f"[({number}, 1)]".encode()

    # The images that come meanwhile must not push the first one out.
    galleries_most = galleries.MOST_IMAGES
    galleries.MOST_IMAGES = 100
    try:
        with ThreadPoolExecutor(200) as many:
            assert all(many.map(one, range(200)))
    finally:
        galleries.MOST_IMAGES = galleries_most


def test_slow_clients_keep_nobody_waiting_and_are_left(port, monkeypatch):
    assert servers.Handler.timeout == servers.SILENCE
    monkeypatch.setattr(servers.Handler, "timeout", 0.5)
    head = f"POST /image HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(picture())}\r\n\r\n".encode()
    slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(20)]
    for client in slow[:10]:
        client.sendall(b"GET / HT")
    for client in slow[10:13]:
        client.sendall(head + b"\x89PNG")
    began = time.monotonic()
    assert ask(port, "POST", "/image", picture())[0] == 200
    assert time.monotonic() - began < 5
    for client in slow[10:13]:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 408")
    for client in slow:
        with client:
            while client.recv(1 << 16):
                pass


def test_an_upload_that_never_ends_is_left(port, monkeypatch):
    monkeypatch.setattr(servers, "PATIENCE", 0.3)
    head = b"POST /image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    found = raw(port, head + b"\x89", more=b"P", after=0.5)
    assert found.startswith(b"HTTP/1.1 408")
    assert b"took over" in found


def test_a_client_that_goes_away_is_no_news(port, capfd):
    for data in (b"", b"GET", b"POST /image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(data)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no end
    time.sleep(0.2)
    assert ask(port, "GET", "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_connection_serves_many_requests(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for path, status in (("/", 200), ("/none", 404), ("/", 200)):
        connection.request("GET", path)
        found = connection.getresponse()
        assert (found.status, bool(found.read())) == (status, True)
        assert connection.sock is not None
    connection.close()


def test_a_busy_port_is_answered_with_the_next(port):
    with serving(second := open_server(Gallery([StandIn()]), port)):
        assert port < second.server_port < port + servers.PORTS
        assert ask(second.server_port, "GET", "/")[0] == 200


def test_it_answers_on_loopback_alone(port):
    own = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    others = own - {"127.0.0.1"} | ({"127.0.0.2"} if sys.platform == "linux" else set())
    for address in others:
        with pytest.raises(ConnectionRefusedError), socket.create_connection((address, port), timeout=2):
            pass


def test_no_port_left_is_a_line(port, monkeypatch):
    monkeypatch.setattr(servers, "PORTS", 1)
    with pytest.raises(UserError, match=f"--port {port}: none of the ports"):
        open_server(Gallery([StandIn()]), port)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve"], "no model given, and no run with a checkpoint in runs/"),
        (["serve", "botnte50"], "perhaps you meant 'botnet50'"),
        (["serve", "botnet50", "--port", "70000"], "--port 70000: give 1 to 65535"),
        (["serve", "botnet50", "--checkpoint", "best"], "--checkpoint is about runs"),
        (["serve", "nowhere/"], "no model or run is called"),
    ],
)
def test_a_mistake_is_one_line(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_without_a_model_it_is_the_newest_run_s(tmp_path, monkeypatch, capsys):
    """The one that saved last, whatever its folder's own time, and of those alone that are runs."""
    for age, name in enumerate(["newest", "older", "no-run"]):
        folder = tmp_path / "runs" / name / "checkpoints"
        folder.mkdir(parents=True)
        for step in (1, 2):
            (folder / f"step-0000000{step}.pt").touch()
            os.utime(folder / f"step-0000000{step}.pt", (0, 1000 * (2 - age) + step))
        if name != "no-run":
            (folder.parent / "recipe.yaml").touch()
    (tmp_path / "runs/has-saved-nothing").mkdir()
    (tmp_path / "runs/has-saved-nothing/recipe.yaml").touch()
    os.utime(tmp_path / "runs/no-run/checkpoints/step-00000002.pt")
    shown = []

    def viewer(model, image_size, which):
        shown.append((model, which))
        raise UserError("seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "viewer", viewer)
    assert cli.main(["serve"]) == 2
    assert (shown, capsys.readouterr().err) == ([("runs/newest", "newest")], "attneck: seen\n")


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_it(number, code, tmp_path):
    """In the middle of an upload; the model, which would take torch's time to load, is a stand-in."""
    program = (
        "import sys, types\n"
        "from attneck import cli\n"
        "class StandIn:\n"
        "    def told(self): return {'name': 'x', 'note': ''}\n"
        "stand_in = types.SimpleNamespace(Network=lambda viewer, name: StandIn())\n"
        "sys.modules['attneck.serve.network'] = stand_in\n"
        "from attneck.commands import serve\n"
        "serve.viewer = lambda *words: None\n"
        "sys.argv = ['attneck', 'serve', 'botnet50', '--port', '0']\n"
        "sys.exit(cli.main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        said = process.stdout.readline()
        port = int(said.split("/")[2].split(":")[1])
        assert "botnet50" in said
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            process.send_signal(getattr(signal, number))
            out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out) == (code, "")
    assert err == f"attneck: stopped by {number}\n"
    assert os.listdir(tmp_path) == []


def test_a_box_is_the_one_that_was_found_and_its_mask_s_is_of_whole_pixels():
    from attneck.serve.looks import objects_of

    masks = torch.zeros(1, 1, 30, 48)
    masks[0, 0, 22:29, 32:45] = 1
    found = {
        "boxes": torch.tensor([[30.6, 21.1, 45.4, 30.0]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.9]),
        "masks": masks,
    }
    (row,) = objects_of(found, ["disc"], (48, 30))
    assert row["box"] == pytest.approx([30.6 / 48, 21.1 / 30, 14.8 / 48, 8.9 / 30])
    mask = row["mask"]
    assert mask["box"] == pytest.approx([30 / 48, 21 / 30, 16 / 48, 9 / 30])
    bits = np.unpackbits(np.frombuffer(base64.b64decode(mask["bits"]), np.uint8))[: 16 * 9].reshape(9, 16)
    assert (bits == masks[0, 0, 21:30, 30:46].numpy()).all()

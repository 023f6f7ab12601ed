"""The page's server: the standard library's, on loopback, with a bound on everything that comes in.

A page of another site can reach a server on loopback through the visitor's browser. So a Host that is no name
of this machine is refused, since it is how a rebound DNS name shows itself, and so is what another origin
sends. No path of a request is ever a path of a file.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from attneck.errors import UserError
from attneck.serve.gallery import Gallery, Refused
from attneck.serve.page import document

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = "127.0.0.1"
NAMES = {ADDRESS, "localhost"}
"""What a Host may say; any port, so that the page can be forwarded through SSH."""

PORTS = 20
"""So many ports are tried, one after the other."""

MOST_BYTES = 32_000_000
"""Of an upload."""
UPLOADS = 4
"""Uploads that are in memory at a time; others wait."""
SILENCE = 10.0
"""Seconds that a client may say nothing in the middle of a request, or between two."""
PATIENCE = 60.0
"""Seconds that an upload may take, or wait for its turn."""

PLACES = re.compile(r"(\d{1,5},\d{1,5}(;\d{1,5},\d{1,5}){0,255})?")
"""y,x;y,x…"""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer."""


class Body(NamedTuple):
    """What an answer brings."""

    kind: str
    content: bytes
    policy: str = "default-src 'none'"


class Server(ThreadingHTTPServer):
    """Answers for one gallery, a thread a connection. `port` 0 is any that is free.

    Raises OSError where the port is taken.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, gallery: Gallery, port: int) -> None:
        self.gallery = gallery
        html, policy = document({"live": True, "most_bytes": MOST_BYTES, "models": gallery.models()})
        self.page = Body("text/html; charset=utf-8", html.encode(), policy)
        self.uploads = threading.BoundedSemaphore(UPLOADS)
        super().__init__((ADDRESS, port), Handler)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Without the look-up of the machine's name, which may go to the network."""
        self.allow_reuse_address = sys.platform != "win32"  # there it would share a busy port
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def open_server(gallery: Gallery, port: int) -> Server:
    """On `port`, or the next that is free.

    Raises:
        UserError: none of the ports is.
    """
    tried = range(port, min(port + PORTS, 1 << 16)) if port else (0,)
    for number in tried:
        try:
            return Server(gallery, number)
        except OSError as error:
            reason = error.strerror or str(error)
    raise UserError(
        f"--port {port}: none of the ports {tried[0]} to {tried[-1]} can be had ({reason}): give another"
    )


@contextmanager
def serving(server: Server) -> Iterator[None]:
    """Inside it the server answers, from a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        server.gallery.close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "attneck", ""
    timeout = SILENCE
    body_read = False

    def do_GET(self) -> None:
        self._answer(self._got)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        self._answer(self._sent)

    def _answer(self, find: Callable[[str, dict[str, str]], Body]) -> None:
        """Writes what `find` gives for the path and the query, or the sentence why there is nothing."""
        try:
            self._check_origin()
            try:
                url = urlsplit(self.path)
                query = {key: values[-1] for key, values in parse_qs(url.query, max_num_fields=8).items()}
            except ValueError:  # a URL that is none, or too many fields
                raise Refused(400, "that is no address of this page") from None
            body = find(url.path, query)
        except Refused as refused:
            return self._refuse(refused.status, refused.said)
        except ConnectionError:
            raise
        except TimeoutError:
            return self._refuse(408, f"nothing came for {SILENCE:.0f} seconds: send it again")
        except MemoryError:
            return self._refuse(507, "there is not enough memory for this image: choose a smaller one")
        except Exception:
            traceback.print_exc()
            return self._refuse(500, "that is a fault of the program: the lines in its terminal say where")
        self._write(200, body)

    def _got(self, path: str, query: dict[str, str]) -> Body:
        """What a GET asks for."""
        gallery = self.server.gallery
        if path == "/":
            return self.server.page
        if path == "/photo":
            return Body("image/jpeg", gallery.photo(query.get("image", "")))
        if path == "/look":
            return _json(gallery.look(query.get("image", ""), _number(query, "model")))
        if path == "/rows":
            places = query.get("at", "")
            if not PLACES.fullmatch(places):
                raise Refused(400, "at= wants places: y,x;y,x…, one for each block")
            cells = [(int(y), int(x)) for y, _, x in (one.partition(",") for one in places.split(";") if one)]
            rows = gallery.rows(query.get("image", ""), _number(query, "model"), cells)
            return Body("application/octet-stream", rows)
        raise Refused(404, "there is nothing at this address")

    def _sent(self, path: str, query: dict[str, str]) -> Body:
        """What a POST brings: an image."""
        if path != "/image":
            raise Refused(404, "there is nothing at this address")
        length = self.headers.get_all("Content-Length", [])
        if len(length) != 1 or not re.fullmatch(r"\d{1,15}", length[0]):
            raise Refused(411, "the request does not say how long the image is")
        size = int(length[0])
        if size > MOST_BYTES:
            raise Refused(
                413,
                f"the file has {size / 1e6:,.1f} MB, {MOST_BYTES / 1e6:,.1f} at most: choose a smaller one",
            )
        if not size:
            raise Refused(400, "the file is empty: choose another")
        if not self.server.uploads.acquire(timeout=PATIENCE):
            raise Refused(503, "too many images come at once: send it again")
        try:
            return _json(self.server.gallery.add(self._read(size)))
        finally:
            self.server.uploads.release()

    def _read(self, size: int) -> bytes:
        """The body, of so many bytes."""
        until, parts, missing = time.monotonic() + PATIENCE, [], size
        while missing:
            part = self.rfile.read1(min(missing, 1 << 16))
            if not part:
                raise Refused(400, "the image broke off on its way: send it again")
            if time.monotonic() > until:
                raise Refused(408, f"the image took over {PATIENCE:.0f} seconds to come: send it again")
            parts.append(part)
            missing -= len(part)
        self.body_read = True
        return b"".join(parts)

    def _check_origin(self) -> None:
        """Raises Refused for what a page of another site sends, or reads by a name of its own."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or _without_port(hosts[0]) not in NAMES:
            raise Refused(421, f"this page answers as {ADDRESS} and localhost alone")
        origins = self.headers.get_all("Origin", [])
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        foreign = any(origin != f"http://{hosts[0]}" for origin in origins)
        # A link from elsewhere may open the page itself, in a window of its own.
        linked = self.command in ("GET", "HEAD") and self.headers.get("Sec-Fetch-Mode") == "navigate"
        if foreign or (site not in ("same-origin", "none") and not (linked and self.path == "/")):
            raise Refused(403, "another site may not ask this page")

    def _refuse(self, status: int, said: str) -> None:
        self._write(status, _json({"error": said}))

    def _write(self, status: int, body: Body) -> None:
        headers = getattr(self, "headers", None) or {}  # none yet of a request that is no request
        unread = not self.body_read and ("Content-Length" in headers or "Transfer-Encoding" in headers)
        self.close_connection |= unread  # what is left of it is no next request
        self.body_read = False
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", body.policy)
        self.send_header("Content-Type", body.kind)
        self.send_header("Content-Length", str(len(body.content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.content)
        if unread:
            self._pass_over()

    def _pass_over(self) -> None:
        """Some of what still comes: a client whose connection is cut as it sends sees no answer."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1.0)
        until = time.monotonic() + 2.0
        with suppress(OSError):
            while time.monotonic() < until and self.rfile.read1(1 << 16):
                pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The standard library's own refusals, in the page's form: it would write what came into HTML."""
        self.close_connection = True
        self._refuse(code, "that is no request that this page answers")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for what its reader can do something about."""


def _json(answer: object) -> Body:
    return Body("application/json", json.dumps(answer, allow_nan=False).encode())


def _number(query: dict[str, str], name: str) -> int:
    if not re.fullmatch(r"\d{1,4}", query.get(name, "")):
        raise Refused(400, f"{name}= wants a whole number")
    return int(query[name])


def _without_port(host: str) -> str:
    return re.sub(r":\d{1,5}$", "", host).lower()

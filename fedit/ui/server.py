"""HTTP: addresses, headers and streams, with the standard library's server."""

import json
import os
import select
import socket
import socketserver
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from fedit.errors import ConfigError, RunFolderError, UnknownName, UserError
from fedit.ui.completions import Json, error_body
from fedit.ui.guard import HEADERS, Guard, Refusal
from fedit.ui.service import Events, Service
from fedit.ui.speaker import Busy

Route = Callable[[str, Mapping[str, list[str]]], None]
"""What answers a path and its query."""

MOST_BYTES = 1 << 20
"""Longest body of a request."""
_DRAINED = 16 * MOST_BYTES
"""Bytes of a longer body that are read and thrown away, so that the answer is seen by who still sends."""

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/compare.js": ("compare.js", "text/javascript; charset=utf-8"),
    "/shared.js": ("shared.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""All files that are served: address -> name in the package's folder, media type."""

_STATUS: list[tuple[type[Exception], HTTPStatus]] = [
    (UnknownName, HTTPStatus.NOT_FOUND),
    (RunFolderError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (UserError, HTTPStatus.BAD_REQUEST),
    (Busy, HTTPStatus.SERVICE_UNAVAILABLE),
]
"""The first that an error is an instance of decides its status."""


class Server(ThreadingHTTPServer):
    """Listens from the moment it is made; requests are answered while `serve` runs.

    Attributes:
        guard: who may ask; knows the page's address.
        page: address -> content of the files that are served.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = os.name == "posix"  # elsewhere it would let another program in on the port
    service: Service

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {host}, port {port}: {error}; choose another --port, 0 for any that is free."
            ) from error
        self.guard = Guard(host, self.server_port)
        folder = files("fedit.ui") / "page"
        self.page = {path: (folder / name).read_bytes() for path, (name, _) in _PAGE.items()}

    def server_bind(self) -> None:
        """Bind without asking the name service for this machine's name, as the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def serve(self, service: Service) -> None:
        """Answer requests until `shutdown` is called from another thread or an exception ends it."""
        self.service = service
        self.serve_forever(poll_interval=0.05)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that end early: that is how browsers stop an answer."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # passed on as it came


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that reading or writing may stand still
    server: Server

    def do_GET(self) -> None:
        """Answer a request for a file or for what is known."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a request to do something."""
        self._answer(self._post)

    def version_string(self) -> str:
        """Name the server without the versions of what it is made of."""
        return "fedit"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: addresses hold the token."""

    # --- routes ---

    def _get(self, path: str, query: Mapping[str, list[str]]) -> None:
        service = self.server.service
        if path in _PAGE:
            self._send(HTTPStatus.OK, self.server.page[path], _PAGE[path][1])
        elif path == "/api/state":
            self._send_json(service.state())
        elif path == "/api/results":
            self._send_json(service.results())
        elif path == "/api/question" and service.questions:
            self._send_json(service.question(_number(query)))
        elif path == "/v1/models":
            self._send_json(service.models())
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is nothing at {path}.")

    def _post(self, path: str, query: Mapping[str, list[str]]) -> None:
        service = self.server.service
        if path == "/v1/chat/completions":
            events, stream = service.complete(self._body())
            if stream:
                self._send_events(events)
            else:
                self._send_only(events)
        elif path == "/api/compare":
            self._send_events(service.compare(self._body()))
        elif path == "/api/vote":
            self._send_json(service.vote(self._body()))
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is nothing to post to at {path}.")

    # --- a request ---

    def _answer(self, route: Route) -> None:
        self._begun, self._cookie = False, ""
        self._unread = self.headers.get("Content-Length") not in (None, "0") or "Transfer-Encoding" in self.headers
        try:
            headers = {name.lower(): value for name, value in self.headers.items()}
            if self.server.guard.check(self.command, self.path, headers):
                self._cookie = self.server.guard.set_cookie
            parts = urlsplit(self.path)
            route(parts.path, parse_qs(parts.query))
        except Refusal as error:
            self._fail(error.status, str(error), "refused")
        except (UserError, Busy) as error:
            status = next(status for kind, status in _STATUS if isinstance(error, kind))
            self._fail(status, str(error), type(error).__name__)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}", "failure")

    def _body(self) -> bytes:
        """Read the body.

        Raises:
            Refusal: it is too long, of unknown length, or not called JSON.
        """
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the body's Content-Length is needed.")
        if int(length) > MOST_BYTES:
            self._drain(min(int(length), _DRAINED))
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has {length} bytes; expected at most {MOST_BYTES}."
            )
        if self.headers.get_content_type() != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected a body of Content-Type application/json.")
        body = self.rfile.read(int(length))
        self._unread = False
        return body

    def _drain(self, count: int) -> None:
        while count > 0 and (piece := self.rfile.read(min(count, 1 << 16))):
            count -= len(piece)

    # --- an answer ---

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if self._cookie:
            self.send_header("Set-Cookie", self._cookie)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self._unread:  # what is left of the body must not be taken for the next request
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _send_json(self, value: Json, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, _to_json(value), "application/json")

    def _send_only(self, events: Events) -> None:
        """Send the one event there is, when it is there."""
        with closing(events):
            for event in self._while_connected(events):
                self._send_json(event)

    def _send_events(self, events: Events) -> None:
        """Send events as they come (text/event-stream); the connection ends with them."""
        with closing(events):
            for event in self._while_connected(events):
                if not self._begun:
                    self._begin_events()
                self.wfile.write(b"data: " + _to_json(event) + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

    def _begin_events(self) -> None:
        self._begun = self.close_connection = True
        self.send_response(HTTPStatus.OK)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()

    def _while_connected(self, events: Events) -> Iterator[Json]:
        """Yield the events that are there; stop where the reader has left.

        Raises:
            ConnectionAbortedError: the reader has left.
        """
        for event in events:
            if self._left():
                raise ConnectionAbortedError
            if event is not None:
                yield event

    def _left(self) -> bool:
        """Return whether the other end has closed the connection."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _fail(self, status: HTTPStatus, message: str, kind: str) -> None:
        body = error_body(message, kind)
        if self._begun:
            self.wfile.write(b"data: " + _to_json(body) + b"\n\n")
        elif "text/html" in self.headers.get("Accept", ""):  # somebody opened the address in a browser
            self._send(status, message.encode(), "text/plain; charset=utf-8")
        else:
            self._send_json(body, status)


def _number(query: Mapping[str, list[str]]) -> int:
    given = query.get("number", ["0"])[0]
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise ConfigError(f"number is {given!r}; expected a whole number.")
    return int(given)


def _to_json(value: Json) -> bytes:
    return json.dumps(value).encode()

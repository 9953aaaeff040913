"""Requests to the page: bodies, headers, whole requests over a connection."""

import json
import socket
from collections.abc import Iterator

from fedit.errors import ConfigError
from fedit.ui.bodies import Comparing, Completion, Voting, read_body
from fedit.ui.guard import Guard, Refusal
from fedit.ui.server import _PAGE, Handler
from fuzz.target import Target, promise, table_of

_COMPLETION = {
    "model": "base",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 5,
    "temperature": 0.5,
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 1,
}
_COMPARING = {"arms": ["a", "b"], "question": "Hi?", "blind": True, "seed": 3}
_TOKEN = "t" * 32
_GUARD = Guard("127.0.0.1", 8000, _TOKEN)


def _bodies(data: bytes) -> None:
    failed = 0
    for kind in (Completion, Comparing, Voting):
        try:
            body = read_body(kind, data)
        except ConfigError:
            failed += 1
            continue
        if isinstance(body, Completion | Comparing):
            body.sampling()
        if isinstance(body, Completion):
            body.conversation()


def _headers(data: bytes) -> None:
    given = table_of(data)
    headers = {str(name): str(value) for name, value in given.items()}
    target = headers.pop("target", "/")
    _GUARD.check("POST", target, headers)
    sent = (target, *headers.values())
    promise(any(_TOKEN in text for text in sent), "a request without the token is let in")


class _Service:
    """Answers at once, and reads bodies as the real one does."""

    questions = True

    def state(self) -> dict:
        return {"arms": ["base"]}

    results = models = state

    def question(self, number: int) -> dict:
        return {"number": number}

    def complete(self, body: bytes) -> tuple[Iterator[dict], bool]:
        asked = read_body(Completion, body)
        asked.conversation()
        return (event for event in ({"text": "a"},)), asked.stream

    def compare(self, body: bytes) -> Iterator[dict]:
        read_body(Comparing, body)
        return (event for event in ({"text": "a"},))

    def vote(self, body: bytes) -> dict:
        read_body(Voting, body)
        return {}


class _Server:
    guard = _GUARD
    service = _Service()
    page = dict.fromkeys(_PAGE, b"page")


def _request(data: bytes) -> None:
    """Bytes over a connection; whatever they are, no answer is 500."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        Handler(theirs, ("127.0.0.1", 1), _Server())
        theirs.close()
        said = b""
        while piece := ours.recv(1 << 16):
            said += piece
    status = said.split(b"\r\n")[0]
    promise(b" 500 " not in status, said[-300:].decode("utf-8", "replace"))
    promise(b"root:" not in said, "a file of the machine was sent")


def _requests() -> list[bytes]:
    head = f"Host: 127.0.0.1:8000\r\nAuthorization: Bearer {_TOKEN}\r\n"
    found = []
    for path in (
        "/",
        "/app.js",
        "/api/state",
        "/api/question?number=3",
        "/v1/models",
        "/../../etc/passwd",
        f"/?token={_TOKEN}",
    ):
        found.append(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
    for path, body in (("/v1/chat/completions", _COMPLETION), ("/api/compare", _COMPARING)):
        text = json.dumps(body)
        found.append(
            f"POST {path} HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            f"{text}".encode()
        )
    return found


TARGETS = (
    Target(
        "request_bodies",
        ("fedit.ui.bodies",),
        _bodies,
        lambda: [
            json.dumps(own).encode()
            for own in (
                _COMPLETION,
                _COMPARING,
                {"comparison": "x", "choice": "A"},
                {**_COMPLETION, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            )
        ],
        (ConfigError,),
        "json",
    ),
    Target(
        "request_headers",
        ("fedit.ui.guard",),
        _headers,
        lambda: [
            json.dumps(own).encode()
            for own in (
                {"host": "127.0.0.1:8000", "authorization": f"Bearer {_TOKEN}", "origin": "http://127.0.0.1:8000"},
                {
                    "host": "localhost:8000",
                    "cookie": f"a=b; fedit-8000={_TOKEN}",
                    "origin": "http://localhost:8000",
                },
                {"host": "[::1]:8000", "target": f"/?token={_TOKEN}"},
            )
        ],
        (Refusal,),
        "json",
        (b"token=", b"[", b"]:", b"@", b"%", b"Bearer "),
    ),
    Target(
        "requests",
        ("fedit.ui.server",),
        _request,
        _requests,
        (ConnectionError,),
        "text",
        (
            b"GET ",
            b"POST ",
            b"HTTP/1.1",
            b"HTTP/9",
            b"\r\n",
            b"\r\n\r\n",
            b"Content-Length: ",
            b"Host: ",
            b"-1",
            b"Transfer-Encoding: chunked\r\n",
            b"../",
            b"%2e%2e%2f",
            b"//",
            b"?",
            b"#",
            b"\xff",
            b"[",
        ),
    ),
)

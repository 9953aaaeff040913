"""A real HTTP server that speaks /v1/chat/completions as it is told to."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FENCE = re.compile(r"^===== ([^\n]+) BEGINS (\w+) =====\n(.*?)\n===== \1 ENDS \2 =====$", re.MULTILINE | re.DOTALL)


@dataclass
class Raw:
    """An HTTP answer that is no ordinary completion; ``after`` is what happens to the connection."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    after: str = ""


HANG, DROP = Raw(after="hang"), Raw(after="drop")


@dataclass
class Call:
    """One request as it arrived."""

    body: dict[str, object]
    headers: dict[str, str]

    @property
    def messages(self) -> list[dict[str, str]]:
        return self.body["messages"]

    @property
    def texts(self) -> dict[str, str]:
        """What stands between the fences of the first user message, by their titles."""
        return {title: text for title, _, text in FENCE.findall(self.messages[1]["content"])}


class JudgeServer:
    """Answers every request with what ``script`` says: a text, or a `Raw` answer."""

    def __init__(self, script: Callable[[Call], str | Raw] = lambda call: "8 7\nBecause.") -> None:
        self.script = script
        self.calls: list[Call] = []
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 20}
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = Call(body, {name.lower(): value for name, value in self.headers.items()})
                server.calls.append(call)
                server.answer(self, call)

            def log_message(self, *arguments: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing about clients that have gone."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler, call: Call) -> None:
        told = self.script(call)
        if isinstance(told, str):
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": told}}
            content = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            told = Raw(body=json.dumps({**content, "usage": self.usage}).encode())
        if told.after == "hang":
            self.released.wait(30)
        if told.after:
            handler.close_connection = True
            return
        handler.send_response(told.status)
        for name, value in {"Content-Type": "application/json", **told.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(told.body)))
        handler.end_headers()
        handler.wfile.write(told.body)

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serving(script: Callable[[Call], str | Raw]) -> Iterator[JudgeServer]:
    with JudgeServer(script) as server:
        yield server


def by_quality(call: Call) -> str:
    """Score each answer by how often it says "good"; the tie is a tie."""
    answers = [text for title, text in call.texts.items() if title.startswith("ANSWER")]
    return " ".join(str(min(10, 3 + 2 * text.count("good"))) for text in answers) + "\nI counted."


def first_is_better(call: Call) -> str:
    """Prefer what is shown first, whatever it is."""
    return "9 4"


def in_turn(*told: str | Raw) -> Callable[[Call], str | Raw]:
    """Answer with each of these once, and with the last one from then on."""
    waiting = list(told)
    lock = threading.Lock()

    def script(call: Call) -> str | Raw:
        with lock:
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return script


def failing(status: int, message: str = "no", **headers: str) -> Raw:
    body = json.dumps({"error": {"message": message, "type": "t", "code": None}}).encode()
    return Raw(status, body, {name.replace("_", "-"): value for name, value in headers.items()})

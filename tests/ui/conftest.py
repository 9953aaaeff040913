"""What tests of the page share: a server over a tiny model with strong random adapters, and a client."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny import random_adapter

from fedit.model.adapted import AdaptedModel
from fedit.resident import Resident
from fedit.tuned import Tuned
from fedit.ui.comparing import Ballot
from fedit.ui.questions import Question
from fedit.ui.server import Server
from fedit.ui.service import Service
from fedit.ui.speaker import Speaker

QUESTIONS = [Question("q1", "copy: red 1", "copy"), Question("q2", "upper: blue 2", "upper"), Question("q3", "hi")]


@pytest.fixture(scope="session")
def resident(adapted: Callable[..., AdaptedModel], tiny: Path) -> Resident:
    """Two tuned arms and their base, all with answers of their own."""
    model = adapted("llama", dtype="fp32", rank=4)

    def tuned(seed: int) -> Tuned:
        factors = {name: value.float() for name, value in random_adapter(model, seed, size=0.5).items()}
        return Tuned(factors, str(tiny), "alpaca_short", 4, 8.0, dtype="fp32")

    return Resident({"federated": tuned(1), "centralised": tuned(2), "base": tuned(1).base()})


@pytest.fixture
def service(resident: Resident, tmp_path: Path) -> Iterator[Service]:
    """A page's models, questions and votes."""
    speaker = Speaker(resident)
    identities = {name: resident.identity(name) for name in resident.voices}
    yield Service(speaker, Ballot(tmp_path / "votes.jsonl", identities, seed=0), QUESTIONS)
    speaker.close()


@dataclass
class Client:
    """Asks as a program does, with the token, unless told otherwise."""

    server: Server
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def open(self, method: str, path: str, body: object = None, **headers: str) -> http.client.HTTPResponse:
        """Return the answer, not read yet; a header set to "" is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        self.connections.append(connection)
        sent = {"Authorization": f"Bearer {self.server.guard.token}", "Host": self.host}
        data = body
        if body is not None:
            sent["Content-Type"] = "application/json"
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {name: value for name, value in sent.items() if value})  # type: ignore[arg-type]
        return connection.getresponse()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, object]:
        """Return status and content."""
        with self.open(method, path, body, **headers) as answer:
            text = answer.read()
        kind = answer.headers.get_content_type()
        return answer.status, json.loads(text) if kind == "application/json" else text.decode()

    def stream(self, path: str, body: object) -> list[dict]:
        """Return all events of a stream that ends well."""
        status, text = self.ask("POST", path, body)
        assert status == 200, text
        *events, last, rest = str(text).split("\n\n")
        assert (last, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.fixture
def server(service: Service) -> Iterator[Server]:
    """A server on a free port of the loopback address."""
    made = Server("127.0.0.1", 0)
    thread = threading.Thread(target=made.serve, args=(service,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    made = Client(server)
    yield made
    for connection in made.connections:
        connection.close()


@pytest.fixture
def endless(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers go on until they are stopped."""

    def answer(
        voice: str, prompt: object, write: Callable[[str], None], sampling: object, **options: object
    ) -> None:
        while True:
            options["on_token"]()  # type: ignore[operator]
            write("on and ")
            threading.Event().wait(0.002)

    monkeypatch.setattr(service.speaker.resident, "answer", answer)


@pytest.fixture
def spoken(service: Service, monkeypatch: pytest.MonkeyPatch) -> list:
    """All answers that the model thread has given, as they are given."""
    given: list = []
    real = service.speaker._answer

    def answer(request: object) -> object:
        given.append(real(request))  # type: ignore[arg-type]
        return given[-1]

    monkeypatch.setattr(service.speaker, "_answer", answer)
    return given

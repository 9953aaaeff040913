"""What tests of judging share: a judge's server, retries without waiting, arms."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from judge_server import JudgeServer

from fedit.judging import Answered, Endpoint


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


@pytest.fixture
def endpoint(server: JudgeServer) -> Iterator[Callable[..., Endpoint]]:
    """Return a judge of the server: ``endpoint(retries=2)``."""
    with ExitStack() as open_ones:

        def build(**options: object) -> Endpoint:
            settings = {"concurrency": 1, "timeout": 5.0, **options}
            return open_ones.enter_context(Endpoint("m", server.url, **settings))

        yield build


def questions(*answers: str, category: str | None = "generic", reference: str | None = None) -> list[Answered]:
    """Return one question an answer, always the same ones."""
    return [
        Answered(f"q{number}", category, (f"Question {number}?",), (text,), (reference,) if reference else None)
        for number, text in enumerate(answers)
    ]


@pytest.fixture(name="questions")
def _questions() -> Callable[..., list[Answered]]:
    return questions

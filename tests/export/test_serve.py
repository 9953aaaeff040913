"""A tuned model behind transformers' own server, asked by the real openai client."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from fedit.cli.export import PORT
from fedit.data.examples import Message
from fedit.data.templates import get_template
from fedit.data.tokens import encode_prompt
from fedit.errors import ConfigError, ServeError
from fedit.export.serve import serving
from fedit.model.loading import load_tokenizer
from fedit.model.sources import resolve_model
from fedit.tuned import find_tuned


def test_a_port_that_is_taken_and_packages_that_lack_are_told_first(finished, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="is taken"), serving(finished(), port=taken.getsockname()[1]):
            pass
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'fedit\[serve\]'"), serving(finished(), port=PORT):
        pass


def test_a_server_that_does_not_start_says_why(finished, monkeypatch):
    monkeypatch.setattr("fedit.export.serve._SERVE", "raise SystemExit('no device today')")
    with pytest.raises(ServeError, match="no device today"), serving(finished(), port=0):
        pass


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("importable")
def test_the_openai_client_talks_to_a_run(finished):
    """From the command to an answer, and to an end without leftovers."""
    openai = pytest.importorskip("openai")
    run = finished(prompt_template="alpaca")
    with subprocess.Popen(
        [sys.executable, "-m", "fedit", "serve", str(run), "--port", "0", "--name", "tuned", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            address, _, name = process.stdout.readline().split()
            assert (address.split(":")[1], name) == ("//127.0.0.1", "tuned")
            client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
            turns = [{"role": "user", "content": "copy: red 1"}]
            whole = client.chat.completions.create(model=name, messages=turns, max_tokens=8, temperature=0)
            pieces = client.chat.completions.create(
                model=name, messages=turns, max_tokens=8, temperature=0, stream=True
            )
            streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
            assert streamed == whole.choices[0].message.content
            tuned = find_tuned(run)
            tokenizer = load_tokenizer(resolve_model(tuned.model))
            asked = encode_prompt(
                [Message("user", "copy: red 1")], "", tokenizer, get_template("alpaca", tokenizer), max_length=512
            )
            assert whole.usage.prompt_tokens == len(asked)
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model="another", messages=turns, max_tokens=8)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)

"""Exports go to a hub through its own client, with the user's token and a card the hub can read."""

import json

import huggingface_hub
import pytest
from hub_server import Hub
from typer.testing import CliRunner

from fedit.cli.app import app
from fedit.errors import ConfigError, HubError
from fedit.export.push import push


@pytest.fixture
def hub(monkeypatch):
    with Hub() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield running


def test_a_run_is_pushed_whole_and_with_its_card(finished, hub):
    done = push(finished(prompt_template="alpaca"), "me/tuned", private=True)
    assert done.address == f"{hub.url}/me/tuned/commit/1"
    assert hub.repos == {"me/tuned": True}
    assert hub.message == "first: peft"
    assert hub.tokens == {"Bearer hf_secret"}
    assert (
        set(hub.files) == set(done.exported.files) >= {"README.md", "adapter_model.safetensors", "tokenizer.json"}
    )
    assert b"hf_secret" not in b"".join(hub.files.values())
    card = huggingface_hub.ModelCard(hub.files["README.md"].decode())
    assert card.data.library_name == "peft"
    assert "federated-learning" in card.data.tags
    assert "## Results" in card.text


def test_a_dry_run_sends_nothing_and_needs_no_token(finished, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    told = CliRunner().invoke(app, ["push", str(finished()), "--repo", "me/tuned", "--dry-run", "--json"])
    assert told.exit_code == 0, told.output
    assert "adapter_model.safetensors" in json.loads(told.stdout)["files"]
    assert hub.repos == hub.files == {}
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        push(finished(), "me/tuned")


def test_what_the_hub_says_is_told(finished, hub, monkeypatch):
    hub.refuses = 403
    with pytest.raises(HubError, match="refused 'me/tuned'"):
        push(finished(), "me/tuned")
    with pytest.raises(ConfigError, match="--repo"):
        push(finished(), "me/two/many")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached"):
        push(finished(), "me/tuned")

import json

import pytest

from fedit import diagnose


@pytest.fixture(autouse=True)
def _resources(no_pictures):
    """Smoke runs here draw nothing."""


def read(outcome):
    return {check["name"]: check for check in json.loads(outcome.out)}


def test_every_check_is_reported(fedit):
    outcome = fedit("doctor", "--no-smoke", "--json")
    assert outcome.code == 0
    found = read(outcome)
    groups = {check["group"] for check in found.values()}
    assert groups == {"versions", "hardware", "disk", "model", "network"}
    assert {"python", "torch", "transformers", "peft", "fedit", "datasets", "processor", "workers"} <= set(found)


def test_a_missing_model_is_a_warning_and_nothing_is_fetched(fedit, cache):
    found = read(fedit("doctor", "--no-smoke", "--json"))["smollm2-135m-instruct"]
    assert found["status"] == "warning"
    assert "93 MB" in found["advice"]
    assert not cache.exists()


def test_a_converted_model_is_found(cache):
    from fedit.model.wheel import GGUF_SHA256

    folder = cache / "models" / f"smollm2-135m-instruct-{GGUF_SHA256[:16]}"
    folder.mkdir(parents=True)
    (folder / "fedit.json").write_text("{}")
    assert diagnose.default_model().status == "ok"


def test_a_wrong_variable_for_the_model_is_a_problem(cache, monkeypatch):
    monkeypatch.setenv("FEDIT_SMOLLM2", "nowhere.whl")
    assert diagnose.default_model().status == "problem"


def test_offline_means_no_look_up(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(diagnose, "_resolves", lambda host: pytest.fail("looked up"))
    assert "HF_HUB_OFFLINE" in diagnose.network().found


def test_a_name_that_does_not_resolve_is_a_warning(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(diagnose.socket, "getaddrinfo", lambda host, port: (_ for _ in ()).throw(OSError("no")))
    assert diagnose.network().status == "warning"


def test_missing_extras_come_with_their_command(monkeypatch):
    real = diagnose.importlib.metadata.version

    def version(name):
        if name == "bitsandbytes":
            raise diagnose.importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(diagnose.importlib.metadata, "version", version)
    found = next(check for check in diagnose.versions() if check.name == "bitsandbytes")
    assert found.status == "ok"
    assert "pip install 'fedit[quant]'" in found.found


def test_a_package_that_is_too_old_is_a_warning(monkeypatch):
    real = diagnose.importlib.metadata.version
    monkeypatch.setattr(diagnose.importlib.metadata, "version", lambda n: "0.1" if n == "peft" else real(n))
    found = next(check for check in diagnose.versions() if check.name == "peft")
    assert found.status == "warning"
    assert "pip install" in found.advice


def test_little_memory_and_disk_are_warnings(monkeypatch, cache):
    monkeypatch.setattr(diagnose, "_RUN_NEEDS", 1e18)
    assert diagnose._memory().status == "warning"
    assert {check.status for check in diagnose.disk()} == {"warning"}


def test_the_smoke_run_trains(fedit, tiny):
    outcome = fedit("doctor", "--model", tiny)
    assert outcome.code == 0, outcome.out
    assert "2 clients, 1 round of 1 step" in outcome.out
    assert "factors changed" in outcome.out
    assert "problems: 0" in outcome.out


def test_a_smoke_run_that_fails_is_a_problem_with_its_reason(fedit, tmp_path):
    outcome = fedit("doctor", "--model", tmp_path, "--json")
    assert outcome.code == 1
    found = read(outcome)["training"]
    assert found["status"] == "problem"
    assert "config.json is missing" in found["found"]
    assert found["advice"]

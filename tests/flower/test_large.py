"""A deployment whose updates are large enough to break on their way and to be seen in a process's memory."""

import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from deploying import FOLDER, SITES, Deployed, assert_ended_like, simulated
from proxies import Proxy
from tiny import save_model

from fedit.flower.layout import Deployment
from fedit.types import Tensors

pytest.importorskip("flwr")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BROKEN = SITES[2]
CUT = 40.0
"""Seconds: longer than Flower waits for an answer."""
SLACK = 48_000_000
"""Bytes that a process may grow by whatever it passes on."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory, importable) -> Iterator[Deployed]:
    """Three sites, the last one behind a link that can be cut; an update is 50 MB."""
    folder = tmp_path_factory.mktemp("d")
    save_model("llama", folder / "model", hidden_size=1024, intermediate_size=1024, initializer_range=0.02)
    own = Deployed.create(folder, folder / "model", lora_r=256, lora_alpha=256, num_rounds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(own.folder / "cache"))
        own.expected = simulated(own)
    yield own
    own.stop()


@pytest.fixture(scope="module")
def proxy(deployed: Deployed) -> Iterator[Proxy]:
    """The link of the last site; nodes and server run from here on."""
    port = Deployment.load(deployed.folder / FOLDER).port
    own = Proxy(port)
    path = deployed.bundle(BROKEN) / "site.toml"
    path.write_text(path.read_text().replace(f":{port}", f":{own.port}"))
    deployed.begin()
    yield own
    own.close()


def payload(adapter: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in adapter.values())


@pytest.mark.check(13)
def test_the_server_holds_one_large_update_at_a_time(deployed, proxy):
    """The size of a full run is in the benchmarks; here updates are 50 MB."""
    deployed.submit("--deadline", 600)
    deployed.wait_for(lambda: [event for event in deployed.events() if event["event"] == "evaluation"])
    (process,) = deployed.find("flwr-serverapp")
    sizes = [process.memory_info().rss]

    def watch() -> bool:
        with suppress(psutil.NoSuchProcess):
            sizes.append(process.memory_info().rss)
        return deployed.state() != "active"

    deployed.wait_for(watch, pause=0.02)
    size = payload(deployed.expected)
    sys.stderr.write(f"{size / 1e6} {[round(s / 1e6) for s in sizes[::10]]} {(max(sizes) - sizes[0]) / size}\n")
    assert_ended_like(deployed, deployed.expected, rounds=2)
    assert max(sizes) - sizes[0] < 4 * size + SLACK


@pytest.mark.check(11)
def test_a_link_that_breaks_during_an_upload_costs_a_second_sending_and_no_training(deployed, proxy):
    deployed.submit("--deadline", 600, name="cut")
    deployed.wait_for(lambda: "site_joined" in [event["event"] for event in deployed.events("cut")])
    trained = deployed.audited(BROKEN).count("sent")
    proxy.cut_within_upload(payload(deployed.expected) // 2, CUT)
    assert_ended_like(deployed, deployed.expected, "cut", rounds=2)
    assert proxy.was_cut
    deployed.wait_for(lambda: (deployed.folder / FOLDER / "state" / "jobs" / "cut.log").is_file())
    said = (deployed.folder / FOLDER / "state" / "jobs" / "cut.log").read_text()
    trouble = said.index('"site_trouble"')
    answers = [said.index(f"site {site} answered in round 1") for site in SITES]
    assert max(answers[:2]) < trouble < answers[2]
    assert deployed.audited(BROKEN).count("sent") == trained + 2

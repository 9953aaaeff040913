"""Whole deployments on this machine: real SuperLink, SuperNodes and workers, started, used and killed."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from deploying import SERVER, SITES, Deployed, assert_ended_like, simulated
from networks import is_here, loopback_only, noted, noting

from fedit.files import read_json
from fedit.types import Tensors

pytest.importorskip("flwr")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Network:
    """What the deployment's processes run in: a prefix of their commands, or the reason why there is none."""

    prefix: list[str]
    missing: str
    variables: dict[str, str]


@pytest.fixture(scope="module")
def network(tmp_path_factory, importable) -> Iterator[Network]:
    with loopback_only() as (prefix, missing):
        yield Network(prefix, missing, noting(tmp_path_factory.mktemp("n")))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory, tiny, network, expected_in) -> Iterator[Deployed]:
    own = Deployed.create(tmp_path_factory.mktemp("d"), tiny, network.variables, network.prefix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(own.folder / "cache"))
        expected_in.update(simulated(own))
    own.begin()
    yield own
    own.stop()


@pytest.fixture(scope="module")
def expected_in() -> Tensors:
    """The adapter that the job ends with as a simulation; filled before anything is deployed."""
    return {}


@pytest.fixture
def expected(deployed, expected_in) -> Tensors:
    return expected_in


class TestDeployment:
    """One server and three sites for all; every test leaves them running, the last one ends them."""

    @pytest.mark.check(3)
    def test_a_deployed_run_ends_with_the_bits_of_a_simulation(self, deployed, expected):
        deployed.submit()
        assert_ended_like(deployed, expected)
        assert deployed.audited(SITES[0]) == ["announced", "sent", "sent", "sent"]

    @pytest.mark.check(14)
    def test_nothing_asks_for_another_machine(self, deployed, network):
        commands, hosts = noted(network.variables)
        for program in ("flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp",
                        "flwr-clientapp", "fedit.flower.site", "deploy node"):  # fmt: skip
            assert any(program in command for command in commands), program
        assert hosts
        assert [host for host in hosts if not is_here(host)] == []

    @pytest.mark.check(14)
    def test_a_machine_without_a_network_will_do(self, deployed, network):
        if network.missing:
            pytest.skip(network.missing)
        command = [*network.prefix, "ip", "-oneline", "link"]
        links = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert [link.split(":")[1].strip() for link in links] == ["lo"]
        assert deployed.wait_for_the_end() == "finished"

    @pytest.mark.check(18)
    def test_a_worker_serves_all_rounds_and_every_round_says_what_it_took(self, deployed):
        for site in SITES:
            assert deployed.journal(site).count("worker_ready") == 1
            worker = read_json(deployed.bundle(site) / "state" / "node.json")["processes"]["worker"]
            assert [process.pid for process in deployed.find("fedit.flower.site", site)] == [worker["pid"]]
        assert all(event["seconds"] > 0 for event in deployed.rounds())

    @pytest.mark.check(6)
    @pytest.mark.check(7)
    def test_what_is_killed_at_sites_comes_back_and_the_run_ends_with_the_same_bits(self, deployed, expected):
        first, second, third = SITES
        deployed.submit("--deadline", 600, name="sites")
        deployed.wait_for_round(1, "sites")
        deployed.kill("supernode", third)
        deployed.kill("worker", second)
        deployed.kill("client-app")
        deployed.wait_for_round(2, "sites")
        deployed.kill("node", first)
        deployed.kill("site-executor", second)
        assert_ended_like(deployed, expected, "sites")
        assert "worker_died" in deployed.journal(second)
        assert "superexec_died" in deployed.journal(second)
        assert "supernode_died" in deployed.journal(third)
        assert "leftovers" in deployed.journal(first)

    @pytest.mark.check(8)
    @pytest.mark.check(9)
    def test_what_is_killed_on_the_server_comes_back_and_the_run_ends_with_the_same_bits(self, deployed, expected):
        deployed.wait_for_sites()
        deployed.submit("--deadline", 600, name="server")
        deployed.wait_for_round(1, "server")
        deployed.kill("server-app")
        deployed.wait_for_round(2, "server")
        deployed.kill("superlink")
        deployed.wait_for(lambda: deployed.journal(SERVER).count("run_started_again") == 2)
        deployed.kill("server")
        assert_ended_like(deployed, expected, "server")
        assert {"run_ended_early", "superlink_died", "leftovers"} <= set(deployed.journal(SERVER))

    def test_all_end_and_leave_nothing_running(self, deployed):
        deployed.wait_for_sites()
        assert deployed.stop() == []

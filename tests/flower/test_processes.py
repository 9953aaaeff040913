"""Processes of a deployment: watched, started again, ended with all that they started; Flower's own, too."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from socket import create_server

import pytest

from fedit.config import RunConfig
from fedit.errors import ConfigError, RunFolderError
from fedit.files import read_json
from fedit.flower import children, connection, control, printed
from fedit.flower.children import Child, Kept, born, end_leftovers, remembered
from fedit.flower.environment import MEMORY, SWITCHES, child_environment, messenger_environment
from fedit.flower.init import create
from fedit.flower.layout import Deployment, Site
from fedit.flower.processes import check_port, free_port, only_supervisor, worker_socket
from fedit.flower.reach import unreachable

PATIENCE = 240.0
"""Seconds to wait for what must happen, on a machine that does other things, too."""
HERE = Path(__file__).parent
CONFIG = RunConfig(num_rounds=1)
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
SLEEPER = "import time, pathlib, os; pathlib.Path({path!r}).write_text(str(os.getpid())); time.sleep(600)"


# --- one process ---


def test_children_find_flower_quiet_and_at_home_in_the_folder(tmp_path: Path) -> None:
    environment = child_environment(tmp_path / "flwr")
    assert {name: environment[name] for name in SWITCHES} == SWITCHES
    assert not set(MEMORY) & set(environment)  # what trains keeps its memory at hand
    assert messenger_environment(tmp_path / "flwr") == {**MEMORY, **environment}
    assert environment["FLWR_HOME"] == str(tmp_path / "flwr")
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_a_child_ends_with_all_that_it_started(tmp_path: Path) -> None:
    grandchild = tmp_path / "pid"
    child = python(tmp_path, PARENT.format(child=SLEEPER.format(path=str(grandchild))))
    child.start()
    wait_for(lambda: grandchild.is_file() and grandchild.read_text())
    assert child.alive
    pid = int(grandchild.read_text())
    child.stop()
    assert not child.alive
    wait_for(lambda: born(pid) is None)


def test_a_child_that_does_not_listen_is_ended_by_force(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = python(tmp_path, f"{deaf}; print('deaf', flush=True); time.sleep(600)")
    child.start()
    wait_for(lambda: "deaf" in child.printed())
    pid = child.pid
    child.stop(grace=0.2)
    assert pid is not None
    assert born(pid) is None


def test_what_a_child_printed_is_that_of_its_newest_start(tmp_path: Path) -> None:
    child = python(tmp_path, "print('one'); print('two'); raise SystemExit(3)")
    for _ in range(2):
        child.start()
        wait_for(lambda: not child.alive)
        assert child.printed() == "one\ntwo\n"
    assert child.last_line() == "two"
    assert child.how_it_ended() == "ended with exit code 3"
    child.stop()


def test_a_death_by_a_signal_is_named(tmp_path: Path) -> None:
    child = python(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    child.start()
    wait_for(lambda: not child.alive)
    assert child.how_it_ended() == "was killed by SIGKILL"
    child.stop()


def test_a_long_log_is_cut_while_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LONGEST_LOG", 10)
    child = python(tmp_path, "import time\nprint('x' * 20, flush=True)\ntime.sleep(600)")
    child.start()
    wait_for(lambda: len(child.printed()) > 20)
    child.trim_log()
    assert (child.log.stat().st_size, child.printed()) == (0, "")
    assert child.log.with_name("child.log.1").read_text() == "x" * 20 + "\n"
    child.stop()


def test_pauses_between_starts_double_and_begin_anew_once_it_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(python(tmp_path, "pass"))
    now = 1000.0
    monkeypatch.setattr(children.time, "monotonic", lambda: now)
    pauses = []
    for lived in (0, 0, 0, 100, 0):
        kept.start()
        now += lived
        pauses.append(kept.died())
        assert kept.waiting
        assert not kept.due
        now += pauses[-1]
        assert kept.due
    assert pauses == [1, 2, 4, 1, 2]
    assert kept.died(least=65) == 65


def test_what_a_killed_supervisor_left_is_ended_and_other_processes_are_not(tmp_path: Path) -> None:
    ours, other = (
        python(tmp_path, "import time; time.sleep(600)"),
        python(tmp_path, "import time; time.sleep(600)"),
    )
    ours.start()
    other.start()
    known = remembered([ours]) | {"reused": {"pid": other.pid, "born": "another time"}, "damaged": None}
    try:
        assert end_leftovers(known) == ["child"]
        assert not ours.alive
        assert other.alive
        assert end_leftovers(None) == []
    finally:
        ours.stop()
        other.stop()


def test_only_one_supervisor_works_in_a_folder(tmp_path: Path) -> None:
    with only_supervisor(tmp_path, "a server"), pytest.raises(ConfigError, match="a server runs already"):
        with only_supervisor(tmp_path, "a server"):
            pass


def test_a_port_that_is_taken_is_refused() -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match="choose another --port"):
            check_port("127.0.0.1", taken.getsockname()[1])
    check_port("127.0.0.1", free_port())


def test_a_socket_whose_path_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shorter"):
        worker_socket(Site(tmp_path / ("x" * 100), "a", "127.0.0.1:1", insecure=True))


# --- whether a site reaches its server ---


def test_a_server_that_is_not_there_yet_may_come(deployment: Deployment) -> None:
    assert unreachable(site_of(deployment)) == "Connection refused"


def test_the_server_of_the_bundle_is_reached(deployment: Deployment) -> None:
    with answering(deployment, encrypted=True):
        assert unreachable(site_of(deployment)) is None


@pytest.mark.check(15)
def test_another_servers_certificate_is_refused_for_good(deployment: Deployment, tmp_path: Path) -> None:
    stranger = create(tmp_path / "other", ["a"], "127.0.0.1", deployment.port, insecure=False)
    with answering(stranger, encrypted=True), pytest.raises(ConfigError, match=r"is not signed by .*ca\.crt"):
        unreachable(site_of(deployment))


def test_a_certificate_for_another_host_is_refused_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedit.flower.certificates.ALWAYS", ())
    elsewhere = create(tmp_path / "d", ["a"], "fl.example.org", free_port(), insecure=False)
    site = replace(site_of(elsewhere), server=f"127.0.0.1:{elsewhere.port}")
    with answering(elsewhere, encrypted=True), pytest.raises(ConfigError, match=r"is not for 127\.0\.0\.1"):
        unreachable(site)


@pytest.mark.check(15)
def test_encryption_on_one_side_only_is_refused_for_good(deployment: Deployment) -> None:
    site = site_of(deployment)
    with answering(deployment, encrypted=False), pytest.raises(ConfigError, match="speaks without encryption"):
        unreachable(site)
    with answering(deployment, encrypted=True), pytest.raises(ConfigError, match="asks for encryption"):
        unreachable(replace(site, insecure=True))
    with answering(deployment, encrypted=False):
        assert unreachable(replace(site, insecure=True)) is None


# --- the real programs ---


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Running"]:
    """A server and site a, run by the commands; runs and the worker are stand-ins."""
    folder = tmp_path_factory.mktemp("running")
    deployment = create(folder / "d", ["a", "b"], "127.0.0.1", free_port(), insecure=False)
    (folder / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "SERVER_APP", "standin_apps:server")
        patch.setattr(connection, "CLIENT_APP", "standin_apps:client")
        it = Running(deployment, folder)
        try:
            it.start_server()
            it.start_node("a")
            wait_for(lambda: it.state_of("a") == "online")
            yield it
        finally:
            it.end()


class Running:
    """The supervisors of a deployment as processes, and what they wrote."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.deployment = deployment
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_server(self) -> None:
        self._start("server", "server", self.deployment.folder, str(self.deployment.port))
        wait_for(lambda: "superlink_up" in self.events("server"))

    def start_node(self, site: str, data: str = "rows.jsonl") -> None:
        self._start(site, "node", self.deployment.bundle(site), str(self.folder / data))

    def _start(self, name: str, what: str, where: Path, argument: str) -> None:
        paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        with open(self.folder / f"{name}.err", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "standins", what, str(where), argument],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,
            )

    def state(self, name: str) -> Path:
        return self.deployment.state if name == "server" else self.deployment.bundle(name) / "state"

    def events(self, name: str) -> list[str]:
        path = self.state(name) / "events.jsonl"
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.is_file() else []

    def pids(self, name: str) -> dict[str, int]:
        path = self.state(name) / ("server.json" if name == "server" else "node.json")
        with suppress(RunFolderError):
            return {child: one["pid"] for child, one in read_json(path)["processes"].items()}
        return {}

    def state_of(self, site: str) -> str:
        return next(one.state for one in control.nodes(self.deployment) if one.name == site)

    def submit(self, name: str) -> int:
        return control.submit(self.deployment, name, CONFIG, self.folder / "rows.jsonl", sites=1)

    def run(self, name: str) -> control.RunStatus:
        return next(one for one in control.runs(self.deployment) if one.name == name)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text()

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def end(self) -> None:
        for name in ("a", "b", "server"):
            if name in self.processes:
                process = self.processes.pop(name)
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
                process.wait()
            end_leftovers({c: {"pid": p, "born": born(p)} for c, p in self.pids(name).items()})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
class TestWithFlower:
    """One server and one site for all; every test leaves them running."""

    def test_a_run_reaches_the_sites_worker_and_ends(self, running: Running) -> None:
        run_id = running.submit("asks")
        wait_for(lambda: running.run("asks").state == "finished")
        folder = running.deployment.runs / "asks"
        told = json.loads((folder / "config.json").read_text())
        assert told == {
            "job": json.dumps(CONFIG.model_dump(mode="json")),
            "name": "asks",
            "folder": str(folder),
            "held_out": str(running.folder / "rows.jsonl"),
            "deadline": 0.0,
            "sites": 1,
        }
        (answers,) = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert answers["pids"] == [running.pids("a")["worker"]]
        assert "run asks, resumed: False" in printed.printed(running.deployment, run_id)
        wait_for(lambda: "run asks" in printed.kept(running.deployment, "asks").read_text())

    def test_a_run_that_ends_early_goes_on_by_itself(self, running: Running) -> None:
        running.submit("crashes")
        followed = "".join(printed.follow(running.deployment, "crashes"))
        assert followed.index("resumed: False") < followed.index("--- start 2") < followed.index("resumed: True")
        assert running.run("crashes").state == "finished"
        assert running.run("crashes").starts == 2
        told = printed.printed(running.deployment, int(running.run("crashes").run_id))
        assert "run crashes, resumed: True" in told

    def test_a_run_that_gets_nowhere_is_given_up_with_its_reason(self, running: Running) -> None:
        running.submit("fails")
        wait_for(lambda: running.run("fails").state == "failed")
        assert "fails as it was told" in running.run("fails").reason
        assert (
            printed.kept(running.deployment, "fails").read_text().count("run fails") == running.run("fails").starts
        )

    def test_a_stopped_run_stays_stopped(self, running: Running) -> None:
        run_id = running.submit("waits-long")
        wait_for(lambda: running.run("waits-long").progress.round == 1)
        control.stop(running.deployment, run_id)
        looked = len(running.events("server"))
        time.sleep(8)  # the supervisor looks every three seconds
        assert running.run("waits-long").state == "stopped"
        assert "run_started_again" not in running.events("server")[looked:]
        control.stop(running.deployment, run_id)

    @pytest.mark.check(10)
    def test_a_killed_superexec_is_started_again_and_runs_start(self, running: Running) -> None:
        os.kill(running.pids("server")["superexec"], signal.SIGKILL)
        wait_for(lambda: "superexec_died" in running.events("server"))
        running.submit("after-superexec")
        wait_for(lambda: running.run("after-superexec").state == "finished")

    def test_a_killed_superlink_comes_back_with_sites_and_runs(self, running: Running) -> None:
        running.submit("waits")
        wait_for(lambda: running.run("waits").progress.round == 1)
        os.kill(running.pids("server")["superlink"], signal.SIGKILL)
        wait_for(lambda: "superlink_died" in running.events("server"))
        wait_for(lambda: running.events("server").count("superlink_up") == 2)
        wait_for(lambda: running.run("waits").state == "finished")
        assert running.run("waits").starts == 2
        wait_for(lambda: running.state_of("a") == "online")

    def test_a_killed_worker_is_started_again_at_once(self, running: Running) -> None:
        before = running.pids("a")["worker"]
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: running.events("a").count("worker_ready") == 2)
        wait_for(lambda: running.pids("a").get("worker") not in (None, before))
        assert running.state_of("a") == "online"

    @pytest.mark.check(7)
    def test_a_killed_supernode_is_let_in_again_once_the_server_noticed(self, running: Running) -> None:
        joined = running.events("a").count("joined")
        os.kill(running.pids("a")["supernode"], signal.SIGKILL)
        wait_for(lambda: running.events("a").count("joined") == joined + 1)
        assert '"pause": 65' in (running.state("a") / "events.jsonl").read_text()
        assert running.state_of("a") == "online"

    @pytest.mark.check(15)
    def test_a_key_that_the_server_does_not_know_ends_the_node_with_a_hint(self, running: Running) -> None:
        bundle = running.deployment.bundle("b")
        known = (bundle / "node.key").read_bytes()
        stranger = create(running.folder / "stranger", ["b"], "127.0.0.1", running.deployment.port, insecure=False)
        (bundle / "node.key").write_bytes((stranger.bundle("b") / "node.key").read_bytes())
        running.start_node("b")
        assert running.processes.pop("b").wait(PATIENCE) == 2
        (hint,) = [line for line in running.said("b").splitlines() if line.startswith("error: ")]
        assert "does not know the key of site b" in hint
        (bundle / "node.key").write_bytes(known)
        assert running.state_of("a") == "online"

    def test_a_worker_that_cannot_start_ends_the_node_with_its_words(self, running: Running) -> None:
        (running.folder / "bad.jsonl").write_text("unreadable")
        running.start_node("b", "bad.jsonl")
        assert running.processes.pop("b").wait(PATIENCE) == 2
        assert "error: the rows cannot be read" in running.said("b")

    def test_a_killed_supervisor_finds_what_it_left_behind(self, running: Running) -> None:
        left, joined = running.pids("a"), running.events("a").count("joined")
        supervisor = running.processes.pop("a")
        supervisor.kill()
        supervisor.wait()
        running.start_node("a")
        wait_for(lambda: running.events("a").count("joined") == joined + 1)
        assert "leftovers" in running.events("a")
        assert all(born(pid) is None for pid in left.values())

    def test_all_end_cleanly_and_leave_nothing_running(self, running: Running) -> None:
        pids = [*running.pids("a").values(), *running.pids("server").values()]
        assert len(pids) == 5
        assert running.stop("a") == 0
        wait_for(lambda: running.state_of("a") == "offline")
        assert running.stop("server") == 0
        assert all(born(pid) is None for pid in pids)
        assert not (running.deployment.state / "server.json").exists()
        assert read_json(running.state("a") / "node.json")["seen"] is None


# --- helpers ---


def python(folder: Path, text: str) -> Child:
    return Child("child", [sys.executable, "-c", text], os.environ, folder / "child.log")


def site_of(deployment: Deployment) -> Site:
    return Site.load(deployment.bundle("a"))


def wait_for(happened: Callable[[], object], seconds: float = PATIENCE) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with suppress(connection.LinkError, FileNotFoundError, StopIteration):
            if happened():
                return
        time.sleep(0.2)
    raise AssertionError(f"it did not happen within {seconds:.0f} s")


@contextmanager
def answering(deployment: Deployment, *, encrypted: bool) -> Iterator[None]:
    """Listen where a deployment's server would, and answer a plain greeting as an HTTP server does."""
    with create_server(("127.0.0.1", deployment.port)) as listener:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(deployment.server_crt, deployment.server_key)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    if encrypted:
                        context.wrap_socket(connection, server_side=True).close()
                    else:
                        connection.recv(1)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):
                listener.shutdown(2)
            listener.close()
            thread.join()

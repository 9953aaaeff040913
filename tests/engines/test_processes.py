"""Worker processes: the same bits whatever their number; one that ends does not end the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import write_rows

from fedit import arms, settings
from fedit.compute import Workers
from fedit.engines import workers
from fedit.engines.messages import WorkerError
from fedit.engines.pool import Lost, Pool, Request
from fedit.engines.processes import Processes
from fedit.engines.workers import WorkerProcess
from fedit.errors import RunFolderError
from fedit.launch import resume, run
from fedit.prepare import prepare
from fedit.types import Broadcast, ClientFailure, ClientTask

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("importable")


def worker(log, **changes):
    return WorkerProcess({**os.environ, "OMP_NUM_THREADS": "1"}, log, **changes)


def header(job, folder):
    return {
        "config": job.config.model_dump(mode="json"),
        "folder": str(folder),
        "num_threads": 1,
        "partition": job.partition.hash,
    }


@pytest.fixture(scope="module")
def ready(importable, tiny, tmp_path_factory):
    """Return a job, a pool of one worker that has prepared it, and its folder."""
    folder = tmp_path_factory.mktemp("ready")
    write_rows(folder / "rows.jsonl", 60)
    values = {
        "model": str(tiny), "device": "cpu", "dtype": "fp32", "dataset": str(folder / "rows.jsonl"), "lora_r": 4,
        "num_clients": 3, "num_rounds": 2, "local_steps": 2, "batch_size": 4, "held_out": 2, "max_length": 96,
        "client_optimizer": "keep", "lora_dropout": 0.1, "stack_clients": 2,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDIT_CACHE", str(folder / "cache"))
        job = prepare(settings.from_values(values, "test"))
        with Pool([worker(folder / "worker.log")]) as pool:
            pool.begin(header(job, folder), 1)
            yield job, pool


def states(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


def essence(path):
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {k: v for k, v in e.items() if k not in ("time", "seconds")} for e in events if e["event"] != "resumed"
    ]


def assert_same_run(one, two):
    assert states(one) == states(two)
    logs = sorted(path.relative_to(one) for path in one.rglob("events.jsonl"))
    assert logs == sorted(path.relative_to(two) for path in two.rglob("events.jsonl"))
    for log in logs:
        assert essence(one / log) == essence(two / log)
    answers = sorted(path.relative_to(one) for path in one.rglob("answers.json"))
    assert answers
    for path in answers:
        assert (one / path).read_bytes() == (two / path).read_bytes()


SETTINGS = {
    "num_clients": 5,
    "clients_per_round": 4,
    "client_optimizer": "keep",
    "lora_dropout": 0.1,
    "validation": 1,
    "compare": ["local", "centralised"],
    "compare_clients": 1,
    "max_new_tokens": 3,
}


def test_two_workers_give_the_bits_of_one_process(make_config, tmp_path):
    heard = []
    one = run(make_config(**SETTINGS, num_workers=1), tmp_path / "one")
    two = run(make_config(**SETTINGS, num_workers=2), tmp_path / "two", listener=heard.append)
    assert_same_run(one.folder, two.folder)
    assert one.summary["arms"] == two.summary["arms"]
    steps = [event for event in heard if event["event"] == "step"]
    assert {event["arm"] for event in steps} == {*one.summary["arms"]} - {"base"}
    federated = [event for event in steps if event["arm"] == "federated"]
    assert len(federated) == 2 * 4 * 2
    assert all(isinstance(event["client"], str) and event["loss"] > 0 for event in federated)
    assert not (two.folder / "workers").exists()


@pytest.mark.slow
def test_three_workers_killed_with_their_parent_go_on_to_the_same_bits(make_config, tmp_path):
    config = {**SETTINGS, "num_rounds": 4}
    one = run(make_config(**config, num_workers=1), tmp_path / "one")

    class Killed(BaseException):
        pass

    heard = 0

    def listen(event):
        nonlocal heard
        heard += 1
        if heard == 30:
            raise Killed

    with pytest.raises(Killed):
        run(make_config(**config, num_workers=3), tmp_path / "three", listener=listen)
    resume(tmp_path / "three")
    assert_same_run(one.folder, tmp_path / "three")


def tasks_of(job, adapter, count):
    arm = arms.federated(job)
    clients = sorted(arm.clients)
    return [
        ClientTask(
            1 + number // len(clients), clients[number % len(clients)], Broadcast(adapter), job.training(), 7
        )
        for number in range(count)
    ]


def test_a_killed_worker_is_replaced_and_its_task_done_again(ready, tmp_path):
    job, pool = ready
    compute = Workers(job, pool)
    adapter = compute.initial()
    tasks = tasks_of(job, adapter, 3)
    expected = list(compute.engine(arms.federated(job), tmp_path, lambda task, step: None).run(tasks))
    pids = []

    def kill_once(task, step):
        if task is tasks[1] and not pids:
            pids.append(pool._workers[0]._process.pid)
            os.kill(pids[0], signal.SIGKILL)

    found = list(compute.engine(arms.federated(job), tmp_path, kill_once).run(tasks))
    assert len(pids) == 1
    assert pool._workers[0]._process.pid != pids[0]
    for one, two in zip(expected, found, strict=True):
        assert (one.client_id, one.metrics, list(one.delta)) == (two.client_id, two.metrics, list(two.delta))
        assert all(torch.equal(one.delta[name], two.delta[name]) for name in one.delta)


@pytest.mark.slow
def test_a_stack_that_kills_two_workers_is_a_failure_of_its_clients(ready, tmp_path):
    job, _ = ready
    (tmp_path / "fatal.py").write_text(
        "import os, signal\n"
        "from fedit import worker_process\n"
        "from fedit.worker import Worker\n"
        "train = Worker.train_together\n"
        "def fatal(self, tasks, on_step):\n"
        "    if any(task.client_id == os.environ['FATAL'] for task in tasks):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return train(self, tasks, on_step)\n"
        "Worker.train_together = fatal\n"
        "worker_process.main()\n"
    )
    everyone = tasks_of(job, job.model.initial(0), 3)  # in stacks of one client and of two
    for number, failed in ((0, 1), (1, 2)):
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
            "FATAL": everyone[number].client_id,
        }
        with Pool([WorkerProcess(environment, tmp_path / "w.log", module="fatal")]) as pool:
            pool.begin(header(job, tmp_path), 1)
            compute = Workers(job, pool)
            results = list(compute.engine(arms.federated(job), tmp_path, lambda task, step: None).run(everyone))
        expected = [task.client_id for task in everyone[number : number + failed]]
        assert [result.client_id for result in results if isinstance(result, ClientFailure)] == expected
        reason = results[number].reason
        assert "killed by SIGKILL" in reason
        assert ("while it trained 2 clients at once" in reason) == (failed == 2)


def test_a_lost_task_is_a_failure_of_its_client(ready):
    job, _ = ready
    tasks = tasks_of(job, {"m.A": torch.ones(2)}, 2)

    class Losing(Pool):
        def run(self, requests, tell=lambda index, event: None):
            yield from (Lost("the worker process was killed by SIGKILL") for _ in requests)

    assert list(Processes(Losing([]), []).run(tasks)) == [
        ClientFailure(task.client_id, 1, "the worker process was killed by SIGKILL, twice") for task in tasks
    ]


def test_errors_of_the_work_come_back_as_they_are(ready, tmp_path):
    job, pool = ready
    compute = Workers(job, pool)
    adapter = compute.initial()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        compute.export(adapter, 1, tmp_path / "file" / "adapter")
    with pytest.raises(WorkerError, match=r"KeyError.*nonsense"):
        pool.ask(Request({"do": "nonsense"}))
    compute.export(adapter, 1, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_a_broadcast_is_sent_once_to_a_worker(ready, tmp_path, monkeypatch):
    job, pool = ready
    compute = Workers(job, pool)
    adapter = {name: tensor + 0.5 for name, tensor in compute.initial().items()}
    sent = []
    write = workers.write_frame
    monkeypatch.setattr(
        workers, "write_frame", lambda s, h, t: (sent.append((h["do"], len(t))), write(s, h, t))[1]
    )
    list(compute.engine(arms.federated(job), tmp_path, lambda task, step: None).run(tasks_of(job, adapter, 4)))
    equal = {name: tensor.clone() for name, tensor in adapter.items()}
    list(compute.engine(arms.federated(job), tmp_path, lambda task, step: None).run(tasks_of(job, equal, 1)))
    assert [do for do, _ in sent] == ["hold", "train", "train", "train"]  # four clients in two stacks, then one
    for number in range(6):
        other = {name: tensor + number + 1 for name, tensor in adapter.items()}
        list(compute.engine(arms.federated(job), tmp_path, lambda task, step: None).run(tasks_of(job, other, 1)))
    assert len(pool._workers[0]._held) == workers.KEPT_SETS


def test_a_worker_that_cannot_start_says_why(tmp_path):
    with Pool([worker(tmp_path / "w.log", module="fedit.no_such_module")]) as pool:
        pool.begin({}, 1)
        with pytest.raises(
            WorkerError, match=r"cannot start.*exit code 1.*(?s:.*)no_such_module.*(?s:.*)num_workers=1"
        ):
            pool.ask(Request({"do": "initial"}))


@pytest.mark.slow
def test_a_worker_refuses_to_prepare_other_rows(make_config, tmp_path):
    job = prepare(make_config())
    with Pool([worker(tmp_path / "w.log")]) as pool:
        pool.begin({**header(job, tmp_path), "partition": "other"}, 1)
        with pytest.raises(WorkerError, match="dealt differently"):
            pool.ask(Request({"do": "initial"}))


def test_nothing_but_frames_reaches_the_pipe(tmp_path):
    """A module that prints while it is imported, as some libraries do, must not disturb the frames."""
    (tmp_path / "noisy.py").write_text(
        "import os\n"
        "from fedit import worker_process, serving\n"
        "def serve(requests, stream):\n"
        "    print('printed')\n"
        "    os.write(1, b'written')\n"
        "    os.system('echo from a child')\n"
        "    from fedit.engines.frames import write_frame\n"
        "    while True:\n"
        "        requests.get()\n"
        "        write_frame(stream, {'fine': True}, {})\n"
        "serving.serve = serve\n"
        "worker_process.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    noisy = WorkerProcess(environment, tmp_path / "w.log", module="noisy")
    with Pool([noisy]) as pool:
        pool.begin({}, 1)
        assert pool.ask(Request({"do": "anything"})).header == {"fine": True}
    text = (tmp_path / "w.log").read_text()
    assert all(word in text for word in ("printed", "written", "from a child"))


def test_the_end_of_the_parent_ends_the_workers(tmp_path):
    parent = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from fedit.engines.workers import WorkerProcess\n"
        "w = WorkerProcess(os.environ, Path(sys.argv[1]))\n"
        "print(w._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, str(tmp_path / "w.log")], stdout=subprocess.PIPE, text=True
    )
    with process:
        pid = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 60
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(pid)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_lost_twice_at_shared_work_is_an_error(ready, monkeypatch):
    job, pool = ready
    compute = Workers(job, pool)

    class Dying(Pool):
        def run(self, requests, tell=lambda index, event: None):
            yield from (Lost("the worker process was killed by SIGKILL") for _ in requests)

    monkeypatch.setattr(compute, "_pool", Dying([]))
    with pytest.raises(WorkerError, match=r"SIGKILL, twice.*num_workers=1"):
        compute.initial()

"""``python -m benchmarks.deployment``: a deployed round beside the plain Flower example of the same job.

Three sites and a server on this machine, one job a payload: a Llama of random weights whose LoRA adapter has 1, 50
or 300 million bytes, one step of one short row a client and round. Measured: seconds of a round with warm workers,
of the same job as a simulation, and of the plain example (`peers/plain_flower.py`); bytes that cross the sites'
connections; the most memory that each process held. Progress goes to standard error, tables to standard output,
whose last line is one JSON object. ``--payloads 1`` takes a few minutes.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from benchmarks.history import machine
from benchmarks.runner import Watch
from benchmarks.wire import Relay

SITES = ("a", "b", "c")
WIDTH, LAYERS = 2048, 4
RANKS = {1: 4, 50: 191, 300: 1144}
"""Millions of bytes -> rank whose factors on q, k, v and o of all layers have as many in float32."""
ROUNDS = {1: 8, 50: 4, 300: 3}
"""Rounds of a job; the first is not counted: workers are warm after it."""
NEEDED_GB = {1: 2, 50: 5, 300: 16}
"""Memory that must be free, or the payload is left out."""
PATIENCE = 3600.0
PEER = Path(__file__).parent / "peers" / "plain_flower.py"
KINDS = {
    "SuperLink": "flower-superlink",
    "server's half": "flwr-serverapp",
    "SuperNode": "flower-supernode",
    "process of a message": "flwr-clientapp",
    "site's worker": "fedit.flower.site",
    "SuperExec": "flower-superexec",
    "supervisor": "deploy ",
}
"""Name of a kind of process -> what its command line has in it."""


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@dataclass
class Memory(Watch):
    """The most resident bytes that a process of each kind has held."""

    roots: list[int]
    peaks: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """Keep what every process holds now, if it is more."""
        for root in self.roots:
            self._look(root)

    def _look(self, root: int) -> None:
        try:
            tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                command, held = " ".join(process.cmdline()), process.memory_info().rss
            except psutil.Error:
                continue
            kind = next((name for name, words in KINDS.items() if words in command), None)
            if kind is not None:
                self.peaks[kind] = max(self.peaks.get(kind, 0), held)


class Programs:
    """Programs that were started in a folder, each the leader of a process group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "FEDIT_CACHE": str(folder / "cache")}
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, log: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        with open(self.folder / log, "ab") as out:
            self._running.append(
                subprocess.Popen(
                    command,
                    stdout=out,
                    stderr=out,
                    cwd=self.folder,
                    env={**self.environment, **(environment or {})},
                    start_new_session=True,
                )
            )

    def call(self, command: list[str], environment: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
        return done.stdout

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._running]

    def check(self) -> None:
        """Raise an error where one of them has ended."""
        for process in self._running:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args} ended with {process.returncode}; see {self.folder}")

    def stop(self) -> None:
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, 9)
            process.wait()


def wait_until(there: Callable[[], bool], programs: Programs, pause: float = 0.5) -> None:
    ends = time.monotonic() + PATIENCE
    while not there():
        programs.check()
        if time.monotonic() > ends:
            raise RuntimeError(f"it did not come; see {programs.folder}")
        time.sleep(pause)


# --- the job ---


def write_job(folder: Path) -> None:
    """Write the base model and each site's rows."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    rules.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = AutoConfig.for_model(
        "llama",
        vocab_size=256 + len(special),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    every = []
    for site in SITES:
        rows = [{"instruction": f"Say {site} {n}.", "response": f"{site} {n}", "site": site} for n in range(8)]
        (folder / f"{site}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        every += rows
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every))


def settings_of(folder: Path, payload: int) -> dict[str, object]:
    return {
        "model": str(folder / "model"),
        "device": "cpu",
        "dtype": "fp32",
        "lora_r": RANKS[payload],
        "lora_alpha": 2 * RANKS[payload],
        "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "num_rounds": ROUNDS[payload],
        "local_steps": 1,
        "batch_size": 1,
        "max_length": 64,
        "stack_clients": 1,
        "num_threads": 1,
    }


# --- as a simulation ---


def simulate(folder: Path, payload: int) -> None:
    """Run the job in this process; print seconds of each round, and of the training in it."""
    from fedit import settings
    from fedit.launch import run
    from fedit.worker import Worker

    spent: list[float] = []
    train = Worker.train_together

    def timed(self, *arguments, **options):
        began = time.perf_counter()
        try:
            return train(self, *arguments, **options)
        finally:
            spent.append(time.perf_counter() - began)

    Worker.train_together = timed
    own = {"dataset": str(folder / "all.jsonl"), "partitioner": "natural", "partition_by": "site", "held_out": 0.1}
    job = {**settings_of(folder, payload), **own, "num_workers": 1}
    seconds: list[float] = []
    run(
        settings.from_values(job, "benchmark"),
        folder / f"simulated-{payload}",
        listener=lambda event: seconds.append(float(event["seconds"])) if event["event"] == "round" else None,
    )
    training = [sum(spent[n * len(SITES) : (n + 1) * len(SITES)]) for n in range(len(seconds))]
    print(json.dumps({"round_s": seconds, "training_s": training}))


def simulated(folder: Path, payload: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.deployment",
        "--simulate",
        str(folder),
        "--payloads",
        str(payload),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    rounds, training = found["round_s"][1:], found["training_s"][1:]
    return {
        "round_s": statistics.median(rounds),
        "overhead_s": statistics.median(r - t for r, t in zip(rounds, training, strict=True)),
        "client_training_s": statistics.median(training) / len(SITES),
    }


# --- deployed ---


@contextmanager
def fedit_deployed(folder: Path) -> Iterator[Callable[[int], dict]]:
    """Yield what deploys the job of a payload and returns what was measured."""
    from fedit.flower.processes import free_port

    own, port = Programs(folder), free_port()
    relay = Relay(port)
    fedit = [sys.executable, "-m", "fedit", "deploy"]
    sites = ",".join(SITES)
    own.call([*fedit, "init", "--sites", sites, "--host", "127.0.0.1", "--port", str(relay.port)])
    deployment = folder / "deployment"
    try:
        own.start("server.log", [*fedit, "server", "deployment", "--port", str(port)])
        for site in SITES:
            bundle = deployment / "sites" / site
            (bundle / "policy.toml").write_text(f"max_rank = {WIDTH}\n")
            own.start(f"{site}.log", [*fedit, "node", str(bundle), "--data", f"{site}.jsonl"])
        wait_until(
            lambda: len(_online(own.call([*fedit, "status", "deployment", "--json"]))) == len(SITES), own, 1.0
        )

        def measure(payload: int) -> dict:
            name = f"payload-{payload}"
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump(settings_of(folder, payload)))
            up, down = relay.up, relay.down
            with Memory(own.pids) as memory:
                own.call([*fedit, "submit", "deployment", path.name, "--name", name, "--deadline", str(PATIENCE)])
                run = deployment / "runs" / name
                wait_until((run / "summary.json").is_file, own)
            lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
            rounds = [event for event in lines if event["event"] == "round"]
            if [event["delivered"] for event in rounds] != [len(SITES)] * ROUNDS[payload]:
                raise RuntimeError(f"not every site delivered in every round; see {run}")
            return {
                "adapter_bytes": rounds[-1]["bytes_up"] // len(SITES),
                "round_s": statistics.median(event["seconds"] for event in rounds[1:]),
                "wire_up": relay.up - up,
                "wire_down": relay.down - down,
                "peak_rss": memory.peaks,
            }

        yield measure
    finally:
        own.stop()
        relay.close()


def _online(text: str) -> list[str]:
    return [site["name"] for site in json.loads(text)["sites"] if site["state"] == "online"]


PLAIN_APP = """[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "plain_flower:server"
clientapp = "plain_flower:client"

[tool.flwr.app.config]
model = ""
rank = 1
rounds = 1
sites = 1
times = ""
"""


@contextmanager
def plain_deployed(folder: Path) -> Iterator[Callable[[int], dict]]:
    """Yield the same for the plain example: Flower's programs as its documentation starts them, without TLS."""
    from fedit.flower.environment import child_environment
    from fedit.flower.processes import free_port

    own, port, home = Programs(folder), free_port(), folder / "plain"
    relay = Relay(port)
    app = home / "app"
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text(PLAIN_APP)
    (app / PEER.name).write_text(PEER.read_text())
    (home / "config.toml").write_text(f'[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    common = child_environment(home)
    try:
        link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        own.start("plain-link.log", [*link, "--disable-runtime-dependency-installation"], common)
        _wait_for_port(port, own)
        for site in SITES:
            state = home / site
            state.mkdir()
            config = f'data="{folder / f"{site}.jsonl"}" state="{state}"'
            node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{relay.port}"]
            own.start(
                f"plain-{site}.log",
                [*node, "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", config],
                {**common, **child_environment(state / "flwr")},
            )

        def measure(payload: int) -> dict:
            times = home / f"times-{payload}.jsonl"
            given = {
                "model": str(folder / "model"),
                "rank": RANKS[payload],
                "rounds": ROUNDS[payload],
                "sites": len(SITES),
                "times": str(times),
            }
            text = " ".join(f"{name}={json.dumps(value)}" for name, value in given.items())
            up, down = relay.up, relay.down
            with Memory(own.pids) as memory:
                own.call(["flwr", "run", str(app), "lab", "--run-config", text], common)
                wait_until(lambda: len(_notes(times)) == 2 * ROUNDS[payload], own)
            marks = [note["time"] for note in _notes(times)]
            return {
                "round_s": statistics.median(e - b for b, e in zip(marks[2::2], marks[3::2], strict=True)),
                "wire_up": relay.up - up,
                "wire_down": relay.down - down,
                "peak_rss": memory.peaks,
            }

        yield measure
    finally:
        own.stop()
        relay.close()


def _notes(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _wait_for_port(port: int, programs: Programs) -> None:
    import socket

    def there() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(there, programs)


# --- what is shown ---


def tables(results: Mapping[int, dict]) -> str:
    lines = [
        "| adapter | simulation, overhead | fedit over Flower | plain Flower | ratio | wire / adapter | plain |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for payload, found in results.items():
        ours, plain, inside = found["fedit"], found["plain"], found["simulation"]
        lines.append(
            f"| {payload} MB | {1000 * inside['overhead_s']:.0f} ms | {ours['round_s']:.1f} s | "
            f"{plain['round_s']:.1f} s | {plain['round_s'] / ours['round_s']:.1f} | "
            f"{on_the_wire(payload, ours, found):.2f} | {on_the_wire(payload, plain, found):.2f} |"
        )
    sizes = list(results)
    lines += ["", f"| peak memory, MB | {' | '.join(f'{size} MB' for size in sizes)} | a byte of payload |"]
    lines.append("|---|" + "---:|" * (len(sizes) + 1))
    for who in ("fedit", "plain"):
        for kind in KINDS:
            held = [results[size][who]["peak_rss"].get(kind) for size in sizes]
            if None in held:
                continue
            slope = (held[-1] - held[0]) / (1e6 * (sizes[-1] - sizes[0])) if len(sizes) > 1 else float("nan")
            cells = " | ".join(f"{one / 1e6:,.0f}" for one in held)
            lines.append(f"| {who}: {kind} | {cells} | {slope:.1f} |")
    return "\n".join(lines)


def on_the_wire(payload: int, own: Mapping[str, float], found: Mapping[str, dict]) -> float:
    """Return bytes both ways of a whole job, over those of the adapters that it carries."""
    carried = 2 * ROUNDS[payload] * len(SITES) * found["fedit"]["adapter_bytes"]
    return (own["wire_up"] + own["wire_down"]) / carried


def fits(payload: int) -> bool:
    free = psutil.virtual_memory().available / 1e9
    if free < NEEDED_GB[payload]:
        say(f"{payload} MB is left out: {free:.1f} GB are free, it takes {NEEDED_GB[payload]}")
    return free >= NEEDED_GB[payload]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deployment")
    parser.add_argument("--payloads", type=int, nargs="+", choices=sorted(RANKS), default=sorted(RANKS))
    parser.add_argument("--simulate", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.simulate is not None:
        simulate(given.simulate, given.payloads[0])
        return
    # What was started is ended, too, where a time limit or a batch system ends this process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fd-") as name:
        folder = Path(name)
        write_job(folder)
        payloads = [payload for payload in given.payloads if fits(payload)]
        if not payloads:
            raise SystemExit("too little memory is free")
        results: dict[int, dict] = {payload: {} for payload in payloads}
        for payload in payloads:
            results[payload]["simulation"] = simulated(folder, payload)
            say(f"simulation, {payload} MB: {results[payload]['simulation']}")
        for who, deployed in (("fedit", fedit_deployed), ("plain", plain_deployed)):
            with deployed(folder) as measure:
                for payload in payloads:
                    results[payload][who] = measure(payload)
                    say(f"{who}, {payload} MB: {results[payload][who]['round_s']:.1f} s a round")
    print(tables(results))
    seconds = round(time.monotonic() - began)
    print(json.dumps({"machine": machine(), "load": load, "seconds": seconds, "results": results}))


if __name__ == "__main__":
    main()

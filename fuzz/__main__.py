"""``python -m fuzz``: run every target for so many seconds, print executions and crashes, exit with 1 on a crash.

Each target runs in a child process, so that one that kills the interpreter is found and named too.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from fuzz.loop import fuzz
from fuzz.target import Target, name_of
from fuzz.targets import TARGETS

FOUND = Path("fuzz/found")
"""Where inputs that break something are written; what was repaired goes from there to the corpus."""
_SPARE = 3 << 30
"""Bytes of address space that a target may take beyond what its libraries have."""


def main() -> int:
    """Run what the command line asks for and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="a target (default: 10)")
    parser.add_argument("--seed", type=int, help="of the broken inputs; default: the clock's")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]}")
    seed = int(time.time()) if given.seed is None else given.seed
    return _all(given.targets or list(TARGETS), given.seconds, seed)


def _all(names: list[str], seconds: float, seed: int) -> int:
    print(f"{len(names)} targets, {seconds:g} seconds each, seed {seed}; found inputs go to {FOUND}/")
    print(f"{'target':<22}{'executions':>12}{'a second':>10}{'lines':>8}{'crashes':>9}")
    total = crashes = 0
    for name in names:
        result = _in_process(name, seconds, seed)
        total += result["executions"]
        crashes += len(result["crashes"])
        rate = result["executions"] / max(result["seconds"], 1e-9)
        print(
            f"{name:<22}{result['executions']:>12,}{rate:>10,.0f}{result['reached']:>8}{len(result['crashes']):>9}",
            flush=True,
        )
        for crash in result["crashes"]:
            print(f"    {crash['told']}\n      at {crash['where']}, input: {crash['file']}", flush=True)
    print(f"{'all':<22}{total:>12,}{'':>18}{crashes:>9}")
    return 1 if crashes else 0


def _in_process(name: str, seconds: float, seed: int) -> dict:
    """Return the outcome of a target, run in a child of this process; where that died, that is a crash."""
    with tempfile.TemporaryDirectory() as scratch:
        last, result = Path(scratch) / "last", Path(scratch) / "result"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with open(Path(scratch) / "said", "w") as said:
                    os.dup2(said.fileno(), 1)
                    os.dup2(said.fileno(), 2)
                    result.write_text(json.dumps(_alone(TARGETS[name], seconds, seed, last)))
                    code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if result.is_file():
            return json.loads(result.read_text())
        size, _, data = last.read_bytes().partition(b"\n") if last.is_file() else (b"0", b"", b"")
        file = _keep(name, data[: int(size)])
        said = (Path(scratch) / "said").read_text(errors="replace").strip().splitlines() or [""]
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an error"
        crash = {"told": f"the process ended with {how}: {said[-1][:300]}", "where": "the process", "file": file}
        return {"executions": 0, "seconds": 0.0, "reached": 0, "crashes": [crash]}


def _alone(target: Target, seconds: float, seed: int, last: Path) -> dict:
    """Fuzz a target here, and return the outcome as JSON values; the input under way stands in ``last``."""
    for data in target.seeds:  # loads libraries, before memory is limited
        with suppress(Exception):  # is found again, and told then
            target.try_(data)
    _limit_memory()
    descriptor = os.open(last, os.O_WRONLY | os.O_CREAT)

    def note(data: bytes) -> None:
        os.pwrite(descriptor, b"%d\n%s" % (len(data), data), 0)

    outcome = fuzz(target, seed=seed, seconds=seconds, note=note)
    crashes = [
        {"told": crash.told, "where": crash.where, "file": _keep(target.name, crash.data)}
        for crash in outcome.crashes.values()
    ]
    return {
        "executions": outcome.executions,
        "seconds": outcome.seconds,
        "reached": outcome.reached,
        "crashes": crashes,
    }


def _limit_memory() -> None:
    """Make allocations fail that are out of all proportion, where the system can."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    most = pages * resource.getpagesize() + _SPARE
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _keep(name: str, data: bytes) -> str:
    folder = FOUND / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name_of(data)
    path.write_bytes(data)
    return str(path)


if __name__ == "__main__":
    sys.exit(main())

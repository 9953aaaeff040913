"""``make chaos``: kills at random moments of short deployed runs, of every kind of process.

Every run must end, count every round once, and end with the adapter of a run that nobody disturbed. A line a
kill is kept, so that what was interrupted goes on where it stopped.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deploying import JOB, KINDS, SITE_KINDS, Deployed, assert_ended_like, read_lines, simulated
from splitting import SITES
from tiny import save_model

LONGEST_PAUSE = 6.0
"""Seconds after a round's end within which the kill comes; a round takes about as long."""
RESULTS = "kills.jsonl"
ROUNDS = int(str(JOB["num_rounds"]))


@dataclass(frozen=True)
class Kill:
    """One kill.

    number: its place; kind: of process; site: whose, if it is a site's.
    round:  that was whole before it, 0: none; pause: seconds after that.
    """

    number: int
    kind: str
    site: str
    round: int
    pause: float


def plan(count: int, seed: int) -> list[Kill]:
    """Return kills of all kinds, equally often, in an order and at moments that the seed gives."""
    rng = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += rng.sample(sorted(KINDS), len(KINDS))
    return [
        Kill(
            number,
            kind,
            rng.choice(SITES) if kind in SITE_KINDS else "",
            rng.randrange(ROUNDS),
            round(rng.uniform(0, LONGEST_PAUSE), 2),
        )
        for number, kind in enumerate(kinds[:count], start=1)
    ]


def left(kills: Sequence[Kill], folder: Path) -> Iterator[Kill]:
    """Yield the kills of which the folder has no result."""
    done = {line["number"] for line in read_lines(folder / RESULTS)}
    yield from (kill for kill in kills if kill.number not in done)


def carry_out(kill: Kill, deployed: Deployed, expected: dict) -> dict[str, object]:
    """Disturb one run and return how it went."""
    name = f"kill-{kill.number:02}"
    deployed.wait_for_sites()
    started = time.monotonic()
    deployed.submit("--deadline", 600, name=name)
    if kill.round:
        deployed.wait_for_round(kill.round, name)
    time.sleep(kill.pause)
    state = deployed.state(name)
    killed = deployed.kill(kill.kind, kill.site, until=lambda: deployed.state(name) != "active")
    assert_ended_like(deployed, expected, name, ROUNDS)
    took = round(time.monotonic() - started, 1)
    return {**asdict(kill), "run": state, "killed": killed, "seconds": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"), help="where results are kept")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    waiting = list(left(plan(given.kills, given.seed), given.folder))
    if not waiting:
        print(f"all {given.kills} kills are done; see {given.folder / RESULTS}")
        return
    with tempfile.TemporaryDirectory(prefix="fedit-chaos-") as place:  # short: sockets have short paths
        save_model("llama", Path(place) / "model")
        deployed = Deployed.create(Path(place) / "d", Path(place) / "model")
        os.environ["FEDIT_CACHE"] = str(Path(place) / "d" / "cache")
        expected = simulated(deployed)
        try:
            deployed.begin()
            for kill in waiting:
                result = carry_out(kill, deployed, expected)
                with open(given.folder / RESULTS, "a") as file:
                    file.write(json.dumps(result) + "\n")
                print(
                    f"kill {kill.number:2} of {given.kills}: {kill.kind} {kill.site} {kill.pause:.1f} s after "
                    f"round {kill.round}: the same adapter after {result['seconds']:.0f} s",
                    flush=True,
                )
        finally:
            remaining = deployed.stop()
    assert not remaining, f"left running: {remaining}"
    print(f"{given.kills} kills: no run lost, no round counted twice, the same adapter every time")


if __name__ == "__main__":
    main()

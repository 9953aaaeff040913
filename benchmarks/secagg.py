"""``python -m benchmarks.secagg``: what a secure sum takes beside a plain one, in one CPU thread.

Whole sessions are played in this process over random updates. Some clients drop out after they have shared their
secrets, which is the dearest place. Progress goes to standard error, the table to standard output, whose last line
is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from benchmarks.history import machine
from fedit import tensors
from fedit.privacy.secagg import client, server
from fedit.privacy.secagg.encoding import FixedPoint
from fedit.privacy.secagg.messages import AskMasked, Masked
from fedit.privacy.secagg.vectors import encoded
from fedit.types import ClientUpdate, Tensors
from fedit.updates import Updates

COHORTS = ((10, 921_600), (30, 921_600), (100, 921_600), (1000, 20_000))
"""Clients and entries of an update: LoRA of rank 8 on q, k, v and o of SmolLM2-135M; few where many join."""
DROPPED = (0.0, 0.1)
THRESHOLD = 0.5


@dataclass(frozen=True)
class Row:
    """One session.

    neighbours: of each client; dropped: share that shared and sent no vector.
    setup:      CPU ms of a client's keys, shares and letters.
    mask:       CPU ms a client and megabyte (of float32 entries) for encoding and masking.
    add:        CPU ms a client and megabyte for adding masked vectors up; open: for taking the masks off the sum.
    plain:      CPU ms a client and megabyte of a plain weighted mean.
    up:         bytes that a client sends, over those of its float32 entries.
    letters:    kilobytes that a client sends and receives beside vectors.
    error:      distance of the mean from the exact one, over that one's norm.
    """

    clients: int
    entries: int
    neighbours: int
    dropped: float
    setup: float
    mask: float
    add: float
    open: float
    plain: float
    up: float
    letters: float
    error: float

    @property
    def server_ratio(self) -> float:
        """How many times as long as a plain mean the server takes."""
        return (self.add + self.open) / self.plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two smallest cohorts")
    arguments = parser.parse_args()
    started = time.time()
    rows = []
    measure(3, 1000, 0.0)  # what is loaded and built at the first call is nobody's
    for clients, entries in COHORTS[:2] if arguments.quick else COHORTS:
        for dropped in DROPPED:
            print(f"{clients} clients, {entries:,} entries, {dropped:.0%} drop out", file=sys.stderr, flush=True)
            rows.append(measure(clients, entries, dropped))
    copy = copying()
    print_table(rows, copy)
    result = {"rows": [asdict(row) for row in rows], "copy_ms_per_megabyte": copy, "machine": machine()}
    print(json.dumps({**result, "seconds": round(time.time() - started)}))


class Clock:
    """Adds up the CPU seconds of what it is given to do."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, act: Callable[[], object]):
        began = time.process_time()
        found = act()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
        return found


def measure(count: int, entries: int, dropped: float) -> Row:
    names = [f"c{number:04}" for number in range(count)]
    gone = set(names[: round(dropped * count)])
    weights = dict(zip(names, np.random.default_rng(1).integers(1, 1000, count).tolist(), strict=True))
    layout = tensors.layout_of({"m.A": torch.empty(entries)})
    clock, letters = Clock(), 0

    def update(name: str) -> ClientUpdate:
        drawn = torch.randn(entries, generator=torch.Generator().manual_seed(names.index(name)))
        delta: Tensors = tensors.Flat(layout, drawn.mul_(1e-3))
        return ClientUpdate(name, 1, weights[name], float(weights[name]), delta)

    session = server.Session(names, threshold=THRESHOLD)
    own = {}
    for name, asked in session.ask_keys().items():
        own[name], said = clock("setup", lambda name=name, asked=asked: client.begin(name, 1, asked))
        session.keys(name, said.as_json())
    questions = session.ask_shares()
    neighbours = len(questions[names[0]].peers)
    for name, asked in questions.items():
        state = own[name]
        own[name], said = clock("setup", lambda state=state, asked=asked: client.hand_out(state, asked, THRESHOLD))
        letters += size(asked) + size(said)
        session.shares(name, said.as_json())
    grid = FixedPoint.for_cohort(64.0, count, max(weights.values()))
    terms = server.Terms(entries, (), grid.limit, grid.bits, grid.heaviest, None, 0.0, ("weight",))
    upload = 0
    for name, asked in session.ask_masked(terms).items():
        letters += size(asked)
        state = own[name]
        own[name] = clock("setup", lambda state=state, asked=asked: client.accept(state, asked, THRESHOLD))
        if name in gone:
            continue
        vector, own[name] = clock("mask", lambda name=name, asked=asked: masked(own[name], update(name), asked))
        upload = vector.nbytes
        clock("add", lambda name=name, vector=vector: session.masked(name, Masked(()).as_json(), vector))
    for name, asked in session.ask_unmask().items():
        own[name], said = clock("setup", lambda name=name, asked=asked: client.reveal(own[name], asked, THRESHOLD))
        letters += size(asked) + size(said)
        session.unmask(name, said.as_json())
    total = clock("open", session.total)
    mean = grid.decode(total[:entries]) / sum(weights[name] for name in session.survivors)
    survivors = session.survivors
    plain = clock("drawing", lambda: [update(name) for name in survivors])
    expected = clock("plain", lambda: Updates(plain, {"m.A": torch.empty(entries)}).mean())
    exact = sum(one.weight * one.delta["m.A"].double() for one in plain) / expected.weight
    error = np.linalg.norm(mean - exact.numpy()) / np.linalg.norm(exact.numpy())
    drawing = clock.seconds["drawing"] / len(survivors)
    megabytes = 4e-6 * entries * len(survivors)
    each = {name: 1e3 * seconds / megabytes for name, seconds in clock.seconds.items()}
    return Row(
        count,
        entries,
        neighbours,
        dropped,
        1e3 * clock.seconds["setup"] / count,
        each["mask"] - 1e3 * drawing * len(survivors) / megabytes,
        each["add"],
        each["open"],
        each["plain"],
        upload / (4 * entries),
        letters / count / 1e3,
        float(error),
    )


def masked(state: client.Session, update: ClientUpdate, asked: AskMasked) -> tuple[np.ndarray, client.Session]:
    vector, _ = encoded(update, asked)
    return vector, client.mask(state, vector)


def size(message) -> int:
    return len(json.dumps(message.as_json()))


def copying(megabytes: int = 64) -> float:
    """Return the CPU ms that a copy of a megabyte takes."""
    held = np.ones(megabytes * 125_000)
    room = np.empty_like(held)
    began = time.process_time()
    for _ in range(10):
        np.copyto(room, held)
    return 1e3 * (time.process_time() - began) / (10 * megabytes)


def print_table(rows: list[Row], copy: float) -> None:
    print(
        "| clients | entries | neighbours | drop out | client, once | client, a MB | server, a client and MB |",
        end="",
    )
    print(" plain mean | server / plain | up / float32 | letters | error |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row.clients} | {row.entries:,} | {row.neighbours} | {row.dropped:.0%} | {row.setup:.1f} ms "
            f"| {row.mask:.1f} ms | {row.add:.2f} + {row.open:.2f} ms | {row.plain:.2f} ms "
            f"| {row.server_ratio:.0f} | {row.up:.2f} | {row.letters:.0f} kB | {row.error:.0e} |"
        )
    print(
        f"\nA copy in memory takes {copy:.2f} ms a MB. Megabytes are of float32 entries; CPU time on one thread.\n"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

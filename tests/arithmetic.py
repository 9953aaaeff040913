"""An engine whose clients are arithmetic, and a loop over it."""

from dataclasses import dataclass, field

import torch

from fedit.clock import Clock, build_devices
from fedit.rounds import run_rounds
from fedit.strategies.fedit import FedIT
from fedit.types import ClientInfo, ClientUpdate, LocalTraining, ServerState

SHAPES = {"m.A": (2, 3), "m.B": (4, 2)}


def constant(value):
    return {name: torch.full(shape, float(value)) for name, shape in SHAPES.items()}


@dataclass
class Arithmetic:
    """Client k moves every entry a tenth of the way to its own seeded target, and says a loss of its own.

    sizes: examples of each client.
    """

    sizes: list
    spoil: dict = field(default_factory=dict)  # (round, client) -> result maker
    tasks: list = field(default_factory=list)

    def clients(self):
        return [ClientInfo(f"c{k}", size) for k, size in enumerate(self.sizes)]

    def run(self, tasks):
        for task in tasks:
            self.tasks.append(task)
            number = int(task.client_id[1:])
            generator = torch.Generator().manual_seed(number)
            delta = {
                name: 0.1 * (torch.randn(tensor.shape, generator=generator) - tensor)
                for name, tensor in task.broadcast.adapter.items()
            }
            size = self.sizes[number]
            loss = 1.0 + (number * 7 + task.round) % 5
            metrics = {"loss": loss, "tokens": 100.0, "steps": float(task.training.steps or 0)}
            update = ClientUpdate(
                task.client_id,
                task.round,
                size,
                float(size),
                delta,
                metrics=metrics,
                scale=task.broadcast.scale or 1.0,
            )
            spoil = self.spoil.get((task.round, task.client_id))
            yield spoil(update) if spoil else update


def training(round, rounds=9):
    return LocalTraining(learning_rate=0.1 * round, num_rounds=rounds, steps=4, batch_size=5)


def clock(seed=0, name="lognormal", tokens=500, **options):
    return Clock(build_devices(name, options), lambda client: tokens, seed)


def go(engine, pace, rounds=6, start=None, strategy=None, **options):
    strategy = strategy or FedIT()
    return list(
        run_rounds(
            start or strategy.init(constant(0)),
            engine,
            strategy,
            rounds=rounds,
            cohort=pace,
            training=training,
            seed=0,
            **options,
        )
    )


def same(one: ServerState, two: ServerState) -> bool:
    """Return whether two states are equal, bit for bit."""
    parts = ("adapter", "ledger", "memory", "schedule")
    return one.round == two.round and all(
        set(getattr(one, part)) == set(getattr(two, part))
        and all(
            torch.equal(torch.nan_to_num(a, nan=-1.0), torch.nan_to_num(getattr(two, part)[n], nan=-1.0))
            for n, a in getattr(one, part).items()
        )
        for part in parts
    )

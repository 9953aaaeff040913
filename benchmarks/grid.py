"""Every point that is measured: each peer as published, and over a grid of its own options."""

import ctypes.util
from dataclasses import dataclass, field

import torch

from fedit.model.hardware import multiplies_bf16

PEERS = ("shepherd", "openfedllm", "flowertune")

# No memory is given back between steps, nothing is mapped anew, huge pages where the kernel offers them.
GLIBC = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
    ":glibc.malloc.top_pad=268435456:glibc.malloc.hugetlb=1"
}
UNPADDED = {"dropout": 0.0, "group_by_length": True}


@dataclass(frozen=True)
class Point:
    """One peer, or fedit, at one setting."""

    who: str
    name: str
    options: dict[str, object] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.who}: {self.name}"


def fast_dtype() -> str:
    """Return the dtype that this CPU multiplies fastest, which tuned settings take."""
    return "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32"


def default(who: str) -> Point:
    return Point(who, "default")


def tuned(who: str) -> Point:
    """Return the setting that was best of the grid where it was tried; the full run finds out on this machine.

    A micro-batch of one row has no padding at all; bf16 autocast casts all weights anew in every micro-batch,
    which larger ones share.
    """
    dtype = {"dtype": fast_dtype()}
    if who == "shepherd":
        size = 1 if fast_dtype() == "fp32" else 4
        options = {**dtype, **UNPADDED, "micro_batch": size}
        return Point(who, f"{dtype['dtype']}, grouped, dropout 0, micro-batch {size}, glibc", options, GLIBC)
    options = {**dtype, "dropout": 0.0, "checkpointing": False, "packing": 512}
    return Point(who, f"{dtype['dtype']}, packing 512, dropout 0, no checkpointing, glibc", options, GLIBC)


def full(who: str) -> list[Point]:
    """Return the whole grid of a peer, its default and tuned settings first."""
    bf16 = {"dtype": "bf16"}
    points = [default(who), tuned(who), Point(who, "dropout 0", {"dropout": 0.0}), Point(who, "bf16", bf16)]
    points += [Point(who, "group_by_length", {"group_by_length": True}), Point(who, "glibc", {}, GLIBC)]
    points += [Point(who, f"micro-batch {size}", {"micro_batch": size}) for size in (1, 4)]
    if who == "shepherd":
        points += [
            Point(who, "checkpointing", {"checkpointing": True}),
            Point(who, "bf16, grouped, dropout 0, glibc", {**bf16, **UNPADDED}, GLIBC),
            Point(who, "fp32, grouped, dropout 0, micro-batch 2, glibc", {**UNPADDED, "micro_batch": 2}, GLIBC),
            Point(who, "micro-batch 1, dropout 0", {"micro_batch": 1, "dropout": 0.0}),
        ]
    else:
        plain = {"checkpointing": False}
        points += [
            Point(who, "no checkpointing", plain),
            Point(who, "no checkpointing, grouped, dropout 0, glibc", {**plain, **UNPADDED}, GLIBC),
            Point(who, "no checkpointing, micro-batch 1, dropout 0", {**plain, "micro_batch": 1, "dropout": 0.0}),
            Point(who, "no checkpointing, packing 512", {**plain, "packing": 512}),
            Point(
                who,
                "no checkpointing, packing 1024, dropout 0, glibc",
                {**tuned(who).options, "packing": 1024},
                GLIBC,
            ),
            Point(
                who, "bf16, no checkpointing, packing 512, dropout 0, glibc", {**tuned(who).options, **bf16}, GLIBC
            ),
        ]
    if library := ctypes.util.find_library("jemalloc"):
        best = tuned(who)
        points.append(Point(who, best.name.replace("glibc", "jemalloc"), best.options, {"LD_PRELOAD": library}))
    return points


def ours() -> Point:
    """fedit as its users run it."""
    return Point("fedit", "default")


def ours_full() -> list[Point]:
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return [
        ours(),
        Point("fedit", "glibc", {}, GLIBC),
        Point("fedit", "bf16", {"dtype": "bf16"}),
        Point("fedit", "all-linear targets", {"targets": linear}),
    ]

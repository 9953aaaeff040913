"""The table of all targets: what may come from outside, by where it comes in."""

from fuzz.target import Target
from fuzz.targets import data, deployment, judging, migration, models, privacy, runs, settings, ui, wire

TARGETS: dict[str, Target] = {
    target.name: target
    for room in (settings, data, models, wire, runs, deployment, privacy, judging, migration, ui)
    for target in room.TARGETS
}

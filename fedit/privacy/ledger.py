"""The ledger: what was spent on whom, on disk before anything is released, never forgotten by a resumed run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from fedit.errors import RunFolderError
from fedit.files import read_json, write_json
from fedit.privacy.accounting import Charge, Epsilon, epsilon_of

FILE = "privacy.json"
"""The ledger in the folder of an arm."""

ANYONE = ""
"""The unit whose charges are those of every client alike."""


class Ledger:
    """Charges by unit: of every client alike (`ANYONE`), or of single clients by id, for their examples.

    A charge is written before its noise is drawn. Whoever is interrupted between that and the checkpoint of its
    round does the round again with new noise, and is charged for both.

    path: None: kept in memory alone.

    Raises:
        RunFolderError: the file cannot be read.
    """

    def __init__(self, path: Path | None = None, delta: float = 1e-5) -> None:
        self._path = path
        self.delta = delta
        self._charges: dict[str, tuple[Charge, ...]] = {}
        if path is not None and path.is_file():
            self._charges = _read(path)

    def charge(self, charge: Charge, unit: str = ANYONE) -> None:
        """Add a charge; equal ones are one of more steps.

        Raises:
            RunFolderError: it cannot be written down, so that nothing may be released.
        """
        self._charges[unit] = added(self._charges.get(unit, ()), charge)
        if self._path is not None:
            units = {name: [asdict(one) for one in own] for name, own in self._charges.items()}
            write_json(self._path, {"delta": self.delta, "version": 1, "units": units})

    def charges(self, unit: str = ANYONE) -> tuple[Charge, ...]:
        """Return what was charged to a unit."""
        return self._charges.get(unit, ())

    def units(self) -> Sequence[str]:
        """Return all who were charged, sorted."""
        return sorted(self._charges)

    def spent(self, unit: str = ANYONE, *more: Charge) -> Epsilon:
        """Return what a unit has spent, with ``more`` as if that had been charged too."""
        charges = self.charges(unit)
        for charge in more:
            charges = added(charges, charge)
        return epsilon_of(charges, self.delta)

    def most(self) -> Epsilon:
        """Return what the unit that spent most has spent."""
        return max((self.spent(unit) for unit in self._charges), key=lambda e: e.value, default=Epsilon(0.0, 0.0))

    def steps(self, unit: str = ANYONE) -> int:
        """Return how many rounds or steps a unit was charged for."""
        return sum(charge.steps for charge in self.charges(unit))

    def refuse_lost(self, steps: int, unit: str = ANYONE) -> None:
        """Make sure that the ledger knows as many steps as a state that was reached with it.

        Raises:
            RunFolderError: it knows fewer: it was lost or replaced.
        """
        if self.steps(unit) < steps:
            raise RunFolderError(
                f"the ledger of privacy {self._path} holds {self.steps(unit)} of the {steps} charges of this run; "
                "what was spent is not known any more, so the run cannot go on: start a new one."
            )


def added(charges: Sequence[Charge], charge: Charge) -> tuple[Charge, ...]:
    """Return ``charges`` with one more, merged with those that differ from it in nothing but their steps."""
    alike = [one for one in charges if replace(one, steps=charge.steps) == charge]
    others = [one for one in charges if one not in alike]
    return (*others, replace(charge, steps=charge.steps + sum(one.steps for one in alike)))


def _read(path: Path) -> dict[str, tuple[Charge, ...]]:
    content = read_json(path)
    units = content.get("units")
    try:
        if not isinstance(units, Mapping):
            raise TypeError("it holds no units")
        return {str(name): tuple(Charge(**one) for one in own) for name, own in units.items()}
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"the ledger of privacy {path} cannot be read: {error}") from error

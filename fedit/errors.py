"""Everything fedit raises on purpose.

    FeditError
    ├── UserError            the user's mistake: exit code 2, no traceback
    │   ├── ConfigError      a setting: its name, its type or its value
    │   │   └── UnknownName  a name that is in no table
    │   ├── DataError        rows, files, columns, partitions
    │   ├── ModelError       a base model or an adapter that cannot be used
    │   └── RunFolderError   a run folder that cannot be written, read or resumed
    ├── RoundError           a round that cannot go on
    │   ├── NoUpdates        too few clients delivered
    │   ├── SealedUpdates    one client's update was asked for where only the sum may be seen
    │   └── UpdatesConsumed  a cohort's updates were read twice
    ├── DamagedPayload       what was sent is not what arrived
    ├── ProtocolError        a message that breaks the rules of secure aggregation
    ├── HubError             a hub that refuses, or cannot be reached
    ├── JudgeError           a judge that does not answer
    └── ServeError           a server that ended by itself

A message says what was found, what was expected and what to do, with values in it.
"""

import difflib
from collections.abc import Iterable


class FeditError(Exception):
    """Base of all errors that fedit raises on purpose."""


class UserError(FeditError):
    """A mistake in what the user gave; the command line exits with code 2."""


class ConfigError(UserError):
    """A setting is unknown, has the wrong type or a value that cannot work."""


class UnknownName(ConfigError):
    """A name that is in no table; the message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(f"unknown {kind} '{name}'{did_you_mean(name, names)} Known: {', '.join(names)}.")


class DataError(UserError):
    """Rows, files, columns or a partition that cannot be used."""


class ModelError(UserError):
    """A base model or an adapter that cannot be found, read or trained."""


class RunFolderError(UserError):
    """A run folder that cannot be written, read or resumed."""


class RoundError(FeditError):
    """A round that cannot go on."""


class NoUpdates(RoundError):
    """Fewer clients delivered than ``min_clients`` asks for."""


class SealedUpdates(RoundError):
    """Single updates are hidden (secure aggregation, central differential privacy) and one was asked for."""


class UpdatesConsumed(RoundError):
    """A cohort's updates stream once and were read a second time."""


class DamagedPayload(FeditError):
    """Tensors arrived that are not what was sent, or nothing that can be read."""


class ProtocolError(FeditError):
    """A message of secure aggregation that no honest sender sends, or not now; nothing is answered to it."""


class HubError(FeditError):
    """The hub refuses what it was asked, or cannot be reached."""


class JudgeError(FeditError):
    """A judge's endpoint does not answer, or not with what it should."""


class ServeError(FeditError):
    """The server behind which a model was put ended by itself, or did not start."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known name, or ``"."``."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else "."

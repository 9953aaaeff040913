"""Votes of people between two answers: how they are kept, and how often each arm won."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from fedit.errors import DataError, RunFolderError
from fedit.files import reason
from fedit.reading import parse_json
from fedit.report.numbers import wilson

FILE = "votes.jsonl"
SCHEMA = 1
"""Version of a line's fields."""

Winner = Literal["first", "second", "tie", "both_bad"]
WINNERS: tuple[str, ...] = get_args(Winner)


@dataclass(frozen=True, slots=True)
class Vote:
    """One verdict between two arms, as a line of a votes file says it; a judge's pairwise verdict reads the same.

    first, second: the arms, in the order in which their answers were shown.
    winner: "first", "second", "tie" or "both_bad".
    blind: whether the names were hidden until the vote.
    vote: what verdicts of one vote among more than two answers have in common.
    question_id: of the question in its set; "" for one that was typed.
    identities: first's and second's `fedit.resident.Resident.identity`; "" where unknown.
    """

    first: str
    second: str
    winner: Winner
    blind: bool = True
    vote: str = ""
    question_id: str = ""
    identities: tuple[str, str] = ("", "")


@dataclass(slots=True)
class Pair:
    """Verdicts between two arms, counted for ``one``: its wins, losses, ties and those that found both bad."""

    one: str
    other: str
    wins: int = 0
    losses: int = 0
    ties: int = 0
    both_bad: int = 0

    @property
    def count(self) -> int:
        """All verdicts."""
        return self.wins + self.losses + self.ties + self.both_bad

    @property
    def win_rate(self) -> float:
        """Return (w + t/2) / n, where a verdict that both are bad is a tie too."""
        return (self.wins + 0.5 * (self.ties + self.both_bad)) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the win rate; with ties it is wider than it need be."""
        estimate = wilson(self.win_rate * self.count, self.count)
        assert estimate.low is not None
        assert estimate.high is not None
        return estimate.low, estimate.high

    def turned(self) -> "Pair":
        """Return the same counted for the other."""
        return Pair(self.other, self.one, self.losses, self.wins, self.ties, self.both_bad)

    def as_dict(self) -> dict[str, object]:
        """Return the pair as JSON has it."""
        counts = {"wins": self.wins, "losses": self.losses, "ties": self.ties, "both_bad": self.both_bad}
        rates = {"count": self.count, "win_rate": self.win_rate, "interval": list(self.interval)}
        return {"one": self.one, "other": self.other, **counts, **rates}


@dataclass(slots=True)
class Tally:
    """What votes come to.

    votes: how many there were; one among more than two answers is a verdict on several pairs.
    pairs: in the order of their names, each counted for the arm that won more often.
    first_shown: how many of the decided verdicts went to the answer shown first.
    decided: verdicts with a winner.
    not_blind: votes left out because the names were shown before.
    """

    votes: int = 0
    pairs: list[Pair] = field(default_factory=list)
    first_shown: int = 0
    decided: int = 0
    not_blind: int = 0

    def as_dict(self) -> dict[str, object]:
        """Return the tally as JSON has it."""
        return {
            "votes": self.votes,
            "pairs": [pair.as_dict() for pair in self.pairs],
            "first_shown": self.first_shown,
            "decided": self.decided,
            "not_blind": self.not_blind,
        }


def append(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Add ``lines`` to the file, all with one write, and see them onto the disk.

    Raises:
        RunFolderError: the disk is full or the file cannot be written.
    """
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0)
            unfinished = file.read().rpartition(b"\n")[2]
            if unfinished and _is_json(unfinished):
                text = "\n" + text
            elif unfinished:  # by a crash
                file.truncate(file.tell() - len(unfinished))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {reason(error)}") from error


def is_vote(record: Mapping[str, object]) -> bool:
    """Return whether a line of some file looks like a vote."""
    return {"first", "second", "winner"} <= record.keys()


def read_votes(path: Path) -> list[Vote]:
    """Return the votes in ``path``; a last line that a crash left unfinished is none.

    Raises:
        DataError: there is no such file, or a line is no vote.
    """
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read the votes in {path}: {reason(error)}") from error
    if _is_json(last):
        lines.append(last)
    return [_vote(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def tally(votes: Iterable[Vote]) -> Tally:
    """Count the blind votes pair by pair.

    Arms of one name and several identities (a run that went on in between) are counted apart.
    """
    every = list(votes)
    blind = [vote for vote in every if vote.blind]
    result = Tally(votes=_count(blind), not_blind=_count([vote for vote in every if not vote.blind]))
    pairs: dict[tuple[str, str], Pair] = {}
    names = _names(blind)
    for vote in blind:
        first = names[vote.first, vote.identities[0]]
        second = names[vote.second, vote.identities[1]]
        one, other = sorted((first, second))
        pair = pairs.setdefault((one, other), Pair(one, other))
        match vote.winner:
            case "tie":
                pair.ties += 1
            case "both_bad":
                pair.both_bad += 1
            case winner:
                result.decided += 1
                result.first_shown += winner == "first"
                if (first if winner == "first" else second) == one:
                    pair.wins += 1
                else:
                    pair.losses += 1
    ordered = [pairs[key] for key in sorted(pairs)]
    result.pairs = [pair.turned() if pair.losses > pair.wins else pair for pair in ordered]
    return result


def _count(verdicts: Sequence[Vote]) -> int:
    """Return of how many votes these verdicts are."""
    return len({vote.vote for vote in verdicts if vote.vote}) + sum(not vote.vote for vote in verdicts)


def _names(votes: Iterable[Vote]) -> dict[tuple[str, str], str]:
    """Return what to call each arm: by its name, and by the start of its identity where names are not enough."""
    arms = {(vote.first, vote.identities[0]) for vote in votes} | {(v.second, v.identities[1]) for v in votes}
    several = Counter(name for name, _ in arms)
    return {(name, own): f"{name} [{own[:6]}]" if several[name] > 1 else name for name, own in arms}


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _vote(line: bytes, where: str) -> Vote:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with first, second and winner.")
    first, second, winner = record.get("first"), record.get("second"), record.get("winner")
    if not (isinstance(first, str) and isinstance(second, str) and first != second):
        raise DataError(f"{where}: first is {first!r} and second {second!r}; expected two names.")
    if winner not in WINNERS:
        raise DataError(f"{where}: winner is {winner!r}; expected one of {', '.join(WINNERS)}.")
    identities = record.get("identities")
    known = identities if isinstance(identities, dict) else {}
    return Vote(
        first,
        second,
        winner,
        record.get("blind", True) is True,
        str(record.get("vote", "")),
        str(record.get("question_id") or ""),
        (str(known.get("first", "")), str(known.get("second", ""))),
    )

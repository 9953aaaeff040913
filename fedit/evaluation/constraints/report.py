"""How well answers follow their constraints: strictly and loosely, by prompt and by instruction."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedit.errors import DataError
from fedit.evaluation.constraints.kinds import Rule, rule


@dataclass(frozen=True, slots=True)
class Constraint:
    """One instruction of a prompt: its kind, as in IFEval's ``instruction_id_list``, and its arguments."""

    instruction_id: str
    kwargs: Mapping[str, object]

    @classmethod
    def read(cls, entry: object) -> "Constraint":
        """Return the constraint that {"id": …, "kwargs": {…}} writes down; without ``kwargs`` it has none.

        Raises:
            DataError: it is not of that form.
        """
        if not isinstance(entry, Mapping) or not entry.keys() <= {"id", "kwargs"}:
            raise DataError(f'found {entry!r}, expected a constraint {{"id": …, "kwargs": {{…}}}}.')
        name, kwargs = entry.get("id"), entry.get("kwargs", {})
        if not isinstance(name, str):
            raise DataError(f"the id of a constraint is {name!r} and must be text.")
        if not isinstance(kwargs, Mapping):
            raise DataError(f"the constraint {name}: 'kwargs' is {kwargs!r} and must be an object.")
        return cls(name, kwargs)


@dataclass(frozen=True, slots=True)
class ConstraintReport:
    """Accuracies in [0, 1] over what could be measured; None where nothing could.

    prompt_strict, prompt_loose:           share of prompts all of whose constraints are followed.
    instruction_strict, instruction_loose: share of constraints that are followed.
    per_kind:                              kind -> its strict share.
    prompts, instructions:                 how many these are of. A prompt counts only if all its constraints
                                           could be measured.
    prompts_not_measured:                  prompts with a constraint that could not.
    not_measured:                          kind -> constraints that could not be measured on this machine.
    """

    prompt_strict: float | None
    prompt_loose: float | None
    instruction_strict: float | None
    instruction_loose: float | None
    per_kind: Mapping[str, float]
    prompts: int
    instructions: int
    prompts_not_measured: int
    not_measured: Mapping[str, int]


def followed(
    constraints: Sequence[Constraint], prompt: str, answer: str, *, loose: bool = False
) -> list[bool | None]:
    """Return for each constraint whether ``answer`` follows it; None if that cannot be told on this machine.

    loose: take also an answer that follows once its first line, last line, both, or all its asterisks are gone
        (the paper's eight variants): "Sure, here it is:" and Markdown are forgiven.

    Raises:
        DataError: a kind is not known, or an argument is wrong.
    """
    tests = [rule(c.instruction_id, c.kwargs, prompt) for c in constraints]
    variants = _variants(answer) if loose else [answer]
    return [None if test is None else _any(test, variants) for test in tests]


def constraint_report(cases: Iterable[tuple[str, Sequence[Constraint], str]]) -> ConstraintReport:
    """Return the accuracies over ``cases``: each a prompt, its constraints (at least one) and the answer.

    Raises:
        DataError: a kind is not known, or an argument is wrong.
    """
    prompts: list[tuple[bool, bool]] = []
    per_kind: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    not_measured: Counter[str] = Counter()
    skipped = 0
    for prompt, constraints, answer in cases:
        strict = followed(constraints, prompt, answer)
        loose = followed(constraints, prompt, answer, loose=True)
        marks = []
        for constraint, tight, wide in zip(constraints, strict, loose, strict=True):
            if tight is None or wide is None:
                not_measured[constraint.instruction_id] += 1
            else:
                marks.append((tight, wide))
                per_kind[constraint.instruction_id].append((tight, wide))
        if len(marks) == len(constraints):
            prompts.append((all(tight for tight, _ in marks), all(wide for _, wide in marks)))
        else:
            # Counting what is left would be easier than the whole prompt.
            skipped += 1
    instructions = [mark for marks in per_kind.values() for mark in marks]
    return ConstraintReport(
        prompt_strict=_share(prompts, 0),
        prompt_loose=_share(prompts, 1),
        instruction_strict=_share(instructions, 0),
        instruction_loose=_share(instructions, 1),
        per_kind={kind: sum(tight for tight, _ in marks) / len(marks) for kind, marks in sorted(per_kind.items())},
        prompts=len(prompts),
        instructions=len(instructions),
        prompts_not_measured=skipped,
        not_measured=dict(sorted(not_measured.items())),
    )


def _variants(answer: str) -> list[str]:
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [variant.replace("*", "") for variant in cut]


def _any(test: Rule, variants: Sequence[str]) -> bool:
    return any(test(variant) for variant in variants)


def _share(marks: Sequence[tuple[bool, bool]], side: int) -> float | None:
    return sum(mark[side] for mark in marks) / len(marks) if marks else None

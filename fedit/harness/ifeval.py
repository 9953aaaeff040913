"""IFEval's metrics for a task of the harness, by fedit's own port of its constraints.

A task file names them, over rows in the layout of IFEval's file::

    process_results: !function fedit.harness.ifeval.process_results
    metric_list:
      - metric: prompt_strict
        aggregation: mean
        higher_is_better: true
      - metric: instruction_strict
        aggregation: !function fedit.harness.ifeval.share
        higher_is_better: true

The harness's own task ``ifeval`` brings its program and needs nltk's data and langdetect.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

from fedit.evaluation.constraints import Constraint, followed


def process_results(doc: Mapping[str, object], results: Sequence[str]) -> dict[str, object]:
    """Return which constraints the answer to ``doc`` follows, strictly and loosely.

    doc: has ``prompt``, ``instruction_id_list`` and ``kwargs``, one mapping a constraint.

    What cannot be told on this machine (a language without langdetect) is left out, and with it the prompt's own
    two metrics, as `fedit.evaluation.constraints.constraint_report` does.

    Raises:
        DataError: a constraint is not known, or an argument is wrong.
    """
    ids, kwargs, prompt = doc["instruction_id_list"], doc["kwargs"], str(doc["prompt"])
    assert isinstance(ids, Sequence)
    assert isinstance(kwargs, Sequence)
    constraints = [Constraint.read({"id": id, "kwargs": own}) for id, own in zip(ids, kwargs, strict=True)]
    found: dict[str, object] = {}
    for name, loose in (("strict", False), ("loose", True)):
        marks = followed(constraints, prompt, results[0], loose=loose)
        told = [mark for mark in marks if mark is not None]
        if told:
            found[f"instruction_{name}"] = told
        if len(told) == len(marks):
            found[f"prompt_{name}"] = all(told)
    return found


def share(items: Sequence[Sequence[bool]]) -> float:
    """Return the share of all constraints of all prompts that are followed."""
    marks = list(chain.from_iterable(items))
    return sum(marks) / len(marks) if marks else 0.0

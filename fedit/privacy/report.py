"""What a run's privacy is: whom it protects from whom, what was spent, and what it does not protect."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

THREATS = (
    "The server is honest but curious: it follows the protocol and may look at all that reaches it.",
    "Clients may look at every model that they are sent, and do not collude with the server.",
    "Readers of what is released see every round's model, the settings, and this run's records.",
    "The base model, the settings and the seed of the first adapter are public.",
)
"""Whom the guarantees are against."""

_PLAIN = "Changes of an adapter can still reveal what a client trained on: nothing was added to hide it."
_CLIENT = (
    "What any one client contributed, all of its rows together, cannot be told from the models of this run beyond "
    "what epsilon and delta allow, provided that the server clips and adds noise as it should."
)
_EXAMPLE = (
    "Any one example of a client cannot be told from what the client sends, not even by the server, beyond what "
    "epsilon and delta allow."
)
_SAMPLING = {
    "poisson": "each client by a secret coin of its own, which counts in its favour",
    "without_replacement": "so many of all without replacement, secretly; accounted for as replacing a client",
    "none": "in a way that hides nobody: every round counts in full",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """A privacy report.

    guarantees: (name, value, detail); unprotected: what the guarantees do not reach, a sentence each.
    """

    opening: str
    guarantees: Sequence[tuple[str, str, str]]
    unprotected: Sequence[str]

    def as_dict(self) -> dict[str, object]:
        """Return it by name, with the threats that it is against."""
        return {
            "opening": self.opening,
            "threat_model": list(THREATS),
            "guarantees": [{"name": n, "value": v, "detail": d} for n, v, d in self.guarantees],
            "not_protected": list(self.unprotected),
        }


def stated(privacy: Mapping[str, object], *, baselines: Sequence[str] = ()) -> Statement:
    """Return what can be stated of a run.

    privacy:   what its summary says under that name; empty: nothing was promised.
    baselines: arms beside the federation, which are trained without any protection.
    """
    if privacy.get("level") == "example":
        return _examples(privacy)
    if privacy.get("level") != "client":
        return Statement(_PLAIN, [("Differential privacy", "none", "")], [])
    epsilon, rdp, delta = (_number(privacy.get(name)) for name in ("epsilon", "epsilon_rdp", "delta"))
    limit = privacy.get("max_epsilon")
    guarantees = [
        (
            "Differential privacy of clients",
            f"epsilon {epsilon:.3g} at delta {delta:.3g}",
            f"over {privacy.get('rounds')} rounds; {rdp:.3g} by the looser accountant (RDP)",
        ),
        ("Two federations that look alike", str(privacy.get("neighbours")), "neighbouring relation"),
        (
            "Noise",
            f"{_number(privacy.get('noise_multiplier')):.4g} times the clip norm",
            f"clip norm {_number(privacy.get('clip_norm')):.4g}{', adaptive' if privacy.get('adaptive') else ''}, "
            "over everything that a client sends",
        ),
        (
            "Rounds draw clients",
            _SAMPLING.get(str(privacy.get("sampling")), str(privacy.get("sampling"))),
            f"rate {_number(privacy.get('rate')):.4g}, {_number(privacy.get('expected_cohort')):.4g} expected",
        ),
        (
            "Limit",
            "none" if limit is None else f"epsilon {_number(limit):.3g}",
            "the rounds ended when it was reached" if privacy.get("budget_spent") else "",
        ),
    ]
    return Statement(_CLIENT, guarantees, [*_limits(epsilon), *_released_beside(baselines)])


def _examples(privacy: Mapping[str, object]) -> Statement:
    """Return what can be stated where clients protect each of their examples; rounds are then steps."""
    epsilon, rdp, delta = (_number(privacy.get(name)) for name in ("epsilon", "epsilon_rdp", "delta"))
    guarantees = [
        (
            "Differential privacy of examples",
            f"epsilon {epsilon:.3g} at delta {delta:.3g}",
            f"of the client whom it cost most, over {privacy.get('rounds')} steps at the most; {rdp:.3g} by the "
            "looser accountant (RDP)",
        ),
        ("Two clients that look alike", str(privacy.get("neighbours")), "neighbouring relation"),
        (
            "Noise",
            f"{_number(privacy.get('noise_multiplier')):.4g} times the clip norm",
            f"clip norm {_number(privacy.get('clip_norm')):.4g}, over all factors of an example's gradient",
        ),
        (
            "Steps draw examples",
            str(privacy.get("reason")),
            f"rate {_number(privacy.get('rate')):.4g} at most",
        ),
    ]
    unprotected = [
        "a client as a whole: what many of its examples have in common is learnt.",
        "how many examples a client has, and how long its steps take.",
        "held-out and validation rows: scores on them are released as they are.",
        "the deal of rows that a simulation writes down (partition*.json, pictures of it): leave it out of what "
        "you publish.",
        "other runs on the same rows, tuning included: what they spend adds up.",
        "anything against poisoning: noise is no defence.",
    ]
    if math.isinf(epsilon):
        unprotected.insert(0, "anything: without noise epsilon is unbounded.")
    return Statement(_EXAMPLE, guarantees, unprotected)


def _limits(epsilon: float) -> list[str]:
    """Return what no client-level privacy reaches, and what such an epsilon does not."""
    found = [
        "single updates on their way to the server and in its memory: it must be trusted to clip, add noise and "
        "forget. Secure aggregation hides them from it.",
        "held-out and validation rows: scores on them are released as they are.",
        "how long rounds took, and what the server's own log says of failed clients: keep both to yourself.",
        "the deal of rows that a simulation writes down (partition*.json, pictures of it): leave it out of what "
        "you publish.",
        "other runs on the same rows, tuning included: what they spend adds up.",
        "anything against poisoning: noise is no defence.",
    ]
    if math.isinf(epsilon):
        found.insert(0, "anything: without noise epsilon is unbounded.")
    elif epsilon > 10:
        found.insert(0, f"much: at epsilon {epsilon:.3g} the bound itself excludes little.")
    return found


def _released_beside(baselines: Sequence[str]) -> list[str]:
    if not baselines:
        return []
    return [f"the baselines {', '.join(baselines)}: they are trained without noise, so never release them."]


def _number(value: object) -> float:
    """Return a number of a file, where null stands for an infinite one."""
    return float(value) if isinstance(value, int | float) else math.inf

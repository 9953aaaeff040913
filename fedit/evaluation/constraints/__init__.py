"""Instructions whose following a program can verify: IFEval's 25 kinds (Zhou et al., 2023, arXiv:2311.07911)."""

from fedit.evaluation.constraints.kinds import check, known_kinds, measured_here, rule
from fedit.evaluation.constraints.report import Constraint, ConstraintReport, constraint_report, followed

__all__ = [
    "Constraint",
    "ConstraintReport",
    "check",
    "constraint_report",
    "followed",
    "known_kinds",
    "measured_here",
    "rule",
]

"""The audit of installed packages: what it makes of pip-audit's answer."""

from tools.audit import CLEAN, NOT_REACHED, WEAK, judge

FINE = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch"}


def test_a_known_weakness_is_told_and_fails():
    bad = {"name": "jinja2", "version": "3.1.2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.5"]}]}
    code, lines = judge([FINE, bad, SKIPPED])
    assert (code, lines) == (WEAK, ["jinja2 3.1.2: PYSEC-1, fixed in 3.1.5"])


def test_an_advisory_service_out_of_reach_is_no_clean_result():
    code, lines = judge([SKIPPED, SKIPPED, FINE])
    assert code == NOT_REACHED
    assert "1 of 3 packages could be looked up" in lines[0]
    assert judge([])[0] == NOT_REACHED


def test_what_was_not_looked_up_is_named_beside_a_clean_result():
    assert judge([FINE, FINE, SKIPPED]) == (
        CLEAN,
        ["2 packages looked up, no known weakness", "not looked up: torch"],
    )

"""What the tests of deployments share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedit.flower.init import create
from fedit.flower.layout import Deployment
from fedit.flower.processes import free_port


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """Two sites, a and b, and a server on a free port of this machine; nothing runs."""
    return create(tmp_path / "d", ["a", "b"], "127.0.0.1", free_port(), insecure=False)


CHECKS = {
    1: "the extra installs, the core imports no flwr",
    2: "certificates and keys",
    3: "a deployed run has the bits of a simulation",
    4: "every dtype and rank crosses, NaN is refused",
    5: "an error at a site costs its update alone",
    6: "a worker that is killed while it trains",
    7: "a SuperNode that is killed",
    8: "a server process that is killed",
    9: "a SuperLink that is killed",
    10: "a SuperExec that is killed",
    11: "a link that breaks during an upload",
    12: "a slow site",
    13: "300 MB from three sites",
    14: "no connection but those that are given",
    15: "wrong CA, unknown key, no key, no TLS",
    16: "an unknown setting",
    17: "the lowest flwr that is supported",
    18: "overhead of a round",
}
"""What a deployment is accepted by; a test that shows one is marked with its number."""

_outcomes: dict[int, list[tuple[str, str]]] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note how a test that belongs to a check ended."""
    report = (yield).get_result()
    for mark in item.iter_markers("check"):
        if report.when == "call" or report.outcome != "passed":
            reason = str(report.longrepr[2]).removeprefix("Skipped: ") if report.skipped else ""
            _outcomes.setdefault(mark.args[0], []).append((report.outcome, reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line a check where they were asked for."""
    if os.environ.get("FEDIT_CHECKS") != "1":
        return
    for number, what in CHECKS.items():
        found = _outcomes.get(number, [("skipped", "there is no test of it")])
        if any(outcome == "failed" for outcome, _ in found):
            verdict = "failed"
        elif any(outcome == "passed" for outcome, _ in found):
            verdict = "ok"
        else:
            verdict = f"skipped: {found[0][1]}"
        terminalreporter.write_line(f"check {number:02} {verdict}  ({what})")

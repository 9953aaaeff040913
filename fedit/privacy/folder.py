"""The privacy of a run as its folder tells it, finished or not."""

from pathlib import Path

from fedit.errors import RunFolderError
from fedit.events import EventLog
from fedit.privacy.ledger import FILE, Ledger
from fedit.privacy.report import Statement, stated
from fedit.privacy.spending import most_spent


def statement_of(folder: Path) -> Statement:
    """Return what can be stated of the run in ``folder``; what was spent is what its ledger says.

    Raises:
        RunFolderError: it holds no run, or a file of it cannot be read.
    """
    if not (folder / "run.json").is_file():
        raise RunFolderError(f"{folder} holds no run: there is no run.json in it. Start one with: fedit run JOB")
    events = EventLog(folder).history()
    promised = next((event["privacy"] for event in events if "privacy" in event), None)
    if not isinstance(promised, dict):
        return stated({})
    ledger = Ledger(folder / FILE, float(promised["delta"]))
    examples = promised.get("level") == "example"
    spent = most_spent(ledger) if examples else ledger.spent()
    charged = max(map(ledger.steps, ledger.units()), default=0) if examples else ledger.steps()
    own = {
        **promised,
        "epsilon": spent.value,
        "epsilon_rdp": spent.rdp,
        "rounds": charged,
        "budget_spent": any(event["event"] == "budget_spent" for event in events),
    }
    baselines = [path.parent.name for path in sorted(folder.glob("arms/*/events.jsonl"))]
    return stated(own, baselines=baselines)

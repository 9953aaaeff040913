"""What is on the screen while a run or a study goes on."""

import io

from rich.console import Console

from fedit.cli.live import MOST_BARS, LiveRun
from fedit.config import RunConfig


def show(events, *, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, height=60)
    display = LiveRun(console, RunConfig(num_rounds=1))
    for event in events:
        display.hear({"round": 1, **event})
    return display, console


def arm(name):
    done = {"cohort": ["a"], "delivered": 1, "failed": 0, "aggregated": True, "train_loss": 1.0}
    return [
        {"event": "arm_started", "arm": name, "rounds": 1},
        {"event": "round", "arm": name, **done, "bytes_up": 1, "seconds": 1.0},
        {"event": "evaluation", "arm": name, "loss": 2.0},
    ]


def test_arms_that_are_done_make_room():
    events = [event for number in range(MOST_BARS + 5) for event in arm(f"arm {number}")]
    display, console = show(events, terminal=True)
    console.print(display)
    text = console.file.getvalue()
    assert f"arm {MOST_BARS + 4}" in text
    assert "arm 1 " not in text
    assert text.count("held-out loss 2.000") == MOST_BARS


def test_a_studys_estimate_is_said():
    estimate = {"trainings": 40, "seeds": 3, "tokens": 1_500_000, "tokens_per_second": 500.0, "seconds": 3000.0}
    for answers, words in ((2880, "with evaluations and 2,880 answers of full length"), (0, "with evaluations")):
        _, console = show([{"event": "study_estimate", "answers": answers, **estimate}], terminal=False)
        text = " ".join(console.file.getvalue().split())
        assert text.endswith(f"40 trainings over 3 seeds, 1,500,000 tokens at 500 a second: about 50 min {words}")

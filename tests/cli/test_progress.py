"""The panel of a long run: what an owner asks for, in numbers that follow from the events alone."""

import io

from rich.console import Console

from fedit.cli import progress
from fedit.cli.progress import MOST_CLIENTS, Progress, duration, sparkline

ARM = "federated"


def round_event(number, loss, up=1_000_000, **more):
    return {
        "event": "round", "round": number, "arm": ARM, "cohort": ["a", "b"], "delivered": 2, "train_loss": loss,
        "bytes_up": up, "bytes_down": 2 * up, **more,
    }  # fmt: skip


def evaluation(number, loss):
    return {"event": "evaluation", "round": number, "arm": ARM, "loss": loss}


def step(client, number, round=3):
    told = {"step": number, "loss": 1.25, "tokens": 640}
    return {"event": "step", "round": round, "arm": ARM, "client": client, **told}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def shown(panel):
    console = Console(file=io.StringIO(), width=110)
    console.print(panel)
    return console.file.getvalue()


def test_everything_an_owner_asks_for_is_on_the_screen(monkeypatch):
    monkeypatch.setattr(progress, "memory_text", lambda: "1.4 GB, 12 GB free")
    clock = Clock()
    panel = Progress(10, limit=8.0, clock=clock)
    assert shown(panel).strip() == ""
    panel.hear({"event": "arm_started", "round": 0, "arm": ARM, "rounds": 4})
    for event in (evaluation(0, 3.0), round_event(1, 2.0, epsilon=1.5), evaluation(1, 1.0)):
        panel.hear(event)
    clock.now += 60
    for event in (round_event(2, 1.0, epsilon=2.25), evaluation(2, 2.0), step("client-7", 5)):
        panel.hear(event)
    text = shown(panel)
    for expected in (
        "federated: round 3 of 4",
        "1.000  █▁",
        "2.000  █▁▅  best 1.000 after round 1",
        "2 MB up, 4 MB down  2 of 2 clients delivered",
        "2.25 of 8 spent",
        "60 s gone, about 60 s left",
        "1.4 GB, 12 GB free",
        "client-7  step 5  loss 1.250  640 tokens",
    ):
        assert expected in text, text
    panel.hear(round_event(3, 1.0))
    assert "client-7" not in shown(panel)  # its round is over
    panel.hear(round_event(4, 1.0))
    assert "the rounds are done" in shown(panel)


def test_before_the_first_round_the_estimate_says_how_long():
    clock = Clock()
    panel = Progress(4, clock=clock)
    panel.hear({"event": "estimate", "round": 0, "arm": ARM, "seconds": 600.0})
    panel.hear({"event": "arm_started", "round": 0, "arm": ARM, "rounds": 4})
    clock.now += 60
    assert "60 s gone, about 9 min left" in shown(panel)


def test_a_run_that_goes_on_remembers_and_counts_its_time_from_now():
    clock = Clock()
    before = [evaluation(0, 3.0), round_event(1, 2.0), round_event(2, 1.5)]
    panel = Progress(4, past=lambda arm: before, clock=clock)
    panel.hear({"event": "resumed", "round": 2, "arm": ARM})
    assert "2 MB up" in shown(panel)
    clock.now += 30
    panel.hear(round_event(3, 1.0))
    text = shown(panel)
    assert "3 MB up" in text
    assert "30 s gone, about 30 s left" in text  # one round took 30 s in this session, one is left
    assert "1.000  █▅▁" in text


def test_of_many_clients_the_last_are_shown():
    panel = Progress(4)
    panel.hear({"event": "arm_started", "round": 0, "arm": ARM, "rounds": 4})
    for number in range(MOST_CLIENTS + 3):
        panel.hear(step(f"client-{number}", 1))
    text = shown(panel)
    assert "and 3 more" in text
    assert "client-2 " not in text
    assert f"client-{MOST_CLIENTS + 2} " in text


def test_what_the_machine_holds_is_told():
    assert " free" in progress.memory_text()
    assert (duration(42), duration(600), duration(9000)) == ("42 s", "10 min", "2 h 30 min")
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"

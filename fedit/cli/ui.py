"""``fedit ui``: chat and blind comparison in the browser, and ``fedit votes``: what the votes come to."""

import secrets
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedit.cli.output import AsJson, console, notes, plain_table, print_json, working
from fedit.errors import ConfigError

if TYPE_CHECKING:
    from fedit.evaluation.votes import Tally
    from fedit.ui.server import Server
    from fedit.ui.service import Service

EPILOG = """Examples:

fedit ui runs/first

fedit ui runs/first --questions questions.jsonl --open

fedit ui runs/first runs/second path/to/adapter --votes votes.jsonl"""

VOTES_EPILOG = """Examples:

fedit votes runs/first

fedit votes votes.jsonl more/votes.jsonl --json"""

PORT = 8765


def ui(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Runs, arms of runs, folders of runs, PEFT folders of LoRA adapters."),
    ],
    questions: Annotated[
        str | None, typer.Option("--questions", help="Question set or file to draw from; first turns are asked.")
    ] = None,
    votes: Annotated[
        Path | None,
        typer.Option("--votes", help="Where votes are added. Default: votes.jsonl in the first folder."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Order of questions and answers; new at every start.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Base model, where it is not the one that was trained on.")
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="Prompt template, where it is not the one of the training.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but this machine's own lets others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any that is free.")
    ] = PORT,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Chat with tuned models in the browser, and compare them with their base: blind, with a vote.

    RUN…: runs, arms of runs, folders of runs, PEFT folders of LoRA adapters; all of one base model.
    Every arm that a run has on disk is there: federated, centralised, local, and the base model.
    Nothing is sent anywhere, and only this machine can connect, with the address that is printed.
    Programs can ask too: the server speaks OpenAI's chat completions (/v1).
    """
    from fedit.ui.server import Server

    server = Server(host, port)
    try:
        with working("loading the model …"):
            service = _service(folders, model, template, questions, votes, seed)
        try:
            _serve(server, service, open_browser)
        finally:
            service.speaker.close()
    finally:
        server.server_close()


def votes(
    places: Annotated[
        list[Path], typer.Argument(metavar="RUN|FILE…", help="Folders with a votes.jsonl, or such files.")
    ],
    as_json: AsJson = False,
) -> None:
    """Count the votes that were cast in fedit ui: win rates of every pair of arms.

    Ties and votes that both are bad count half a win for each. Votes with the names shown are left out.
    """
    from fedit.evaluation.votes import FILE, read_votes, tally

    files = [place / FILE if place.is_dir() else place for place in places]
    result = tally([vote for file in files for vote in read_votes(file)])
    if as_json:
        print_json(result.as_dict())
        return
    _print_tally(result)


def _service(
    folders: list[Path],
    model: str | None,
    template: str | None,
    questions: str | None,
    votes: Path | None,
    seed: int | None,
) -> "Service":
    """Load what the page offers."""
    from fedit.evaluation.questions import load_questions
    from fedit.evaluation.votes import FILE
    from fedit.resident import Resident
    from fedit.ui.arms import find_arms
    from fedit.ui.comparing import Ballot
    from fedit.ui.questions import first_turns, shuffled
    from fedit.ui.service import Service
    from fedit.ui.speaker import Speaker

    start = secrets.randbits(62) if seed is None else seed
    asked = shuffled(first_turns(load_questions(questions)), start) if questions else []
    found = find_arms(folders, model=model, template=template)
    for note in found.notes:
        notes().print(note, style="yellow")
    path = (votes or found.home / FILE).absolute()
    if path.is_dir():
        raise ConfigError(f"--votes {path} is a folder; expected a file.")
    resident = Resident(found.arms, say=lambda text: notes().print(text, style="dim"))
    ballot = Ballot(path, {name: resident.identity(name) for name in found.arms}, start)
    done = {vote.question_id for vote in ballot.read()}
    asked.sort(key=lambda question: question.id in done)
    return Service(Speaker(resident), ballot, asked)


def _serve(server: "Server", service: "Service", open_browser: bool) -> None:
    """Answer until Ctrl-C."""
    out, aside = console(), notes()
    out.print(server.guard.address, soft_wrap=True)
    if not server.guard.local:
        aside.print(
            f"Listening on {server.guard.host}: whoever can reach this machine and knows the address above "
            "can use the page, and the traffic is not encrypted.",
            style="yellow",
        )
    aside.print(f"{', '.join(service.arms)} on {service.speaker.resident.source.name}", style="dim")
    aside.print(f"Votes go to {service.ballot.path}. Ctrl-C ends.", style="dim")
    if open_browser and not webbrowser.open(server.guard.address):
        aside.print("No browser could be opened; open the address yourself.", style="yellow")
    try:
        server.serve(service)
    except KeyboardInterrupt:
        aside.print("\nended", style="dim")


def _print_tally(result: "Tally") -> None:
    out = console()
    if not result.pairs:
        out.print("no blind votes yet")
    else:
        numbers = ("won", "lost", "tied", "both bad", "win rate")
        table = plain_table("", "against", *numbers, "95% interval", numbers=numbers)
        for pair in result.pairs:
            low, high = pair.interval
            counts = (pair.wins, pair.losses, pair.ties, pair.both_bad)
            table.add_row(
                pair.one, pair.other, *map(str, counts), f"{pair.win_rate:.1%}", f"{low:.1%} to {high:.1%}"
            )
        out.print(table)
        out.print(f"blind votes: {result.votes}", style="dim")
        out.print(f"the answer shown first won {result.first_shown} of {result.decided} decided", style="dim")
    if result.not_blind:
        out.print(f"votes with the names shown, not counted: {result.not_blind}", style="dim")

"""``fedit aggregate``: the server's half of an algorithm, on adapters that lie on disk."""

from pathlib import Path
from typing import Annotated

import typer

from fedit.cli.output import AsJson, console, print_json

EPILOG = """Examples:

fedit aggregate --strategy fedit --state round-0 a/adapter:120 b/adapter:480 --out round-1

fedit aggregate --strategy fedit --option server_lr=0.5 --state round-0 a/adapter:120 --out round-1"""


def aggregate(
    clients: Annotated[
        list[str],
        typer.Argument(
            metavar="PEFT_DIR:NUM_EXAMPLES...", help="Each client's adapter and its number of examples."
        ),
    ],
    strategy: Annotated[str, typer.Option("--strategy", help="Algorithm: see fedit list strategies.")],
    state: Annotated[
        Path,
        typer.Option(
            "--state", help="Folder with adapter/ and, after a first round, ledger and state.safetensors."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the next state.")],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Option of the strategy; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Aggregate adapters as a round of a federation would, whoever trained them.

    The new model's weight is W0 + alpha/r B A + L_B L_A, with adapter/ (PEFT) and ledger.safetensors of --out.
    """
    from fedit import lora
    from fedit.aggregation import aggregate as run
    from fedit.aggregation import read_contribution
    from fedit.settings import parse_value
    from fedit.strategies import build_strategy

    options = {name: parse_value(value) for name, _, value in (text.partition("=") for text in option or [])}
    contributions = [read_contribution(text) for text in clients]
    done = run(build_strategy(strategy, options), state, contributions, out)
    ledger_rank = lora.rank_of(done.state.ledger) if done.state.ledger else 0
    facts = {
        "strategy": strategy,
        "round": done.state.round,
        "clients": len(contributions) - len(done.failures),
        "rank": lora.rank_of(done.state.adapter),
        "scale": done.state.scale,
        "ledger_rank": ledger_rank,
        "rejected": [{"client": failure.client_id, "reason": failure.reason} for failure in done.failures],
        "out": str(out),
    }
    if as_json:
        print_json(facts)
        return
    results = console()
    results.print(
        f"round {done.state.round}: {facts['clients']} of {len(contributions)} adapters aggregated in {out}"
    )
    results.print(f"rank {facts['rank']}, scale {done.state.scale:g}, ledger rank {ledger_rank}")
    for failure in done.failures:
        results.print(f"left out {failure.client_id}: {failure.reason}")

"""``fedit judge``: let a language model compare arms' answers, or add up the reviews of one that did."""

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedit.cli.errors import EXIT_FAILURE, Interrupted
from fedit.cli.output import AsJson, console, notes, print_json, working
from fedit.errors import ConfigError, UnknownName

if TYPE_CHECKING:
    from fedit.judging import Judge, Judgement

EPILOG = """Examples:

fedit judge base.jsonl tuned.jsonl --judge local:path/to/model --mode pairwise

fedit judge runs/study --judge qwen3-32b --base-url http://127.0.0.1:8000/v1 --canaries

fedit judge base.jsonl tuned.jsonl --judge gpt-5.2 --allow-remote --max-cost 5 --price-in 1.75 --price-out 14

fedit judge --recorded reviews.jsonl --json"""

_LOCAL = "local:"
_FOR_ENDPOINTS = (
    "base_url",
    "allow_remote",
    "api_key_env",
    "temperature",
    "max_reply_tokens",
    "concurrency",
    "requests_per_minute",
    "retries",
    "timeout",
    "max_cost",
    "price_in",
    "price_out",
)
_FOR_RECORDED = ("arms", "recorded", "reparse", "agree_with", "seed", "as_json")


def judge(
    context: typer.Context,
    arms: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="ANSWERS.jsonl…|DIR", help="One file of answers an arm, or a folder with answers/*.jsonl."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="MODEL",
            help="The endpoint's name of a model, or local:NAME_OR_FOLDER for one here.",
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            metavar="score|pairwise|single",
            help="Two answers and a score each, as in the paper; which of two is better; one answer's rating.",
        ),
    ] = "score",
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="ARM", help="Compare with this arm. Default: base, or the first."),
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Also compare the other arms with each other.")
    ] = False,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="How often each question is asked, in each order.")
    ] = 1,
    canaries: Annotated[
        bool, typer.Option("--canaries", help="Also ask for verdicts whose right outcome is known.")
    ] = False,
    agree_with: Annotated[
        Path | None,
        typer.Option(
            "--agree-with",
            metavar="FILE",
            help="Another judge's verdicts.jsonl, recorded reviews, or people's votes.jsonl.",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="An OpenAI-compatible endpoint. Default: OpenAI's own."),
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let answers leave this machine for an endpoint elsewhere.")
    ] = False,
    api_key_env: Annotated[
        str, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    temperature: Annotated[
        str, typer.Option("--temperature", metavar="NUMBER|none", help="none leaves it to the endpoint.")
    ] = "0.2",
    max_reply_tokens: Annotated[
        int, typer.Option("--max-reply-tokens", min=1, help="Longest reply; reasoning models need thousands.")
    ] = 1024,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at the same time.")] = 4,
    requests_per_minute: Annotated[
        float | None, typer.Option("--requests-per-minute", min=0.001, help="Most requests a minute.")
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="Further tries after time-outs, 429, 5xx and lost connections.")
    ] = 4,
    timeout: Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds for one try.")] = 120.0,
    max_tokens_budget: Annotated[
        int | None, typer.Option("--max-tokens-budget", min=1, help="Stop after so many tokens, in and out.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0.0, help="Stop after this much; needs both prices.")
    ] = None,
    price_in: Annotated[
        float | None, typer.Option("--price-in", min=0.0, help="Price of a million tokens that are sent.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option("--price-out", min=0.0, help="Price of a million tokens that come back.")
    ] = None,
    max_answer_chars: Annotated[
        int, typer.Option("--max-answer-chars", min=1, help="Longer texts are cut, visibly for the judge.")
    ] = 12_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of intervals and canaries, not of the judge.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the result. Default: judgement-MODE in DIR, or in runs/."),
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option("--recorded", metavar="REVIEWS.jsonl", help="Add up recorded reviews instead of asking."),
    ] = None,
    reparse: Annotated[
        bool, typer.Option("--reparse", help="With --recorded: read the scores from the reviews' texts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare arms' answers with a language model as the judge, in both orders, with intervals and known biases.

    Verdicts are kept in --out as they come: the same command goes on after Ctrl-C, a crash or a spent budget, and
    asks nothing twice. A partial result ends with exit code 1. Nothing leaves this machine without --allow-remote.
    """
    given = {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    if recorded is not None:
        _refuse(given, [name for name in context.params if name not in _FOR_RECORDED], "--recorded")
        _add_up(recorded, arms or [], reparse=reparse, agree_with=agree_with, seed=seed, as_json=as_json)
        return
    _refuse(given, ["reparse"], "asking a judge")
    from fedit.judging import Endpoint, Limits, read_arms
    from fedit.judging import judge as ask
    from fedit.judging.endpoint import OPENAI
    from fedit.judging.prompts import MODES

    if mode not in MODES:
        raise UnknownName("mode", mode, MODES)
    if not arms or model is None:
        raise ConfigError(
            "name the answers and the judge: fedit judge base.jsonl tuned.jsonl --judge MODEL. Recorded reviews: "
            "fedit judge --recorded REVIEWS.jsonl."
        )
    if max_cost is not None and (price_in is None or price_out is None):
        raise ConfigError("--max-cost needs --price-in and --price-out, the prices of a million tokens.")
    answers = read_arms(arms)
    folder = out or (arms[0] if arms[0].is_dir() else Path("runs")) / f"judgement-{mode}"
    with ExitStack() as stack:
        chosen: Judge
        if model.startswith(_LOCAL):
            _refuse(given, _FOR_ENDPOINTS, "a local model")
            with working("loading the judge …"):
                from fedit.judging import LocalModel

                chosen = LocalModel(model.removeprefix(_LOCAL), say=lambda text: notes().print(text, style="dim"))
        else:
            chosen = stack.enter_context(
                Endpoint(
                    model,
                    base_url or OPENAI,
                    key_variable=api_key_env,
                    allow_remote=allow_remote,
                    temperature=_temperature(temperature),
                    max_reply_tokens=max_reply_tokens,
                    concurrency=concurrency,
                    retries=retries,
                    timeout=timeout,
                )
            )
        on_progress = stack.enter_context(_progress(notes()))
        try:
            judgement = ask(
                answers,
                chosen,
                out=folder,
                mode=mode,
                baseline=baseline,
                repeats=repeats,
                all_pairs=all_pairs,
                with_canaries=canaries,
                agree_with=agree_with,
                limits=Limits(max_tokens_budget, max_cost, price_in, price_out),
                requests_per_minute=requests_per_minute,
                longest=max_answer_chars,
                seed=seed,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            raise Interrupted(f"verdicts are kept in {folder}; the same command goes on from there") from None
    _show(judgement, folder, as_json)
    if judgement.partial:
        raise typer.Exit(EXIT_FAILURE)


def _show(judgement: "Judgement", folder: Path, as_json: bool) -> None:
    if as_json:
        print_json(judgement.as_dict())
        for warning in judgement.warnings():
            notes().print(f"warning: {warning}", style="yellow", soft_wrap=True)
    else:
        console().print(Markdown(judgement.markdown()))
        console().print(f"in full: {folder}", soft_wrap=True)
    if judgement.partial:
        notes().print(
            f"The result is partial; what was judged is kept in {folder}. Run the same command again to go on.",
            style="bold yellow",
            soft_wrap=True,
        )


def _add_up(
    path: Path, arms: list[Path], *, reparse: bool, agree_with: Path | None, seed: int, as_json: bool
) -> None:
    from fedit.judging.agreement import agreement, read_opinions
    from fedit.judging.markdown import agreement_table, comparison_tables
    from fedit.judging.recorded import answer_lengths, read_reviews, score_reviews

    if arms and len(arms) != 2:
        raise ConfigError(
            f"{len(arms)} files of answers are given with --recorded; expected none, or those of the first and "
            "the second arm, whose lengths are then reported."
        )
    lengths = (answer_lengths(arms[0]), answer_lengths(arms[1])) if arms else None
    reviews = read_reviews(path, reparse=reparse, lengths=lengths)
    comparison = score_reviews(reviews, seed=seed)
    found = comparison.as_dict()
    found["reviews"] = reviews.reviews
    found["invalid_reasons"] = dict(reviews.invalid)
    found["invalid_share"] = comparison.invalid / reviews.reviews
    found["below_scale"] = reviews.below_scale
    found["scores_from"] = "text" if reparse else "score"
    pair = (comparison.a, comparison.b)
    agreed = agreement([comparison], read_opinions(agree_with, pair, [pair])) if agree_with is not None else []
    found["agreement"] = [one.as_dict() for one in agreed]
    if as_json:
        print_json(found)
    else:
        console().print(Markdown("\n".join([*comparison_tables([comparison]), *agreement_table(agreed)])))
        reasons = "; ".join(f"{reason}: {count}" for reason, count in reviews.invalid.items())
        console().print(
            f"{reviews.reviews} reviews, {comparison.invalid} invalid{f' ({reasons})' if reasons else ''}, "
            f"{reviews.below_scale} with a score below 1.",
            soft_wrap=True,
        )
    if comparison.invalid / reviews.reviews > 0.05:
        notes().print("warning: more than 5 % of the reviews are invalid and left out", style="yellow")


def _refuse(given: set[str], names: Container[str], what: str) -> None:
    """Refuse options that would be ignored.

    Raises:
        ConfigError: one of ``names`` was given on the command line.
    """
    wrong = sorted(_flag(name) for name in given if name in names)
    if wrong:
        raise ConfigError(f"{', '.join(wrong)} {'means' if len(wrong) == 1 else 'mean'} nothing with {what}.")


def _flag(name: str) -> str:
    return "--judge" if name == "model" else f"--{name.replace('_', '-')}"


def _temperature(text: str) -> float | None:
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise ConfigError(f"--temperature is {text!r}; expected a number from 0 to 2, or none.")
    return value


@contextmanager
def _progress(screen: Console) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many verdicts there are: a bar on a terminal, lines anywhere else."""
    if not screen.is_terminal:
        yield _tenths(screen)
        return
    with Progress(
        TextColumn("verdicts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=screen
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tenths(screen: Console) -> Callable[[int, int], None]:
    """Return a function that writes a line whenever another tenth of the verdicts is there."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done * 10 // total > told:
            told = done * 10 // total
            screen.print(f"verdicts {done}/{total}")

    return tell

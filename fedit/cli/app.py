"""The command tree: one line a command; each lives in a module of its own."""

from typing import Annotated

import typer

from fedit.cli import (
    aggregate,
    bench,
    chat,
    data,
    deploy,
    doctor,
    export,
    judge,
    listing,
    migrate,
    plan,
    privacy,
    privacyaudit,
    report,
    run,
    study,
    sweep,
    ui,
)

app = typer.Typer(
    name="fedit",
    help="Federated instruction tuning: many clients, one LoRA adapter, no shared data.",
    epilog="Start with: fedit run demo --out runs/first",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of all errors.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"fedit {installed('fedit')}")
        raise typer.Exit


app.command("run", epilog=run.EPILOG)(run.run)
app.command("resume", epilog="Example: fedit resume runs/first")(run.resume)
app.command("study", epilog=study.EPILOG)(study.study)
app.command("sweep", epilog=sweep.EPILOG)(sweep.sweep)
app.command("plan", epilog=plan.EPILOG)(plan.plan)
app.command("show", epilog="Example: fedit show demo num_rounds=3")(run.show)
app.command("list", epilog=listing.EPILOG)(listing.list_names)
app.add_typer(data.app, name="data")
app.add_typer(deploy.app, name="deploy")
app.add_typer(privacy.app, name="privacy")
privacy.app.command("audit", epilog=privacyaudit.EPILOG)(privacyaudit.audit)
app.command("aggregate", epilog=aggregate.EPILOG)(aggregate.aggregate)
app.command("import", epilog=migrate.EPILOG)(migrate.import_)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("chat", epilog=chat.EPILOG)(chat.chat)
app.command("judge", epilog=judge.EPILOG)(judge.judge)
app.command("bench", epilog=bench.EPILOG)(bench.bench)
app.command("export", epilog=export.EPILOG)(export.export)
app.command("push", epilog=export.PUSH_EPILOG)(export.push)
app.command("serve", epilog=export.SERVE_EPILOG)(export.serve)
app.command("ui", epilog=ui.EPILOG)(ui.ui)
app.command("votes", epilog=ui.VOTES_EPILOG)(ui.votes)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)

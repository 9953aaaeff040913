"""``fedit deploy``: a job on many machines, over Flower."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fedit.cli.output import AsJson, console, notes, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedit.flower.layout import Deployment, Site

app = typer.Typer(
    name="deploy",
    help="Federate over several machines: a server, and a node beside each site's data. Needs: fedit\\[flower].",
    epilog="Start with: fedit deploy init --sites hospital-a,hospital-b --host fl.example.org",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

INIT_EPILOG = """Examples:

fedit deploy init --sites hospital-a,hospital-b --host fl.example.org

fedit deploy init --sites a,b,c --host 10.0.0.5 --port 9000 --out deployments/ward

fedit deploy init --sites a,b --host 127.0.0.1 --insecure --out trial"""

SUBMIT_EPILOG = """Examples:

fedit deploy submit deployment job.yaml --held-out test.jsonl

fedit deploy submit deployment demo num_rounds=5 exact_match=false --name first"""

REDRAW = 2.0
"""Seconds between two looks of status --follow."""

DeploymentFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of the deployment, made by fedit deploy init.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run; see fedit deploy status.")]


@app.command("init", epilog=INIT_EPILOG)
def init(
    sites: Annotated[
        str, typer.Option("--sites", metavar="NAME,NAME…", help="Names of the sites, separated by commas.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="Name or IP address by which the sites reach the server, without port.")
    ],
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port at which the sites reach the server.")
    ] = 8000,
    out: Annotated[Path, typer.Option("--out", help="New folder of the deployment.")] = Path("deployment"),
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="No TLS and no keys: for a trial on one machine, with a loopback --host."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a deployment: certificates, one key per site, and for each site the bundle that its operator gets.

    The folder stays on the server's machine. Each operator gets DIR/sites/SITE.tar.gz, in a way in which you would
    send a password: it holds the site's private key, and a guide of one page.
    """
    from fedit.flower.extra import require

    require("fedit deploy init", "cryptography")
    from fedit.flower.init import create

    made = create(out, [name.strip() for name in sites.split(",") if name.strip()], host, port, insecure)
    bundles = {site: str(made.archive(site)) for site in made.sites}
    if as_json:
        facts = {"folder": str(made.folder), "name": made.name, "server": made.address, "insecure": made.insecure}
        print_json({**facts, "bundles": bundles})
        return
    results = console()
    results.print(f"deployment in {out}; sites reach the server at {made.address}", soft_wrap=True)
    for site in made.sites:
        results.print(f"  {site}: {out / 'sites' / f'{site}.tar.gz'}", soft_wrap=True)
    results.print("Next: send each operator the file of the site, secretly; it holds a private key. Then:")
    results.print(f"  fedit deploy server {out}", soft_wrap=True)


@app.command("server", epilog="Example: fedit deploy server deployment")
def server(
    folder: DeploymentFolder,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            help="Address to listen on; any but loopback lets others submit jobs. Default: loopback.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port to listen on. Default: the deployment's.")
    ] = None,
) -> None:
    """Run the server of a deployment in the foreground, until Ctrl-C or SIGTERM.

    It starts Flower's SuperLink, lets in the sites whose keys it has, starts again what dies, and lets runs that
    ended early go on from their last whole round.
    """
    _require("fedit deploy server", posix=True)
    from fedit.flower.layout import Deployment, is_loopback
    from fedit.flower.server import supervise_server

    deployment = Deployment.load(folder)
    if host is None:  # of the two loopback addresses the one that sites were told
        host = deployment.host if is_loopback(deployment.host) else "127.0.0.1"
    if not is_loopback(host):
        _tell(
            f"listening on {host}: whoever reaches this port can submit jobs to all sites; "
            "keep it in a private network"
        )
    elif not is_loopback(deployment.host):
        _tell(
            f"listening on {host}, which sites reach through a proxy on this machine only (proxy/nginx.conf); "
            "in a private network: --host 0.0.0.0"
        )
    supervise_server(deployment, host, port, _tell)


@app.command("node", epilog="Example: fedit deploy node hospital-a --data rows.jsonl")
def node(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the site: its unpacked bundle.")],
    data: Annotated[Path, typer.Option("--data", help="The site's rows; they stay here.")],
    client_by: Annotated[
        str | None,
        typer.Option(
            "--client-by", help="Field each of whose values is a client. Default: the site is one client."
        ),
    ] = None,
) -> None:
    """Run a site's node beside its data in the foreground, until Ctrl-C or SIGTERM.

    It joins the server of the bundle and does the jobs that policy.toml allows; what dies is started again.
    """
    _require("fedit deploy node", posix=True)
    from fedit.flower.layout import Site
    from fedit.flower.node import supervise_node

    supervise_node(Site.load(folder), data, _tell, client_by)


@app.command("submit", epilog=SUBMIT_EPILOG)
def submit(
    folder: DeploymentFolder,
    job: Annotated[
        str, typer.Argument(metavar="JOB|RECIPE", help="A job file (YAML or TOML) or a recipe's name.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]…", help="Settings that win over the job file.")
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", help="File of rows that the server measures on. Default: it measures nothing."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The run's name and folder. Default: the job's, or the next free one."),
    ] = None,
    deadline: Annotated[
        float, typer.Option("--deadline", min=0, help="Seconds of a round; 0: from how long earlier ones took.")
    ] = 0.0,
    min_sites: Annotated[
        int | None, typer.Option("--min-sites", min=1, help="Sites to wait for before round 1. Default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a job on all sites. Settings are checked before anything is sent.

    The job is the one that fedit run takes; rows and who holds them are the sites' own.
    """
    _require("fedit deploy submit")
    from fedit.cli.jobs import read_job
    from fedit.errors import ConfigError
    from fedit.flower import control
    from fedit.flower.layout import Deployment
    from fedit.flower.submission import check_job

    deployment = Deployment.load(folder)
    if min_sites is not None and min_sites > len(deployment.sites):
        raise ConfigError(f"--min-sites is {min_sites}, but the deployment has {len(deployment.sites)} sites.")
    settings = read_job(job, overrides or [])
    unused = check_job(settings, held_out)
    chosen = name or control.free_name(deployment, Path(job).stem if "=" not in job else "run")
    if unused:
        notes().print(f"not used here, where sites bring their own rows: {', '.join(unused)}", style="dim")
    run_id = control.submit(deployment, chosen, settings.config, held_out, deadline=deadline, sites=min_sites)
    if as_json:
        print_json(
            {"name": chosen, "run_id": str(run_id), "folder": str(deployment.runs / chosen), "unused": unused}
        )
        return
    if held_out is None:
        notes().print("nothing will be measured: the server gets no held-out rows (--held-out)", style="dim")
    results = console()
    results.print(f"{chosen} is submitted; it will lie in {deployment.runs / chosen}", soft_wrap=True)
    results.print(f"  fedit deploy status {folder} --follow", soft_wrap=True)


@app.command("status", epilog="Example: fedit deploy status deployment --follow")
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the deployment, or of a site.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and redraw.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the server, who of the sites is there, and every run: rounds, losses, bytes, who is late and why."""
    _require("fedit deploy status")
    from rich.live import Live

    from fedit.flower.layout import SITE_FILE, Deployment, Site

    site = Site.load(folder) if (folder / SITE_FILE).is_file() else None
    deployment = None if site is not None else Deployment.load(folder)

    def look() -> tuple[dict[str, object], "RenderableType"]:
        return _look_at_site(site) if site is not None else _look_at(cast("Deployment", deployment))

    if not follow:
        facts, view = look()
        if as_json:
            print_json(facts)
        else:
            console().print(view)
        return
    if as_json:
        raise typer.BadParameter("--json and --follow cannot go together; ask again for newer JSON")
    with suppress(KeyboardInterrupt), Live(look()[1], console=console(), auto_refresh=False) as live:
        while True:
            time.sleep(REDRAW)
            live.update(look()[1], refresh=True)


@app.command("logs", epilog="Example: fedit deploy logs deployment my-job --follow")
def logs(
    folder: DeploymentFolder,
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run ends.")] = False,
) -> None:
    """Print what the server's half of a run printed. Logs of Flower's own programs lie in DIR/state."""
    _require("fedit deploy logs")
    from fedit.flower import control, printed
    from fedit.flower.layout import Deployment

    deployment = Deployment.load(folder)
    job = control.find(deployment, run)
    kept = printed.kept(deployment, job.name)
    if kept.is_file():
        typer.echo(kept.read_text(encoding="utf-8"), nl=False)
    if job.state != "active":
        return
    with suppress(KeyboardInterrupt):
        if follow:
            for text in printed.follow(deployment, job.name):
                typer.echo(text, nl=False)
        else:
            typer.echo(printed.printed(deployment, job.run_id), nl=False)


@app.command("stop", epilog="Example: fedit deploy stop deployment my-job")
def stop(folder: DeploymentFolder, run: RunName, as_json: AsJson = False) -> None:
    """Stop a run for good; what its whole rounds gave stays in its folder."""
    _require("fedit deploy stop")
    from fedit.flower import control
    from fedit.flower.layout import Deployment

    deployment = Deployment.load(folder)
    job = control.find(deployment, run)
    control.stop(deployment, job.run_id)
    ended = control.find(deployment, job.name).state
    if as_json:
        print_json({"name": job.name, "run_id": str(job.run_id), "state": ended})
    else:
        console().print(f"{job.name} is {ended}")


def _look_at(deployment: "Deployment") -> tuple[dict[str, object], "RenderableType"]:
    """Return a deployment's status, for programs and for people."""
    from fedit.cli.deploytables import as_json, status_view
    from fedit.flower import connection, control

    problem: str | None = None
    sites: list[control.SiteStatus] = []
    try:
        sites, runs = control.nodes(deployment), control.runs(deployment)
    except connection.LinkError as error:
        problem, runs = str(error), control.runs_on_disk(deployment)
    where = connection.address(deployment)
    return as_json(where, problem, sites, runs), status_view(where, problem, sites, runs)


def _look_at_site(site: "Site") -> tuple[dict[str, object], "RenderableType"]:
    """Return what a site's folder says of its node, for programs and for people."""
    from fedit.cli.deploytables import node_view
    from fedit.flower.node import node_facts

    facts = node_facts(site)
    return facts, node_view(facts)


def _require(command: str, *, posix: bool = False) -> None:
    from fedit.flower.extra import require, require_posix

    if posix:
        require_posix(command)
    require(command, "flwr", "cryptography")


def _tell(text: str) -> None:
    """Write one line with the time of day on standard error."""
    typer.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)

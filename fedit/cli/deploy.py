"""``fedit deploy``: a job on many machines, over Flower."""

from pathlib import Path
from typing import Annotated

import typer

from fedit.cli.output import AsJson, console, print_json

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

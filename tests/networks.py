"""What processes connect to: noted in every one of them, and in a network that leads nowhere."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

HOOK = """
import os, sys

def note(kind, value):
    with open(os.environ["FEDIT_TEST_CONNECTS"], "a") as file:
        file.write(f"{os.path.basename(sys.argv[0] if sys.argv else '')} {kind} {value}\\n")

def seen(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        note("connect", arguments[1][0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and arguments[0] is not None:
        note("lookup", arguments[0])

sys.addaudithook(seen)
note("start", " ".join(sys.orig_argv))
"""


def noting(folder: Path) -> dict[str, str]:
    """Return variables by which every Python process notes what it looks up and connects to; see `noted`."""
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    paths = [str(folder / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "FEDIT_TEST_CONNECTS": str(folder / "connects")}


def noted(variables: Mapping[str, str]) -> tuple[list[str], set[str]]:
    """Return the commands that were run, and the hosts that anything was asked of."""
    lines = [line.split(" ", 2) for line in Path(variables["FEDIT_TEST_CONNECTS"]).read_text().splitlines()]
    return [value for _, kind, value in lines if kind == "start"], {
        value for _, kind, value in lines if kind != "start"
    }


def is_here(host: str) -> bool:
    """Whether a host is this machine by its address or name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def loopback_only() -> Iterator[tuple[list[str], str]]:
    """Yield what runs a command in a network of loopback alone, and why it cannot be had where it cannot.

    Who may not make a network of their own gets no prefix, and a reason.
    """
    command = [
        "unshare",
        "--map-root-user",
        "--net",
        "sh",
        "-c",
        "ip link set lo up && echo up && exec sleep 36000",
    ]
    try:
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        yield [], f"no network of one's own: {error}"
        return
    try:
        assert holder.stdout is not None
        said = holder.stdout.readline().strip()
        enter = ["nsenter", "--target", str(holder.pid), "--user", "--net", "--preserve-credentials"]
        if said != "up" or subprocess.run([*enter, "true"], check=False, capture_output=True).returncode:
            yield [], f"no network of one's own: {said}"
        else:
            yield enter, ""
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()

"""Stand-ins for both halves of a run and for a site's worker, with which supervisors and control are tested.

``python -m standins SITEDIR --data PATH`` is the worker; ``python -m standins server|node DIR X`` the supervisors.
"""

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path


def main() -> None:
    if sys.argv[1] in ("server", "node"):
        supervise(*sys.argv[1:])
    else:
        work(Path(sys.argv[1]), Path(sys.argv[3]))


def supervise(what: str, folder: str, argument: str) -> None:
    from fedit.cli import app
    from fedit.cli.errors import run_and_exit
    from fedit.flower import connection, processes

    connection.SERVER_APP, connection.CLIENT_APP = "standin_apps:server", "standin_apps:client"
    processes.SITE_WORKER = "standins"
    option = "--port" if what == "server" else "--data"
    run_and_exit(app, ["deploy", what, folder, option, argument])


def work(site: Path, data: Path) -> None:
    """Answer every connection with this process's id, as a worker that is ready does."""
    if "unreadable" in data.read_text():
        sys.stderr.write("error: the rows cannot be read\n")
        sys.exit(2)
    path = site / "state" / "worker.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                with suppress(BrokenPipeError):
                    connection.sendall(str(os.getpid()).encode())


def serve(config: dict, pids: list[int]) -> None:
    """Be a server's half whose behaviour is in its name: a round per whole run, with what a run folder has."""
    folder = Path(str(config["folder"]))
    folder.mkdir(parents=True, exist_ok=True)
    resumed = (folder / "run.json").is_file()
    (folder / "run.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(config))
    name = str(config["name"])
    sys.stdout.write(f"run {name}, resumed: {resumed}\n")
    if name.startswith("fails") or (name.startswith("crashes") and not resumed):
        raise ValueError(f"{name} as it was told")
    if name.startswith("waits") and not resumed:
        write(
            folder,
            {"event": "round", "round": 1, "cohort": [], "train_loss": 2.0, "bytes_up": 10, "bytes_down": 20},
        )
        while True:
            time.sleep(0.5)
    write(folder, {"event": "answers", "round": 1, "pids": pids})
    (folder / "summary.json").write_text("{}")


def write(folder: Path, event: dict) -> None:
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": time.time(), "arm": "federated", **event}) + "\n")


if __name__ == "__main__":
    main()

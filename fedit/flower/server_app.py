"""The process that Flower starts on the server for every run: it runs fedit's round loop over the sites."""

import json
import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedit.config import RunConfig
from fedit.events import Event
from fedit.flower.engine import Flower
from fedit.flower.link import GridLink
from fedit.flower.run import run_deployed
from fedit.process import silence_libraries

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Begin or go on with the run that the configuration names; an error makes the run a failed one."""
    silence_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = context.run_config
    folder = Path(str(given["folder"]))
    folder.mkdir(parents=True, exist_ok=True)
    link = GridLink(grid, folder)
    deadline = float(given["deadline"])

    def engine(config: RunConfig) -> Flower:
        return Flower(
            link,
            str(given["name"]),
            config.model_dump(mode="json"),
            int(given["sites"]),
            deadline=deadline or None,
            together=config.stack_clients or 8,
        )

    config = RunConfig.model_validate(json.loads(str(given["job"])))
    try:
        run_deployed(config, folder, Path(str(given["held_out"])), engine, _say)
    finally:
        link.close()


def _say(event: Event) -> None:
    if event["event"] != "step":
        print(json.dumps(event), flush=True)  # noqa: T201  (Flower keeps what is printed: `fedit deploy logs`)

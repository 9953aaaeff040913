"""The connection to a deployment's SuperLink, and the app without code that is handed to it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fedit.errors import FeditError
from fedit.files import read_json
from fedit.flower.layout import Deployment, is_loopback, join_address

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

SERVER_APP = "fedit.flower.server_app:app"
CLIENT_APP = "fedit.flower.client_app:app"
DEFAULTS: dict[str, bool | int | float | str] = {
    "job": "",
    "name": "",
    "folder": "",
    "held_out": "",
    "deadline": 0.0,
    "sites": 1,
}
"""All that a run is told: Flower refuses keys that are not among them."""


class LinkError(FeditError):
    """The SuperLink does not answer, or refuses what it was asked.

    code: Flower's number of the refusal; None: it did not answer.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


def address(deployment: Deployment) -> str:
    """Return host:port under which this machine reaches the SuperLink."""
    path = deployment.state / "server.json"
    if path.is_file() and (known := read_json(path).get("address")):
        return str(known)
    return join_address(deployment.host if is_loopback(deployment.host) else "127.0.0.1", deployment.port)


@contextmanager
def connected(deployment: Deployment) -> Iterator["ControlHttpClient"]:
    """Yield a client of the SuperLink; what goes wrong in the block is raised as `LinkError`."""
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    client = ControlHttpClient.from_server_address(
        address(deployment),
        deployment.insecure,
        None if deployment.insecure else deployment.ca_crt.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="fedit")],
    )
    try:
        yield client
    except FeditError:
        raise
    except Exception as error:
        raise link_error(deployment, error) from error
    finally:
        client.close()


def link_error(deployment: Deployment, error: Exception) -> LinkError:
    """Return what a failed call to the SuperLink means."""
    import httpx
    from flwr.supercore.error import FlowerError

    where = address(deployment)
    if isinstance(error, httpx.HTTPStatusError):
        known = FlowerError.from_json(error.response.text)
        said = f"{known.message}" if known else f"HTTP status {error.response.status_code}"
        return LinkError(f"the SuperLink at {where} refuses: {said}", int(known.code) if known else None)
    if isinstance(error, httpx.TransportError | OSError):
        return LinkError(
            f"no SuperLink of this deployment answers at {where} ({error}); "
            f"is it running? Start it with: fedit deploy server {deployment.folder}"
        )
    raise error


def bundle() -> bytes:
    """Return the app that Flower hands to all: no code, only the names of fedit's own components."""
    from flwr.cli.build import build_fab_from_files

    config = "\n".join(f"{name} = {json.dumps(value)}" for name, value in DEFAULTS.items())
    text = f"""[project]
name = "fedit"
version = "{version("fedit")}"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedit"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"

[tool.flwr.app.config]
{config}
"""
    return build_fab_from_files({"pyproject.toml": text.encode()})[0]

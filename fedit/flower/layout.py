"""Where things lie: the folder of a deployment on the server's machine, and that of a site on its own."""

import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedit.errors import ConfigError, did_you_mean
from fedit.reading import parse_toml, read_settings_text, shown

DEPLOYMENT_FILE = "deployment.toml"
SITE_FILE = "site.toml"
DEFAULT_PORT = 8000

_SITE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the server's machine knows: one folder, made by ``fedit deploy init``.

    host, port: where sites reach the server.
    sites:      names of the sites, in the order in which they were given.
    insecure:   no TLS and no keys; only where host is loopback.
    """

    folder: Path
    name: str
    host: str
    port: int
    sites: tuple[str, ...]
    insecure: bool

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the deployment in ``folder``.

        Raises:
            ConfigError: there is none, or what is wrong with it.
        """
        path = folder / DEPLOYMENT_FILE
        found = _read(path, _DEPLOYMENT_KEYS, "`fedit deploy init` makes a deployment")
        with _named(path):
            sites = check_sites(found["sites"])
            host = check_host(found["host"])
            port = check_port(found["port"])
            check_insecure(found["insecure"], host)
        deployment = cls(folder.absolute(), found["name"], host, port, sites, found["insecure"])
        if not deployment.insecure:
            _check_private(deployment.server_key)
            _check_there(deployment.server_crt, deployment.ca_crt)
        return deployment

    @property
    def address(self) -> str:
        """``host:port`` for the sites; brackets around an IPv6 address."""
        return join_address(self.host, self.port)

    @property
    def certs(self) -> Path:
        """Folder of the certificates."""
        return self.folder / "certs"

    @property
    def ca_crt(self) -> Path:
        """Certificate that sites check the server's against."""
        return self.certs / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Private key of the CA; only needed to make another server certificate."""
        return self.certs / "ca.key"

    @property
    def server_crt(self) -> Path:
        """Certificate of the server, followed by the CA's."""
        return self.certs / "server.crt"

    @property
    def server_key(self) -> Path:
        """Private key of the server."""
        return self.certs / "server.key"

    @property
    def keys(self) -> Path:
        """Folder of the sites' public keys."""
        return self.folder / "keys"

    @property
    def bundles(self) -> Path:
        """Folder of what the sites' operators get."""
        return self.folder / "sites"

    @property
    def runs(self) -> Path:
        """Folder of the run folders of deployed jobs."""
        return self.folder / "runs"

    @property
    def state(self) -> Path:
        """Folder of flwr's home, logs and process ids."""
        return self.folder / "state"

    def public_key(self, site: str) -> Path:
        """Return the file of a site's public key."""
        return self.keys / f"{site}.pub"

    def bundle(self, site: str) -> Path:
        """Return the folder that a site's operator gets."""
        return self.bundles / site

    def archive(self, site: str) -> Path:
        """Return the same as one file."""
        return self.bundles / f"{site}.tar.gz"


@dataclass(frozen=True, slots=True)
class Site:
    """What a site's machine knows: an unpacked bundle.

    server: ``host:port`` of the server.
    """

    folder: Path
    name: str
    server: str
    insecure: bool

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the site in ``folder``.

        Raises:
            ConfigError: there is none, or what is wrong with it.
        """
        path = folder / SITE_FILE
        found = _read(path, _SITE_KEYS, "unpack the bundle that the server's operator sent and name its folder")
        with _named(path):
            (name,) = check_sites([found["name"]])
            host, port = split_address(found["server"])
            check_insecure(found["insecure"], host)
        site = cls(folder.absolute(), name, join_address(host, port), found["insecure"])
        if not site.insecure:
            _check_private(site.node_key)
            _check_there(site.ca_crt)
        return site

    @property
    def ca_crt(self) -> Path:
        """Certificate that the server's is checked against."""
        return self.folder / "ca.crt"

    @property
    def node_key(self) -> Path:
        """Private key by which the server knows the site."""
        return self.folder / "node.key"

    @property
    def policy(self) -> Path:
        """What the site allows."""
        return self.folder / "policy.toml"

    @property
    def state(self) -> Path:
        """Folder of flwr's home, logs, the worker's socket and what clients keep."""
        return self.folder / "state"


def check_sites(names: list[Any]) -> tuple[str, ...]:
    """Return the names of sites.

    Raises:
        ConfigError: none, one twice, or one that cannot name a folder everywhere.
    """
    if not names:
        raise ConfigError("there is no site; name one or more: --sites hospital-a,hospital-b")
    for name in names:
        if not isinstance(name, str) or not _SITE_NAME.fullmatch(name):
            raise ConfigError(
                f"site name {name!r} cannot be used; expected small letters, digits and '-', "
                "at most 63, such as hospital-a"
            )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"site named twice: {', '.join(twice)}; every site needs a name of its own")
    return tuple(names)


def check_host(host: str) -> str:
    """Return the name or address of a server, in small letters and without brackets.

    Raises:
        ConfigError: it is none that sites could connect to.
    """
    bare = host.lower()
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    address = ip_address(bare)
    if address is not None and address.is_unspecified:
        raise ConfigError(
            f"host {host} stands for all addresses of a machine; name the one by which sites reach the server"
        )
    looks_numeric = re.fullmatch(r"[0-9.]+", bare) is not None
    if address is None and (looks_numeric or not _HOST_NAME.fullmatch(bare)):
        raise ConfigError(
            f"host {host!r} is neither a host name nor an IP address; "
            "expected something like fl.example.org or 192.0.2.7, without scheme and port"
        )
    return bare


def check_port(port: int) -> int:
    """Return a port that can be listened on.

    Raises:
        ConfigError: it is no such number.
    """
    if not 1 <= port <= 65535:
        raise ConfigError(f"port {port} is no port; expected 1 to 65535")
    return port


def check_insecure(insecure: bool, host: str) -> None:
    """Refuse to do without TLS and keys where other machines could listen or join.

    Raises:
        ConfigError: insecure, and host is not loopback.
    """
    if insecure and not is_loopback(host):
        raise ConfigError(
            f"insecure (no TLS, no keys) is only for one machine: host must be 127.0.0.1, ::1 or localhost, "
            f"not {host}; leave --insecure out"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, and only reachable from it."""
    return host in ("127.0.0.1", "::1", "localhost")


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is, or None where it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises:
        ConfigError: it has another form.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()):
        raise ConfigError(f"server {address!r} has no port; expected host:port, such as fl.example.org:8000")
    return check_host(host), check_port(int(port))


_DEPLOYMENT_KEYS = {"name": str, "host": str, "port": int, "sites": list, "insecure": bool}
_SITE_KEYS = {"name": str, "server": str, "insecure": bool}
_KINDS = {str: "a text", int: "a number", list: "a list", bool: "true or false"}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before what a block finds wrong in it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read(path: Path, keys: Mapping[str, type], advice: str) -> dict[str, Any]:
    """Return what a TOML file says, of all ``keys`` and of the types they have."""
    try:
        found = parse_toml(read_settings_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} holds no {path.name}; {advice}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for key, value in found.items():
        if key not in keys:
            raise ConfigError(f"{path}: unknown key '{key}'{did_you_mean(key, keys)}")
        if type(value) is not keys[key]:
            raise ConfigError(f"{path}: {key} is {shown(value)}; expected {_KINDS[keys[key]]}")
    if missing := [key for key in keys if key not in found]:
        raise ConfigError(f"{path}: {', '.join(missing)} missing")
    return found


def _check_there(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path} is missing; it came with the folder: copy it back")


def _check_private(path: Path) -> None:
    """Refuse a private key that others on this machine could read, as ssh does."""
    _check_there(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")

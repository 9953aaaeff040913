"""Make a deployment: certificates, keys, a bundle for every site, and files to run it as a service."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from fedit.errors import ConfigError
from fedit.files import new_folder
from fedit.flower import certificates
from fedit.flower.layout import (
    DEFAULT_PORT,
    Deployment,
    check_host,
    check_insecure,
    check_port,
    check_sites,
    join_address,
)

_PRIVATE, _PUBLIC = 0o600, 0o644
_LARGEST_PORT = 65535

_SERVER_TEXTS = {"deployment.toml": "server/deployment.toml"}
_SERVER_SERVICES = {
    "docker/Dockerfile": "Dockerfile",
    "docker/compose.yaml": "server/compose.yaml",
    "systemd/fedit-server.service": "server/fedit-server.service",
    "proxy/nginx.conf": "server/nginx.conf",
}
_SITE_TEXTS = {
    "site.toml": "node/site.toml",
    "policy.toml": "node/policy.toml",
    "GUIDE.md": "node/GUIDE.md",
}
_SITE_SERVICES = {
    "docker/Dockerfile": "Dockerfile",
    "docker/compose.yaml": "node/compose.yaml",
    "systemd/fedit-node.service": "node/fedit-node.service",
}


def create(
    folder: Path, sites: Sequence[str], host: str, port: int = DEFAULT_PORT, insecure: bool = False
) -> Deployment:
    """Write a new deployment; a failure leaves nothing behind.

    sites:    names of the sites; each gets a key and a bundle.
    host:     name or IP address by which the sites reach the server; the certificate is made out to it.
    insecure: no TLS; only where ``host`` is loopback.

    Raises:
        ConfigError: ``folder`` is there already, or what is wrong with the others.
        RunFolderError: it cannot be written.
    """
    names = check_sites(list(sites))
    host = check_host(host)
    check_port(port)
    check_insecure(insecure, host)
    _refuse_to_overwrite(folder)
    deployment = Deployment(folder.absolute(), folder.absolute().name, host, port, names, insecure)
    with new_folder(deployment.folder) as temporary:
        _fill(Deployment(temporary, deployment.name, host, port, names, insecure), deployment.folder.name)
    return Deployment.load(folder)


def _refuse_to_overwrite(folder: Path) -> None:
    if (folder / "deployment.toml").exists():
        raise ConfigError(
            f"{folder} holds a deployment already, and its keys exist only once; "
            "choose another --out, or move it away first"
        )
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; choose another --out")


def _fill(deployment: Deployment, folder_name: str) -> None:
    """Write all that a deployment consists of into its folder, which is empty."""
    for private in (deployment.certs, deployment.bundles, deployment.state):
        private.mkdir(mode=0o700)
    deployment.runs.mkdir()
    ca = None if deployment.insecure else _write_certificates(deployment)
    values = _values(deployment) | {"folder_name": folder_name}
    # A trial on one machine is run by hand.
    server_services, site_services = ({}, {}) if deployment.insecure else (_SERVER_SERVICES, _SITE_SERVICES)
    for name, template in (_SERVER_TEXTS | server_services).items():
        _write_new(deployment.folder / name, _rendered(template, values))
    for site in deployment.sites:
        private_key, public_key = certificates.make_node_key(site)
        _write_new(deployment.public_key(site), public_key)
        bundle = deployment.bundle(site)
        _write_new(bundle / "node.key", private_key, _PRIVATE)
        if ca is not None:
            _write_new(bundle / "ca.crt", ca.pem())
        for name, template in (_SITE_TEXTS | site_services).items():
            _write_new(bundle / name, _rendered(template, values | {"site": site}))
        _write_new(deployment.archive(site), _packed(bundle), _PRIVATE)


def _write_certificates(deployment: Deployment) -> certificates.Certificate:
    """Write the CA and the server's certificate, and return the CA."""
    ca = certificates.make_ca(deployment.name)
    server = certificates.make_server_certificate(ca, [deployment.host])
    _write_new(deployment.ca_key, ca.key_pem(), _PRIVATE)
    _write_new(deployment.ca_crt, ca.pem())
    _write_new(deployment.server_key, server.key_pem(), _PRIVATE)
    _write_new(deployment.server_crt, server.pem() + ca.pem())
    return ca


def _values(deployment: Deployment) -> dict[str, object]:
    """Return what the templates know."""
    host = deployment.host
    return {
        "name": deployment.name,
        "host": host,
        "port": deployment.port,
        # Where the server listens behind a proxy, which has the port that the sites were told.
        "inner_port": deployment.port + 1 if deployment.port < _LARGEST_PORT else deployment.port - 1,
        "address": join_address(host, deployment.port),
        "server_name": f"[{host}]" if ":" in host else host,
        "sites": deployment.sites,
        "insecure": deployment.insecure,
        "version": version("fedit"),
        "uid": os.getuid() if hasattr(os, "getuid") else 1000,
        "gid": os.getgid() if hasattr(os, "getgid") else 1000,
    }


def _rendered(template: str, values: dict[str, object]) -> bytes:
    source = files("fedit.flower").joinpath("templates", *template.split("/")).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment.from_string(source).render(values).encode()


def _write_new(path: Path, data: bytes, mode: int = _PUBLIC) -> None:
    """Write a file that must not exist; it never has wider permissions than ``mode``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    with open(descriptor, "wb") as file:
        file.write(data)


def _packed(bundle: Path) -> bytes:
    """Return a bundle as tar.gz; it unpacks into a folder with the site's name, the key private from the start."""
    packed = io.BytesIO()
    # Neither times nor owners of this machine.
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed:
        with tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path, name in _members(bundle):
                member = tarfile.TarInfo(name)
                if path.is_dir():
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(member)
                    continue
                data = path.read_bytes()
                member.size, member.mode = len(data), path.stat().st_mode & 0o777
                archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def _members(bundle: Path) -> Iterator[tuple[Path, str]]:
    for path in [bundle, *sorted(bundle.rglob("*"))]:
        yield path, path.relative_to(bundle.parent).as_posix()

"""Whether a site reaches its server: what can never work is told apart from what may yet, before Flower tries."""

import socket
import ssl
from contextlib import suppress

from fedit.errors import ConfigError
from fedit.flower.layout import Site, split_address

TIMEOUT = 10.0


def unreachable(site: Site) -> str | None:
    """Return why the server cannot be reached at the moment; None: it can.

    Raises:
        ConfigError: it never will with this bundle; the message says why and what to do.
    """
    host, port = split_address(site.server)
    try:
        with socket.create_connection((host, port), TIMEOUT) as plain:
            if site.insecure:
                _without_tls(plain, site)
            else:
                _with_tls(plain, host, site)
    except OSError as error:  # of TLS, too
        return f"{type(error).__name__}: {error}" if not error.strerror else error.strerror
    return None


def _with_tls(plain: socket.socket, host: str, site: Site) -> None:
    try:
        context = ssl.create_default_context(cafile=str(site.ca_crt))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{site.ca_crt} is no certificate: {error}") from error
    try:
        context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
            raise ConfigError(
                f"the server's certificate is not for {host} ({error.verify_message}); make the deployment anew "
                f"with --host {host}, or correct 'server' in {site.folder / 'site.toml'}."
            ) from error
        raise ConfigError(
            f"the server at {site.server} is not the one of this bundle: its certificate is not signed by "
            f"{site.ca_crt} ({error.verify_message}). Ask the server's operator for the current bundle."
        ) from error
    except ssl.SSLError as error:
        if "WRONG_VERSION_NUMBER" in str(error) or "RECORD_LAYER" in str(error):
            raise ConfigError(
                f"the server at {site.server} speaks without encryption, but this bundle asks for it; "
                "ask the server's operator for the current bundle."
            ) from error
        raise


def _without_tls(plain: socket.socket, site: Site) -> None:
    """Refuse to speak plainly to a server that encrypts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with suppress(OSError):
        context.wrap_socket(plain).close()
        raise ConfigError(
            f"the server at {site.server} asks for encryption, but this bundle says insecure; "
            "ask the server's operator for the current bundle."
        )

"""Who may ask: a secret token, the host that was asked for, the page that asks."""

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Sent with every answer: nothing is loaded from elsewhere, framed, guessed or kept."""


class Refusal(Exception):
    """A request that is not answered; the status and the words to say so with."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Guard:
    """What a request must bring to be answered.

    host, port: the address that is listened on.
    token: known to whoever was shown the address of the page.
    """

    host: str
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def cookie(self) -> str:
        """Name of the cookie; cookies are shared by all ports of a host."""
        return f"fedit-{self.port}"

    @property
    def set_cookie(self) -> str:
        """The header that gives a browser the token; scripts cannot read it, other sites cannot send it."""
        return f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    @property
    def address(self) -> str:
        """The address of the page, with the token in it."""
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}/?token={self.token}"

    def check(self, method: str, target: str, headers: Mapping[str, str]) -> bool:
        """Return whether the token came in the address, which is when the browser is to be given the cookie.

        target: path and query. headers: by their names in small letters.

        Raises:
            Refusal: the request is not one to answer.
        """
        self._check_host(headers.get("host", ""))
        in_address = self._is_token(*parse_qs(urlsplit(target).query).get("token", []))
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        by_header = self._is_token(bearer)
        if not (in_address or by_header or self._is_token(*_cookies(headers, self.cookie))):
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "open the page with the address that fedit ui printed; its token is new at every start.",
            )
        if method == "POST":
            self._check_origin(headers, needed=not by_header)
        return in_address

    def _check_host(self, host: str) -> None:
        """Refuse pages of other sites that let their name point here (DNS rebinding): they ask for that name."""
        name, port = _split(host)
        known = {self.host.lower(), "localhost" if self.local else socket.gethostname().lower()}
        by_number = is_loopback(name) if self.local else _is_number(name)
        if port != self.port or not (name in known or by_number):
            raise Refusal(HTTPStatus.FORBIDDEN, f"this server does not answer for host {host!r}.")

    def _check_origin(self, headers: Mapping[str, str], *, needed: bool) -> None:
        """Refuse what other pages ask for, those of other ports too; browsers say which page asks."""
        origin = headers.get("origin")
        if origin is None and not needed:
            return
        if origin != f"http://{headers.get('host', '')}":
            raise Refusal(HTTPStatus.FORBIDDEN, f"requests from {origin or 'an unknown page'} are not answered.")

    def _is_token(self, *given: str) -> bool:
        return any(hmac.compare_digest(text.encode("utf-8", "replace"), self.token.encode()) for text in given)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is a name or number of this machine that others cannot reach."""
    return host.lower() == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _split(host: str) -> tuple[str, int | None]:
    """Return name and port of a Host header; 80 where it names no port."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "").lower(), parts.port or 80
    except ValueError:
        return "", None


def _cookies(headers: Mapping[str, str], name: str) -> list[str]:
    pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
    return [value for own, _, value in pairs if own == name]

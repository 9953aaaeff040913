"""Keys and certificates of a deployment: a CA of its own, the server's certificate, one key per site."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedit.errors import ConfigError
from fedit.flower.layout import ip_address

ALWAYS = ("127.0.0.1", "::1", "localhost")
"""Names that a server's certificate is always good for: its own processes reach it at these."""

VALID_DAYS = 5 * 365
_CLOCKS_APART = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        """Return the certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        """Return the private key as PEM (PKCS#8, not encrypted)."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_ca(name: str) -> Certificate:
    """Return a new CA, valid for ``VALID_DAYS``; it signs server certificates and no further CA.

    name: what its subject is called, at most 64 characters of it.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _subject(f"fedit CA of {name}")
    builder = (
        _builder(subject, subject, key.public_key())
        .not_valid_after(datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Certificate(builder.sign(key, hashes.SHA384()), key)


def make_server_certificate(ca: Certificate, hosts: Sequence[str]) -> Certificate:
    """Return a new server certificate, signed by ``ca`` and valid as long as that.

    hosts: names and IP addresses by which sites reach the server; `ALWAYS` is added.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    names = list(dict.fromkeys([*hosts, *ALWAYS]))
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    builder = (
        _builder(_subject(names[0]), ca.certificate.subject, key.public_key())
        .not_valid_after(ca.certificate.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority, critical=False)
    )
    return Certificate(builder.sign(ca.key, hashes.SHA384()), key)


def make_node_key(site: str) -> tuple[bytes, bytes]:
    """Return a site's new private and public key, in OpenSSH's formats.

    They are ECDSA over NIST P-384: Flower takes no other kind of key.

    site: comment of the public key.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + f" {site}\n".encode()


def read_public_key(path: Path) -> bytes:
    """Return a site's public key as PEM, as which it is registered.

    Raises:
        ConfigError: the file holds none.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, NotImplementedError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no public key of a site: {error}") from error
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general_name(host: str) -> x509.GeneralName:
    return x509.DNSName(host) if ip_address(host) is None else x509.IPAddress(ipaddress.ip_address(host))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )

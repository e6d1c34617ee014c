"""The private certificate authority of an installation, and the agents' certificates: files on disk,
nothing else.

Knows X.509, ECDSA on P-256 (what every OpenSSL speaks in DTLS 1.2), paths and modes. Must not know sockets
or the configuration. An agent's name stands in its certificate as the subjectAltName URI `dysco:NAME`; the
common name repeats it for people, the addresses are there for people too: nobody checks them.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dysco.errors import ConfigError, HostError, PermissionDeniedError

CA_CERTIFICATE: Final = "ca.pem"
CA_KEY: Final = "ca.key"
CA_DAYS: Final = 3650
AGENT_DAYS: Final = 825
# Clocks of hosts differ: certificates are valid from a little before they are made.
_BACKDATED: Final = datetime.timedelta(hours=1)
_SCHEME: Final = "dysco:"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_PRIVATE: Final = 0o600
_PUBLIC: Final = 0o644

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a certificate, its private key and the CA's certificate were written."""

    certificate: Path
    key: Path
    ca: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What a certificate says. Fingerprints are 64 hexadecimal digits."""

    path: Path
    kind: str  # "ca", or "agent", or "other" for one that is pinned and names nobody
    name: str | None
    issuer: str
    fingerprint: str
    valid_from: datetime.datetime
    valid_until: datetime.datetime
    addresses: tuple[str, ...]

    def valid_at(self, moment: datetime.datetime) -> bool:
        """Tell whether the certificate is valid at a moment with a time zone."""
        return self.valid_from <= moment <= self.valid_until


def init(directory: Path, *, days: int = CA_DAYS, force: bool = False) -> Paths:
    """Make a CA in `directory` (made if need be, mode 0700): ca.pem and ca.key.

    An old CA is never replaced without `force`. Raises ConfigError, PermissionDeniedError, HostError.
    """
    certificate, key = directory / CA_CERTIFICATE, directory / CA_KEY
    _refuse_old((certificate, key), force)
    with _errors_of(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"dysco CA {secrets.token_hex(4)}")])
    signed = (
        _builder(name, name, private.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    _write(key, _pem_key(private), _PRIVATE)
    _write(certificate, _pem(signed), _PUBLIC)
    return Paths(certificate, key, certificate, fingerprint(signed))


def issue(
    directory: Path, name: str, addresses: Iterable[str] = (), *, days: int = AGENT_DAYS, force: bool = False
) -> Paths:
    """Make a key and a certificate for the agent `name`: NAME.pem and NAME.key beside the CA.

    `addresses` are only noted in it. An old certificate is never replaced without `force`. Raises ConfigError
    (bad name or address, no CA, files there), PermissionDeniedError, HostError.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a name: 1 to 63 letters, digits, '_', '.' and '-'")
    if name == Path(CA_CERTIFICATE).stem:
        raise ConfigError(f"{name!r} cannot be an agent's name here: the CA's own files are called so")
    noted: list[x509.GeneralName] = []
    for text in addresses:
        try:
            noted.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            raise ConfigError(f"{text!r} is not an IPv4 or IPv6 address") from None
    if not (directory / CA_CERTIFICATE).exists():
        raise ConfigError(
            f"{directory / CA_CERTIFICATE}: there is no CA here; make one with `dysco keys init`"
        )
    authority = load_certificate(directory / CA_CERTIFICATE)
    signer = load_key(directory / CA_KEY)
    if public_bytes(authority.public_key()) != public_bytes(signer.public_key()):
        raise ConfigError(f"{directory / CA_KEY}: this is not the private key of {CA_CERTIFICATE} beside it")
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    _refuse_old((certificate, key), force)
    private = ec.generate_private_key(ec.SECP256R1())
    names = [x509.UniformResourceIdentifier(_SCHEME + name), *noted]
    signed = (
        _builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            authority.subject,
            private.public_key(),
            days,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    _write(key, _pem_key(private), _PRIVATE)
    _write(certificate, _pem(signed), _PUBLIC)
    return Paths(certificate, key, directory / CA_CERTIFICATE, fingerprint(signed))


def show(path: Path) -> Shown:
    """Read a certificate; raises ConfigError or PermissionDeniedError."""
    certificate = load_certificate(path)
    name = name_of(certificate)
    kind = "agent" if name is not None else "ca" if _is_ca(certificate) else "other"
    return Shown(
        path=path,
        kind=kind,
        name=name if name is not None else _common_name(certificate.subject),
        issuer=_common_name(certificate.issuer) or certificate.issuer.rfc4514_string(),
        fingerprint=fingerprint(certificate),
        valid_from=certificate.not_valid_before_utc,
        valid_until=certificate.not_valid_after_utc,
        addresses=tuple(str(a) for a in _alternative_names(certificate).get_values_for_type(x509.IPAddress)),
    )


def fingerprint(certificate: x509.Certificate) -> str:
    """Give the SHA-256 of a certificate in 64 lower-case hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def name_of(certificate: x509.Certificate) -> str | None:
    """Give the agent's name, or None for a certificate that has not exactly one URI `dysco:NAME`."""
    found = [
        uri.removeprefix(_SCHEME)
        for uri in _alternative_names(certificate).get_values_for_type(x509.UniformResourceIdentifier)
        if uri.startswith(_SCHEME)
    ]
    return found[0] if len(found) == 1 and _NAME.fullmatch(found[0]) else None


def load_certificate(path: Path) -> x509.Certificate:
    """Read one PEM certificate, the first; raises ConfigError or PermissionDeniedError."""
    return load_certificates(path)[0]


def load_certificates(path: Path) -> list[x509.Certificate]:
    """Read all PEM certificates of a file, at least one; raises ConfigError or PermissionDeniedError."""
    data = _read(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ConfigError(f"{path}: no certificate in PEM format") from None


def load_key(path: Path) -> PrivateKey:
    """Read an unencrypted PEM private key (EC or RSA); raises ConfigError or PermissionDeniedError."""
    data = _read(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: no private key in PEM format without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{path}: the key is neither ECDSA nor RSA")
    return key


def public_bytes(key: PublicKeyTypes) -> bytes:
    """Give a public key in a form that can be compared."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    if days < 1:
        raise ConfigError(f"{days} days: a certificate is valid for one day at least")
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return x509.SubjectAlternativeName([])


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _common_name(name: x509.Name) -> str | None:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _refuse_old(paths: Iterable[Path], force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise ConfigError(
                f"{path} is there already; with force it is replaced, and what it signed or proved ends"
            )


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise ConfigError(f"{path}: a directory stands where a file should, or the other way round") from None
    except PermissionError:
        raise PermissionDeniedError(f"{path}: permission denied") from None
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error


def _read(path: Path) -> bytes:
    with _errors_of(path):
        return path.read_bytes()


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a whole file or none: beside it, synced, then renamed over it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _errors_of(path):
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)  # whatever the umask is
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

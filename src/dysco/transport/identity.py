"""Who this agent is and whom it believes: the OpenSSL context, and the name that a certificate proves.

Knows certificates, pinned fingerprints and the rules of names. Must not know sockets, clocks or messages. A
peer is believed when the CA signed its certificate and that carries the URI `dysco:NAME`, or when the
configuration pins the SHA-256 of its certificate to a name; then the CA and the names inside are not asked,
the dates are.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from OpenSSL import SSL, crypto

from dysco.errors import ConfigError
from dysco.transport import keys

# AES-GCM alone, so that a record costs the same everywhere (records.RECORD_OVERHEAD). RSA for pinned
# certificates that another authority made.
_CIPHERS: Final = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    b"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"
)
_DTLS_1_2: Final = 0xFEFD
_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED


class Handshake:
    """What the callbacks of OpenSSL need to know of a handshake, and what they found out."""

    __slots__ = ("accepts", "cookies", "peer", "refusal")

    def __init__(self, accepts: frozenset[str]) -> None:
        """Accept the peers named; a server's cookies are filled in by its listener."""
        self.accepts = accepts
        self.cookies: tuple[bytes, ...] = ()
        self.peer: str | None = None
        self.refusal: str | None = None


class Identity:
    """The own certificate with its key, the CA, and the pinned fingerprints (64 hex digits to name)."""

    def __init__(
        self, certificate: Path, key: Path, ca: Path | None, pins: Mapping[str, str] | None = None
    ) -> None:
        """Read the files; raises ConfigError or PermissionDeniedError, naming the file."""
        own = keys.load_certificate(certificate)
        private = keys.load_key(key)
        if keys.public_bytes(own.public_key()) != keys.public_bytes(private.public_key()):
            raise ConfigError(f"{key}: this is not the private key of the certificate {certificate}")
        self.name = keys.name_of(own)
        self.fingerprint = keys.fingerprint(own)
        self.pins = dict(pins or {})
        context = SSL.Context(SSL.DTLS_METHOD)
        context.set_min_proto_version(_DTLS_1_2)
        context.set_max_proto_version(_DTLS_1_2)
        context.set_options(
            SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION
        )
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_cipher_list(_CIPHERS)
        context.use_certificate(own)
        context.use_privatekey(private)
        if ca is not None:
            store = context.get_cert_store()
            assert store is not None
            for authority in keys.load_certificates(ca):
                store.add_cert(crypto.X509.from_cryptography(authority))
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify)
        context.set_cookie_generate_callback(_first_cookie)
        context.set_cookie_verify_callback(_known_cookie)
        self.context = context

    def _verify(
        self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, valid: int
    ) -> bool:
        handshake: Handshake = connection.get_app_data()
        if depth > 0:
            if not valid:
                handshake.refusal = f"its authority's certificate is not valid (OpenSSL error {error})"
            return bool(valid)
        found = certificate.to_cryptography()
        name = self.pins.get(keys.fingerprint(found))
        if name is not None:
            valid = error not in (_NOT_YET_VALID, _EXPIRED)
        else:
            name = keys.name_of(found)
            if name in self.pins.values():
                handshake.refusal = f"{name} has another certificate than the pinned one"
                return False
        if not valid:
            handshake.refusal = f"certificate of {name} is not valid (OpenSSL error {error})"
        elif name is None or name not in handshake.accepts:
            handshake.refusal = f"certificate is for {name}, which is not expected from there"
        else:
            # OpenSSL may ask twice at depth 0 (once for an error, once for the dates): the last word counts.
            handshake.peer, handshake.refusal = name, None
            return True
        handshake.peer = None
        return False


def _first_cookie(connection: SSL.Connection) -> bytes:
    handshake: Handshake = connection.get_app_data()
    return handshake.cookies[0]


def _known_cookie(connection: SSL.Connection, cookie: bytes) -> bool:
    handshake: Handshake = connection.get_app_data()
    return any(hmac.compare_digest(cookie, good) for good in handshake.cookies)

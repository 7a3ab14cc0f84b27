"""Who a process is, and who it talks to: the credentials of a node, and the identity of a peer behind mutual TLS.

A folder of credentials holds `node.pem` (private key and certificate, mode 0600), `ca.pem` and `crl.pem`: all that a
machine needs. `tierfed.deploy.admission` decides whether a peer may join.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from tierfed.deploy import certificates, files
from tierfed.deploy.names import CLOUD, ROAMING, from_uri, server_name
from tierfed.errors import InputError

NODE, CA, CRL = "node.pem", "ca.pem", "crl.pem"
RENEW_BEFORE = timedelta(days=30)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A node as its certificate names it.

    :param parent: the only node that it may join; `ROAMING`: any; "": none, as the cloud
    :param serial: of the certificate
    :param not_after: the end of the certificate, UTC
    """

    name: str
    tier: str
    parent: str
    serial: int
    not_after: datetime

    def __str__(self) -> str:
        return f"{self.tier} {self.name!r}"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a node proves its identity with, and whom it believes."""

    folder: Path
    identity: Identity
    private: bytes = field(repr=False)
    """Private key and certificate, PEM."""
    certificate: bytes = field(repr=False)
    ca: bytes = field(repr=False)

    def warning(self, now: datetime | None = None) -> str:
        """What to say when the certificate ends soon; empty while there is time."""
        left = self.identity.not_after - (now or certificates.utc_now())
        if left > RENEW_BEFORE:
            return ""
        return (
            f"the certificate of {self.identity} ends in {left.days} days, at {self.identity.not_after:%Y-%m-%d %H:%M} "
            f"UTC; issue it anew: `tierfed keys issue {self.identity.name}`"
        )


def identity_of(certificate: bytes | x509.Certificate) -> Identity:
    """The node that a certificate names. Whether the certificate is to be believed, the TLS handshake has said.

    :param certificate: PEM
    :raises InputError: it cannot be read, or names no node or several
    """
    if isinstance(certificate, bytes):
        certificate = certificates.read_certificate(certificate, "the peer's answer")
    named = certificates.uris(certificate)
    if len(named) != 1:
        raise InputError(f"the certificate names {len(named)} nodes, wanted one; issue it with `tierfed keys issue`")
    tier, name, parent = from_uri(named[0])
    return Identity(
        name=name,
        tier=tier,
        parent=parent,
        serial=certificate.serial_number,
        not_after=certificate.not_valid_after_utc,
    )


def peer_identity(auth_context: Mapping[str, Sequence[bytes]]) -> Identity:
    """Who is at the other end of a call. :param auth_context: as `grpc.ServicerContext.auth_context` returns it

    :raises InputError: the connection has no certificate that names a node
    """
    shown = auth_context.get("x509_pem_cert", ())
    if len(shown) != 1:
        raise InputError("the peer has shown no certificate; a node joins with mutual TLS")
    return identity_of(bytes(shown[0]))


def load_credentials(folder: Path, now: datetime | None = None) -> Credentials:
    """The credentials of a node, checked before anything is begun with them.

    :raises InputError: a file is missing or damaged, others can read the key, the key is not that of the certificate,
        another CA has signed it, or it is not valid at this time
    """
    remedy = "copy the node's folder from where `tierfed keys issue` has made it"
    content = files.read(folder / NODE, "the key and certificate of this node", remedy, private=True)
    key = certificates.read_key(content, folder / NODE)
    certificate = certificates.read_certificate(content, folder / NODE)
    ca_pem = files.read(folder / CA, "the certificate of the CA", remedy)
    ca = certificates.read_certificate(ca_pem, folder / CA)
    if certificates.public_bytes(key) != certificates.public_bytes(certificate):
        raise InputError(f"the key in {folder / NODE} is not that of the certificate beside it; {remedy}")
    if not certificates.signed_by(certificate, ca):
        raise InputError(f"the certificate in {folder / NODE} is not signed by the CA in {folder / CA}; {remedy}")
    identity = identity_of(certificate)
    check_time(identity, certificate, now or certificates.utc_now())
    return Credentials(
        folder=folder,
        identity=identity,
        private=certificates.key_pem(key),
        certificate=certificates.pem(certificate),
        ca=certificates.pem(ca),
    )


def check_time(identity: Identity, certificate: x509.Certificate, now: datetime) -> None:
    """:raises InputError: the certificate is not valid at this time"""
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
    if now > identity.not_after:
        raise InputError(
            f"the certificate of {identity} has expired at {identity.not_after:%Y-%m-%d %H:%M} UTC, {clock}; issue it "
            f"anew (`tierfed keys issue {identity.name}`), or set the clock"
        )
    if now < certificate.not_valid_before_utc:
        raise InputError(
            f"the certificate of {identity} begins at {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, {clock}; "
            "set the clock"
        )


def server_credentials(credentials: Credentials) -> Any:
    """Those of a listening node: only who shows a certificate of the same CA gets through. A certificate that is issued
    anew is shown from the next connection on, without a restart.

    :returns: grpc.ServerCredentials
    """
    _warn(credentials)
    path = credentials.folder / NODE
    seen = [files.state(path)]

    def renewed() -> Any:
        """The configuration after a change; gRPC keeps the last one where this is none."""
        if (state := files.state(path)) == seen[0]:
            return None
        seen[0] = state
        try:
            return _configuration(load_credentials(credentials.folder))
        except InputError as e:
            _LOG.warning("the new certificate is not used: %s", e)
            return None

    return grpc.dynamic_ssl_server_credentials(_configuration(credentials), renewed, True)


def _configuration(credentials: Credentials) -> Any:
    pair = (credentials.private, credentials.certificate)
    return grpc.ssl_server_certificate_configuration([pair], credentials.ca)


def channel_credentials(credentials: Credentials) -> Any:
    """Those of a child that dials its parent; to be used with `channel_options`.

    :returns: grpc.ChannelCredentials
    """
    _warn(credentials)
    return grpc.ssl_channel_credentials(credentials.ca, credentials.private, credentials.certificate)


def _warn(credentials: Credentials) -> None:
    """When they are put to use, not whenever they are looked at."""
    if text := credentials.warning():
        _LOG.warning(text)


def channel_options(credentials: Credentials, roams_to: str = "fog") -> list[tuple[str, str]]:
    """What makes a channel refuse every server but the parent that this node's certificate names, wherever it runs.

    :param roams_to: the tier whose servers a node takes that may join any
    """
    parent = credentials.identity.parent
    tier = "cloud" if parent == CLOUD else "fog"
    expected = server_name(roams_to) if parent == ROAMING else server_name(tier, parent)
    return [("grpc.ssl_target_name_override", expected)]

"""Who may join a node. TLS has said that the peer holds the key of a certificate of the same CA; the rest is here."""

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from tierfed.deploy import certificates, files
from tierfed.deploy.identity import CRL, Credentials, Identity
from tierfed.deploy.names import ROAMING
from tierfed.errors import InputError, nearest

SKEW = timedelta(hours=1)
"""So much later than a certificate's end its open connections are cut: the clock here may be ahead."""
CHILDREN = ("fog", "device")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Revocations:
    """A signed list. :param number: a newer list has a higher one"""

    number: int = 0
    serials: frozenset[int] = frozenset()


def read_revocations(path: Path, ca: bytes) -> Revocations:
    """The revocation list in a file, its signature checked.

    :param ca: certificate of the CA, PEM
    :raises InputError: it is missing or damaged, or the CA has not signed it
    """
    remedy = "copy it from the folder of the CA"
    content = files.read(path, "the list of revoked certificates", remedy)
    try:
        found = x509.load_pem_x509_crl(content)
        authority = certificates.read_certificate(ca, "the certificate of the CA").public_key()
        genuine = found.is_signature_valid(authority)  # type: ignore[arg-type]  # keys here are on P-256
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except certificates.MALFORMED:
        raise InputError(f"{path} holds no revocation list that can be read; {remedy}") from None
    if not genuine:
        raise InputError(f"the revocation list {path} is not signed by the CA of this node; {remedy}")
    return Revocations(number=number, serials=frozenset(one.serial_number for one in found))


def admit(
    peer: Identity,
    here: Identity,
    *,
    revoked: Collection[int] = (),
    now: datetime | None = None,
    claimed: str = "",
    tiers: Collection[str] = CHILDREN,
    children: Collection[str] | None = None,
) -> str:
    """Why a peer may not join this node, in one line; empty: it may.

    :param revoked: serials of certificates
    :param claimed: who the peer says that it is; empty: it says nothing
    :param tiers: those of this node's children
    :param children: the names of those that this node waits for; none: whoever was issued for it
    """
    return _about_certificate(peer, claimed, revoked, now or certificates.utc_now()) or _about_place(
        peer, here, tiers, children
    )


def _about_certificate(peer: Identity, claimed: str, revoked: Collection[int], now: datetime) -> str:
    if claimed and claimed != peer.name:
        return f"wrong name: it says that it is {claimed[:200]!r}, its certificate is that of {peer}"
    if now > peer.not_after + SKEW:
        return f"expired: the certificate of {peer} ended at {peer.not_after:%Y-%m-%d %H:%M} UTC"
    if peer.serial in revoked:
        return f"revoked: the certificate {peer.serial:x} of {peer}"
    return ""


def _about_place(peer: Identity, here: Identity, tiers: Collection[str], children: Collection[str] | None) -> str:
    if peer.tier not in tiers or peer.tier not in CHILDREN:
        return f"wrong tier: {peer} cannot join {here}, which takes {' and '.join(tiers)} nodes"
    if peer.parent not in (here.name, ROAMING):
        return f"wrong parent: {peer} was issued for {peer.parent!r}, this is {here.name!r}"
    if children is not None and peer.name not in children:
        return f"unknown: {here} has no child {peer.name!r}; {nearest(peer.name, children)}"
    return ""


class Gate:
    """`admit` with the revocation list of this node's folder, which is read again when the file changes.

    A list that cannot be read, is forged, or is older than the one that is known changes nothing but the log. For use
    from several threads. Ask again for peers whose connection is open: a certificate may have been revoked since.

    :param clock: the time, UTC
    :raises InputError: there is no list to begin with, or it is damaged or forged
    """

    def __init__(self, credentials: Credentials, clock: Callable[[], datetime] = certificates.utc_now) -> None:
        self._path, self._ca, self._here = credentials.folder / CRL, credentials.ca, credentials.identity
        self._clock, self._lock = clock, threading.Lock()
        self._seen = files.state(self._path)
        device = self._here.tier == "device"  # nobody joins it, and it is given no list
        self._known = Revocations() if device else read_revocations(self._path, self._ca)

    def revocations(self) -> Revocations:
        """The newest list that was seen."""
        with self._lock:
            if (state := files.state(self._path)) != self._seen:
                self._seen = state
                try:
                    self._known = self._newer(read_revocations(self._path, self._ca))
                except InputError as e:
                    _LOG.warning("the revocation list that was read before stays in use: %s", e)
            return self._known

    def _newer(self, found: Revocations) -> Revocations:
        if found.number < self._known.number:
            raise InputError(
                f"{self._path} is list {found.number}, older than list {self._known.number}; copy the newest one from "
                "the folder of the CA"
            )
        return found

    def admit(
        self,
        peer: Identity,
        *,
        claimed: str = "",
        tiers: Collection[str] = CHILDREN,
        children: Collection[str] | None = None,
    ) -> str:
        """Why a peer may not join, as `admit` says it; empty: it may."""
        return admit(
            peer,
            self._here,
            revoked=self.revocations().serials,
            now=self._clock(),
            claimed=claimed,
            tiers=tiers,
            children=children,
        )

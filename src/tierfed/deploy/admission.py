"""Who may join a node, and whom a node believes to be its parent. TLS has said that the peer holds the key of a
certificate of the same CA; the rest is here.

TLS of gRPC does not ask a child whether the certificate of its parent was revoked, nor does it say whose it is. So a
welcome brings the newest revocation list and the parent's certificate, and is signed for this child alone. Lists are
signed by the CA: whoever hands one on can hold it back, and cannot change it; a child keeps the newest one.
"""

import json
import logging
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from tierfed.deploy import certificates, files
from tierfed.deploy.frame import Header
from tierfed.deploy.identity import CRL, NODE, Credentials, Identity, identity_of, load_credentials
from tierfed.deploy.logs import event
from tierfed.deploy.names import CLOUD, ROAMING
from tierfed.errors import InputError, nearest

SKEW = timedelta(hours=1)
"""So much later than a certificate's end its open connections are cut: the clock here may be ahead."""
CHILDREN = ("fog", "device")
_REMEDY = "copy it from the folder of the CA"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Revocations:
    """A signed list. :param number: a newer list has a higher one; :param pem: as the CA has written it"""

    number: int
    serials: frozenset[int]
    pem: bytes = field(repr=False)


def read_revocations(path: Path, ca: bytes) -> Revocations:
    """The revocation list in a file, its signature checked.

    :param ca: certificate of the CA, PEM
    :raises InputError: it is missing or damaged, or the CA has not signed it
    """
    return _revocations(files.read(path, "the list of revoked certificates", _REMEDY), path, ca)


def _revocations(content: bytes, where: object, ca: bytes) -> Revocations:
    try:
        found = x509.load_pem_x509_crl(content)
        authority = certificates.read_certificate(ca, "the certificate of the CA").public_key()
        genuine = found.is_signature_valid(authority)  # type: ignore[arg-type]  # keys here are on P-256
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except certificates.MALFORMED:
        raise InputError(f"{where} holds no revocation list that can be read; {_REMEDY}") from None
    if not genuine:
        raise InputError(f"the revocation list {where} is not signed by the CA of this node; {_REMEDY}")
    return Revocations(number=number, serials=frozenset(one.serial_number for one in found), pem=content)


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
    """`admit` with the revocation list of this node's folder, which is read again when the file changes; and the same
    for its parent. For use from several threads.

    A list that cannot be read, is forged, or is older than the one that is known changes nothing but the log. Ask again
    for peers whose connection is open: a certificate may have been revoked since.

    :param clock: the time, UTC
    :raises InputError: there is no list to begin with, or it is damaged or forged
    """

    def __init__(self, credentials: Credentials, clock: Callable[[], datetime] = certificates.utc_now) -> None:
        self._path, self._ca, self._here = credentials.folder / CRL, credentials.ca, credentials.identity
        self._clock, self._lock = clock, threading.Lock()
        self._seen = files.state(self._path)
        self._known = read_revocations(self._path, self._ca)
        self._shown, self._shown_at = credentials, files.state(credentials.folder / NODE)
        self._parent: Identity | None = None

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

    # what a parent says

    def news(self) -> Header:
        """The newest list, for children."""
        known = self.revocations()
        return {"number": known.number, "list": known.pem.decode("ascii")}

    def welcome(self, hello: Header) -> Header:
        """What a child that is let in is shown. :param hello: of the child"""
        shown = self._renewed()
        key = certificates.read_key(shown.private, shown.folder / NODE)
        signed = certificates.signature(key, _vow(str(hello.get("nonce")), str(hello.get("name"))))
        return {**self.news(), "certificate": shown.certificate.decode("ascii"), "signature": signed.hex()}

    def _renewed(self) -> Credentials:
        """The credentials of this node, new ones as soon as they are there."""
        with self._lock:
            if (state := files.state(self._shown.folder / NODE)) != self._shown_at:
                self._shown_at = state
                with suppress(InputError):  # TLS has said why they are not used
                    self._shown = load_credentials(self._shown.folder)
            return self._shown

    # what a child makes of it

    def learn(self, news: Header) -> None:
        """Keeps a list of the parent that is newer than the one that is known."""
        before = self.revocations().number
        try:
            found = _revocations(str(news.get("list")).encode(), "of the parent", self._ca)
        except InputError as e:
            _LOG.warning("the revocation list that is here stays in use: %s", e)
            return
        if found.number <= before:
            return
        with self._lock:
            self._known = found
            try:
                files.write(self._path, found.pem)
            except InputError as e:
                _LOG.warning("revocation list %d is known until this process ends: %s", found.number, e)
            self._seen = files.state(self._path)
        about = event("revocations", node=self._here.name)
        _LOG.info("%s: got revocation list %d from its parent", self._here.name, found.number, extra=about)

    def doubts(self, welcome: Header, nonce: str) -> str:
        """Why whoever welcomes this node is not its parent, in one line; empty: it is.

        :param nonce: what this node has said in its hello, and never before
        """
        self.learn(welcome)
        try:
            shown = certificates.read_certificate(str(welcome.get("certificate")).encode(), "the welcome of the parent")
            self._parent, signed = identity_of(shown), bytes.fromhex(str(welcome.get("signature")))
        except (InputError, ValueError) as e:
            return f"no certificate: {e}"
        authority = certificates.read_certificate(self._ca, "the certificate of the CA")
        if not certificates.signed_by(shown, authority):
            return "wrong CA: its certificate is not signed by the CA of this node"
        if not certificates.is_signature(signed, _vow(nonce, self._here.name), shown):
            return f"wrong key: it shows the certificate of {self._parent}, and does not have its key"
        if not _may_be_parent(self._here.parent, self._parent):
            return f"wrong parent: {self._here} was issued for {self._here.parent!r}, this is {self._parent}"
        return self.trouble()

    def trouble(self) -> str:
        """Why the parent that has welcomed this node is believed no more; empty: it is."""
        if self._parent is None:
            return ""
        return _about_certificate(self._parent, "", self.revocations().serials, self._clock())


def _may_be_parent(wanted: str, peer: Identity) -> bool:
    tier = "cloud" if wanted == CLOUD else "fog"
    return peer.tier == tier and wanted in (peer.name, ROAMING)


def _vow(nonce: str, child: str) -> bytes:
    """What a parent signs: nobody can use it at another connection, or for another child."""
    return b"tierfed welcome " + json.dumps([nonce, child]).encode()

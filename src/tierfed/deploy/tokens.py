"""Enrollment: a new node makes its own key, and a token gets it a certificate.

A token is a random secret bound to one node, with an expiry, good for one key. The CA keeps its SHA-256 only. With the
secret goes the certificate of the CA, so that the node knows whom it tells the secret to at its first contact.
"""

import base64
import binascii
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tierfed.deploy import certificates, files
from tierfed.deploy.authority import DAYS, Authority, check_days, check_place, sign
from tierfed.deploy.identity import CRL
from tierfed.deploy.ledger import Ticket, ledger
from tierfed.deploy.names import Node, from_uri, uri
from tierfed.errors import InputError

_KIND = "tierfed1"
_SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a new node is given, over a way that others cannot read.

    :param ca: certificate of the CA, PEM
    """

    secret: str = field(repr=False)
    node: Node
    ca: bytes = field(repr=False)

    def text(self) -> str:
        """One line, to be read by `read_token`."""
        der = certificates.read_certificate(self.ca, "the token").public_bytes(serialization.Encoding.DER)
        who = json.dumps(uri(self.node.tier, self.node.name, self.node.parent)).encode()
        return ".".join((_KIND, self.secret, _encoded(who), _encoded(der)))


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def read_token(text: str) -> Token:
    """:raises InputError: this is no token"""
    try:
        kind, secret, who, der = text.split(".")
        if kind != _KIND or len(_decoded(secret)) != _SECRET_BYTES:
            raise ValueError
        tier, name, parent = from_uri(str(json.loads(_decoded(who))))
        ca = certificates.pem(x509.load_der_x509_certificate(_decoded(der)))
    except (ValueError, binascii.Error):
        raise InputError(
            f"this is no token: wanted one line that begins with {_KIND}., whole, as `tierfed keys token` prints it"
        ) from None
    return Token(secret=secret, node=Node(name=name, tier=tier, parent=parent), ca=ca)


def digest(content: str | bytes) -> str:
    """SHA-256; a secret of 256 random bits needs no slower one."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def make_token(
    authority: Authority, node: Node, *, hours: float = 24, days: int = DAYS, now: datetime | None = None
) -> Token:
    """A token for one node.

    :param hours: until it cannot be used any more
    :param days: validity of the certificate
    :raises InputError: the name is taken by a node elsewhere in the tree
    """
    now = now or certificates.utc_now()
    check_days(days)
    secret = _encoded(secrets.token_bytes(_SECRET_BYTES))
    with ledger(authority.folder) as book:
        check_place(book, node, now)
        book.add_ticket(digest(secret), Ticket(node=node, days=days, expires=now + timedelta(hours=hours)))
    return Token(secret=secret, node=node, ca=certificates.pem(authority.certificate))


def make_csr(key: certificates.Key, node: Node) -> bytes:
    """A request for a certificate, PEM (PKCS#10), signed with the node's own key."""
    return certificates.pem(certificates.signing_request(key, node.tier, node.name, node.parent))


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What a new node gets, PEM."""

    certificate: bytes
    crl: bytes


def enroll(authority: Authority, secret: str, csr: bytes, now: datetime | None = None) -> Enrolled:
    """A certificate for a request, against a token. What the node is comes from the token, the request gives the key.

    Asked again with the same secret and key, the answer is the same certificate: the first one may have been lost.

    :raises InputError: the token is unknown, expired, was used for another key or is for another node; or the request
        is damaged, or whoever made it does not have its key
    """
    now = now or certificates.utc_now()
    public, named = certificates.read_request(csr)
    key = digest(certificates.public_bytes(public))
    another = "make another one: `tierfed keys token`"
    with ledger(authority.folder) as book:
        ticket = book.ticket(digest(secret))
        if ticket is None:
            raise InputError(f"the token is unknown, or was revoked; {another}")
        node = ticket.node
        if named != [uri(node.tier, node.name, node.parent)]:
            raise InputError(
                f"the token is for {node.tier} {node.name!r}, the request is for {', '.join(named)[:200]!r}"
            )
        if ticket.key and ticket.key != key:
            raise InputError(f"the token of {node.tier} {node.name!r} was used before, for another key; {another}")
        if now > ticket.expires:
            raise InputError(f"the token has expired at {ticket.expires:%Y-%m-%d %H:%M} UTC; {another}")
        crl = files.read(authority.folder / CRL, "the revocation list", "restore it from a copy")
        if ticket.key:
            (before,) = (r for r in book.records(node.name) if r.serial == ticket.serial)
            if before.revoked is not None:
                raise InputError(f"the certificate of this token was revoked; {another}")
            return Enrolled(certificate=before.pem.encode(), crl=crl)
        check_place(book, node, now)
        made = sign(authority, book, node, public, days=ticket.days, now=now)
        book.use_ticket(digest(secret), key, made.serial_number, now)
    return Enrolled(certificate=certificates.pem(made), crl=crl)

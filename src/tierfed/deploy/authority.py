"""A private CA in a folder: its key, the list of what it has issued, and what nodes are given.

ca.key         private key of the CA, mode 0600; whoever has it can make any node
ca.pem         certificate of the CA
crl.pem        signed list of revoked certificates
ledger.sqlite  every certificate by serial, and enrollment tokens as hashes, mode 0600
nodes/NAME/    what a node needs: node.pem (0600), ca.pem, crl.pem
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tierfed.deploy import certificates, files
from tierfed.deploy.identity import CA, CRL, NODE
from tierfed.deploy.ledger import Ledger, Record, ledger, make_ledger
from tierfed.deploy.names import CLOUD, ROAMING, Node, check_name, folder_name
from tierfed.errors import InputError, nearest

KEY, NODES = "ca.key", "nodes"
DAYS = 365


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA at hand, with its private key."""

    folder: Path
    key: certificates.Key = field(repr=False)
    certificate: x509.Certificate

    def node_folder(self, name: str) -> Path:
        """Where the credentials of a node are."""
        return self.folder / NODES / folder_name(name)


def create(folder: Path, *, years: int = 10, now: datetime | None = None) -> Authority:
    """A new CA.

    :raises InputError: there is something in the folder, or it cannot be written
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; choose another folder (--keys), or move that one away")
    now = now or certificates.utc_now()
    files.make_folder(folder)
    key = certificates.new_key()
    certificate = certificates.new_authority(key, years, now)
    files.write(folder / CA, certificates.pem(certificate))
    make_ledger(folder)
    authority = Authority(folder=folder, key=key, certificate=certificate)
    with ledger(folder) as book:
        _write_list(authority, book, now)
    # the key comes last: a folder without one is no CA
    files.write(folder / KEY, certificates.key_pem(key), private=True)
    return authority


def open_authority(folder: Path, now: datetime | None = None) -> Authority:
    """The CA in a folder.

    :raises InputError: there is none, it has expired, a file is damaged, or others can read its key
    """
    remedy = "`tierfed keys init` makes one; for one that is elsewhere give its folder (--keys)"
    content = files.read(folder / KEY, "the private key of a CA", remedy, private=True)
    key = certificates.read_key(content, folder / KEY)
    certificate = certificates.read_certificate(files.read(folder / CA, "the CA's certificate", remedy), folder / CA)
    if certificates.public_bytes(key) != certificates.public_bytes(certificate):
        raise InputError(f"{folder / KEY} is not the key of {folder / CA}; restore both from a copy")
    if (now or certificates.utc_now()) > certificate.not_valid_after_utc:
        raise InputError(
            f"the CA in {folder} has expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; make a new one "
            "in another folder (`tierfed keys init --keys …`) and issue all nodes from it"
        )
    return Authority(folder=folder, key=key, certificate=certificate)


def issue(
    authority: Authority,
    nodes: Sequence[Node],
    *,
    days: int = DAYS,
    hosts: Sequence[str] = (),
    now: datetime | None = None,
) -> list[Path]:
    """Keys and certificates for nodes, new ones for those that have some.

    Earlier certificates of a node are valid until they end or are revoked: it goes on until it has the new one.

    :param hosts: addresses where the nodes listen, beside loopback
    :returns: their folders
    :raises InputError: a name is taken by a node elsewhere in the tree, then nothing is issued; or the disk refuses
    """
    now = now or certificates.utc_now()
    check_days(days)
    made: dict[Path, bytes] = {}
    with ledger(authority.folder) as book:
        for node in nodes:
            check_place(book, node, now)
        for node in nodes:
            key = certificates.new_key()
            signed = sign(authority, book, node, key.public_key(), days=days, hosts=hosts, now=now)
            folder = authority.node_folder(node.name)
            files.make_folder(folder)
            files.write(folder / CA, certificates.pem(authority.certificate))
            files.write(folder / CRL, files.read(authority.folder / CRL, "the revocation list", "restore it"))
            made[folder] = certificates.key_pem(key) + certificates.pem(signed)
    for folder, content in made.items():  # now that they are in the ledger: what is not there cannot be revoked
        files.write(folder / NODE, content, private=True)
    return list(made)


def sign(
    authority: Authority,
    book: Ledger,
    node: Node,
    public: ec.EllipticCurvePublicKey,
    *,
    days: int,
    now: datetime,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """A certificate for a node, entered in the ledger."""
    made = certificates.certificate_for(
        public,
        authority.certificate,
        authority.key,
        tier=node.tier,
        name=node.name,
        parent=node.parent,
        days=days,
        now=now,
        hosts=hosts,
    )
    book.add(node, made.serial_number, now, made.not_valid_after_utc, certificates.pem(made).decode())
    return made


def check_place(book: Ledger, node: Node, now: datetime) -> None:
    """:raises InputError: such a node cannot be, or its name is that of a node elsewhere in the tree"""
    check_name(node.name, node.tier)
    if (node.tier == "cloud") != (node.parent == ""):
        raise InputError(
            f"{node.tier} {node.name!r} with parent {node.parent!r}: the cloud has no parent, every other node has one "
            "(--parent NAME, or --roaming for any)"
        )
    if node.parent not in ("", ROAMING):
        check_name(node.parent, "cloud" if node.parent == CLOUD else "fog")
    if node.parent == node.name:
        raise InputError(f"{node.tier} {node.name!r} cannot be its own parent; give --parent {CLOUD}, or a fog")
    for other in book.records(node.name):
        if other.status(now) == "valid" and (other.tier, other.parent) != (node.tier, node.parent):
            place = f"of {other.parent!r}" if other.parent else "of nobody"
            raise InputError(
                f"the name {node.name!r} is taken: a {other.tier} {place} until {other.not_after:%Y-%m-%d}; choose "
                f"another name, or end that one first: tierfed keys revoke {node.name!r}"
            )


def revoke(authority: Authority, names: Sequence[str], now: datetime | None = None) -> list[Record]:
    """Ends all certificates of some nodes, and gives the new list to the nodes whose folders are here.

    :returns: those that were valid until now
    :raises InputError: nothing was ever issued under such a name; then nothing is revoked
    """
    now = now or certificates.utc_now()
    with ledger(authority.folder) as book:
        known = {record.name for record in book.records()} | book.tokens()
        for name in names:
            if name not in known:
                raise InputError(f"no node {name!r} was issued by the CA in {authority.folder}; {nearest(name, known)}")
        ended = [r for name in names for r in book.records(name) if r.status(now) == "valid"]
        for name in names:
            book.revoke(name, now)
        _write_list(authority, book, now)
    return ended


def records(authority: Authority) -> list[Record]:
    """Every certificate that was issued, oldest first."""
    with ledger(authority.folder) as book:
        return book.records()


def place_of(authority: Authority, name: str) -> Node | None:
    """The node that was issued last under a name."""
    with ledger(authority.folder) as book:
        found = book.records(name)
    return Node(name=name, tier=found[-1].tier, parent=found[-1].parent) if found else None


def _write_list(authority: Authority, book: Ledger, now: datetime) -> None:
    """Inside the transaction: of two commands at once the later one writes the longer list."""
    gone = [(r.serial, r.revoked) for r in book.records() if r.revoked is not None]
    made = certificates.revocation_list(authority.certificate, authority.key, gone, book.next_number(), now)
    content = certificates.pem(made)
    for folder in (authority.folder, *sorted(path.parent for path in (authority.folder / NODES).glob(f"*/{CRL}"))):
        files.write(folder / CRL, content)


def check_days(days: int) -> None:
    """:raises InputError: no certificate can be valid for so long"""
    if not 1 <= days <= 3650:
        raise InputError(f"--days {days}: wanted 1 to 3650; a year is usual, and it can be issued anew at any time")

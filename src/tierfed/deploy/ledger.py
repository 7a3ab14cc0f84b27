"""What a CA has issued: one SQLite file, one transaction per command."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tierfed.deploy.names import Node
from tierfed.errors import InputError

FILE = "ledger.sqlite"
_WAIT_SECONDS = 30
_TABLES = """
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, name TEXT NOT NULL, tier TEXT NOT NULL, parent TEXT NOT NULL,
    issued INTEGER NOT NULL, not_after INTEGER NOT NULL, revoked INTEGER, pem TEXT NOT NULL);
CREATE INDEX names ON certificates (name);
CREATE TABLE tokens (
    hash TEXT PRIMARY KEY, name TEXT NOT NULL, tier TEXT NOT NULL, parent TEXT NOT NULL, days INTEGER NOT NULL,
    expires INTEGER NOT NULL, used INTEGER, key TEXT, serial TEXT);
CREATE TABLE lists (number INTEGER PRIMARY KEY);
"""


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One certificate that was issued."""

    serial: int
    name: str
    tier: str
    parent: str
    issued: datetime
    not_after: datetime
    revoked: datetime | None
    pem: str

    def status(self, now: datetime) -> str:
        """valid, revoked or expired."""
        return "revoked" if self.revoked is not None else "expired" if now > self.not_after else "valid"


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """An enrollment token as the CA keeps it: the hash of its secret.

    :param key: hash of the public key that it was used for; empty: it was not used
    :param serial: of the certificate that it was used for
    """

    node: Node
    days: int
    expires: datetime
    key: str = ""
    serial: int = 0


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The open file, inside a transaction."""

    db: sqlite3.Connection

    def add(self, node: Node, serial: int, issued: datetime, not_after: datetime, pem: str) -> None:
        """Enters a certificate."""
        row = (f"{serial:x}", node.name, node.tier, node.parent, int(issued.timestamp()), int(not_after.timestamp()))
        self.db.execute("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, NULL, ?)", (*row, pem))

    def records(self, name: str | None = None) -> list[Record]:
        """All certificates, or those of a name, oldest first."""
        where, values = ("", ()) if name is None else ("WHERE name = ?", (name,))
        rows = self.db.execute(f"SELECT * FROM certificates {where} ORDER BY rowid", values)
        return [
            Record(
                serial=int(serial, 16),
                name=name_,
                tier=tier,
                parent=parent,
                issued=_time(issued),
                not_after=_time(not_after),
                revoked=None if revoked is None else _time(revoked),
                pem=pem,
            )
            for serial, name_, tier, parent, issued, not_after, revoked, pem in rows
        ]

    def revoke(self, name: str, now: datetime) -> None:
        """Ends all certificates of a name, and its tokens that nobody has used."""
        self.db.execute(
            "UPDATE certificates SET revoked = ? WHERE name = ? AND revoked IS NULL", (int(now.timestamp()), name)
        )
        self.db.execute("DELETE FROM tokens WHERE name = ? AND used IS NULL", (name,))

    def next_number(self) -> int:
        """The number of the next revocation list."""
        self.db.execute("INSERT INTO lists DEFAULT VALUES")
        ((number,),) = self.db.execute("SELECT max(number) FROM lists")
        return int(number)

    def tokens(self) -> set[str]:
        """The names that have tokens."""
        return {name for (name,) in self.db.execute("SELECT name FROM tokens")}

    def add_ticket(self, digest: str, ticket: Ticket) -> None:
        """Enters a token. :param digest: of its secret"""
        node, expires = ticket.node, int(ticket.expires.timestamp())
        row = (digest, node.name, node.tier, node.parent, ticket.days, expires)
        self.db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, NULL)", row)

    def ticket(self, digest: str) -> Ticket | None:
        """The token with this hash."""
        row = self.db.execute(
            "SELECT name, tier, parent, days, expires, key, serial FROM tokens WHERE hash = ?", (digest,)
        ).fetchone()
        if row is None:
            return None
        name, tier, parent, days, expires, key, serial = row
        return Ticket(
            node=Node(name=name, tier=tier, parent=parent),
            days=days,
            expires=_time(expires),
            key=key or "",
            serial=int(serial or "0", 16),
        )

    def use_ticket(self, digest: str, key: str, serial: int, now: datetime) -> None:
        """Marks a token as used."""
        self.db.execute(
            "UPDATE tokens SET used = ?, key = ?, serial = ? WHERE hash = ?",
            (int(now.timestamp()), key, f"{serial:x}", digest),
        )


def make_ledger(folder: Path) -> None:
    """An empty ledger, which only its owner can read."""
    os.close(os.open(folder / FILE, os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(folder / FILE)) as db:
        db.executescript(_TABLES)


@contextmanager
def ledger(folder: Path) -> Iterator[Ledger]:
    """The ledger of a CA in one transaction, which is rolled back if an error leaves it. Others wait for its end.

    :raises InputError: the file is missing or damaged, or the disk refuses
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"there is no {path}, the list of what the CA has issued; restore it from a copy")
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield Ledger(db=db)
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
    except sqlite3.Error as e:
        raise InputError(
            f"cannot work with {path}, the list of what the CA has issued: {e}; make room, or restore it from a copy"
        ) from None

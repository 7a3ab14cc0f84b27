"""Files of keys and certificates: written whole or not at all, private where they must be."""

import os
import secrets
import stat
from pathlib import Path

from tierfed.errors import InputError


def make_folder(path: Path) -> None:
    """A folder that only its owner can enter; one that is there stays as it is.

    :raises InputError: it cannot be made
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"cannot make the folder {path}: {e.strerror}; choose another folder") from None


def write(path: Path, content: bytes, *, private: bool = False) -> None:
    """A file takes the place of what was there in one step, on disk when this returns.

    :param private: nobody but the owner can read it, at no moment
    :raises InputError: the disk refuses
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {e.strerror}; make room, or choose another folder") from None


def read(path: Path, what: str, remedy: str, *, private: bool = False) -> bytes:
    """The content of a file.

    :param what: what it is, for messages
    :param remedy: what to do where it is not there
    :param private: refuse a file that others than its owner can read
    :raises InputError: it is not there, cannot be read, or others can read it
    """
    try:
        if private and os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise InputError(
                f"others than its owner can read {what} {path}; if nobody has copied it, `chmod 600 {path}`, else "
                "revoke what it was made for (`tierfed keys revoke`) and issue it anew"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no {path}, {what}; {remedy}") from None
    except OSError as e:
        raise InputError(f"cannot read {what} {path}: {e.strerror}; let the user of this process read it") from None


def state(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced; zeros while it is not there."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)

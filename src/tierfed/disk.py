"""A folder that one process writes to: its lock, and what goes wrong there in a user's words."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import lmdb

from tierfed.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: two processes on one run are then not told apart
    fcntl = None  # type: ignore[assignment]


def locked(path: Path) -> IO[bytes]:
    """Holds the lock of a store until the file is closed, or its process is gone, however it went."""
    file = (path / "process.lock").open("ab")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"another process is at work on the run in {path.parent}; wait for its end, or stop it, then go on with "
            "`tierfed resume`"
        ) from None
    except OSError:  # a file system without locks
        pass
    return file


def corrupt(path: Path, why: str) -> str:
    """What to say of a damaged checkpoint."""
    return (
        f"the checkpoint in {path} is damaged: {why}; restore the run folder from a copy, or delete it and start "
        "the run again (nothing was changed)"
    )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of the disk and of LMDB, in a user's words."""
    try:
        yield
    except (
        lmdb.CorruptedError,
        lmdb.InvalidError,
        lmdb.PageNotFoundError,
        lmdb.VersionMismatchError,
        json.JSONDecodeError,
    ) as err:
        raise InputError(corrupt(path, str(err))) from None
    except (lmdb.Error, OSError) as err:
        raise disk_error(path, err) from None


def disk_error(path: Path, err: Exception) -> InputError:
    """A failed write, in a user's words."""
    where = path if path.exists() else path.parent
    free = f", {shutil.disk_usage(where).free / 2**20:.0f} MiB are free" if where.exists() else ""
    return InputError(
        f"cannot write to {path}: {err}{free}; make room or choose another folder (run.out), then `tierfed resume` "
        "goes on from the last committed round"
    )

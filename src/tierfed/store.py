"""What outlives a round: private state of devices, rows and states of nodes, the cloud, the log.

A record is a tree of tensors under (table, id). Reads and writes of a round go through a working copy; `commit` makes
all of it durable in one transaction or not at all, so that a process may be killed at any moment and the last committed
round stays.
"""

import json
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import lmdb
import torch

from tierfed.errors import InputError
from tierfed.tree import Tree, nbytes
from tierfed.wire import decode, encode

try:
    import fcntl
except ImportError:  # Windows: two processes on one run are then not told apart
    fcntl = None  # type: ignore[assignment]

Key = tuple[str, int]
_MAP_BYTES = 1 << 26
_CACHE_BYTES = 1 << 31
_SMALLEST_PAGE = 4096


class Store(Protocol):
    """What an engine needs of a store."""

    def get(self, table: str, ident: int) -> Tree | None: ...

    def put(self, table: str, ident: int, record: Tree | None) -> None: ...

    def ids(self, table: str) -> list[int]: ...

    def commit(self, meta: dict[str, Any], log: list[Any]) -> None: ...

    def discard(self) -> None: ...


class MemoryStore:
    """A store that forgets: for tests, and for runs without a folder."""

    def __init__(self) -> None:
        self.records: dict[Key, Tree] = {}
        self.meta: dict[str, Any] = {}
        self.logs: list[Any] = []
        self._before: dict[Key, Tree | None] = {}

    def get(self, table: str, ident: int) -> Tree | None:
        return self.records.get((table, ident))

    def put(self, table: str, ident: int, record: Tree | None) -> None:
        self._before.setdefault((table, ident), self.records.get((table, ident)))
        if record is None:
            self.records.pop((table, ident), None)
        else:
            self.records[table, ident] = record

    def ids(self, table: str) -> list[int]:
        return sorted(i for t, i in self.records if t == table)

    def commit(self, meta: dict[str, Any], log: list[Any]) -> None:
        self.meta, self._before = meta, {}
        self.logs += log

    def discard(self) -> None:
        for key, record in self._before.items():
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record
        self._before = {}


class DiskStore:
    """A store in a folder, on LMDB: records as safetensors frames with a checksum.

    :param path: the folder; it is made when missing
    :param device: where tensors that are read should live
    :raises InputError: the folder holds something else, is damaged, or another process is at work on it
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu", cache_bytes: int = _CACHE_BYTES) -> None:
        self.path, self._device, self._limit = path, device, cache_bytes
        self._staged: dict[Key, Tree | None] = {}
        self._cache: OrderedDict[Key, Tree] = OrderedDict()
        self._cached_bytes, self._closed = 0, False
        with _explained(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
            try:
                self._env = self._open()
                found = self._read(b"meta")
                self.meta: dict[str, Any] = json.loads(found) if found else {}
            except BaseException:
                self._lock.close()
                raise

    def _open(self) -> Any:
        data = self.path / "data.mdb"
        if data.exists() and 0 < data.stat().st_size < 2 * _SMALLEST_PAGE:
            raise InputError(_corrupt(self.path, f"data.mdb has {data.stat().st_size} bytes"))
        env = lmdb.open(str(self.path), map_size=_MAP_BYTES, max_dbs=0, metasync=True, sync=True)
        try:
            self._check_size(env)
        except BaseException:
            env.close()
            raise
        return env

    def close(self) -> None:
        """Lets others at the folder. What was committed can still be read, as long as nobody goes on with the run."""
        self._closed = True
        self._env.close()
        self._lock.close()

    def move(self, device: torch.device | str) -> None:
        """Where tensors that are read from now on should live."""
        self._device = device
        self._cache.clear()
        self._cached_bytes = 0

    def verify(self) -> None:
        """Reads everything once.

        :raises InputError: a record is damaged, or one of the log is missing
        """
        with _explained(self.path), self._env.begin() as txn, txn.cursor() as cursor:
            for key, value in cursor.iternext():
                _checked(self.path, key, value)
        for _ in self.logs():
            pass

    def _check_size(self, env: Any) -> None:
        """A truncated file would be a bus error when read through its memory map; say so before."""
        info, page = env.info(), env.stat()["psize"]
        size = (self.path / "data.mdb").stat().st_size
        if info["last_pgno"] > 1 and size < (info["last_pgno"] + 1) * page:
            raise InputError(
                _corrupt(self.path, f"data.mdb has {size} bytes, its index needs {(info['last_pgno'] + 1) * page}")
            )

    def _read(self, key: bytes) -> bytes | None:
        if self._closed:
            with lmdb.open(str(self.path), readonly=True, lock=False) as env, env.begin() as txn:
                value, meta = txn.get(key), txn.get(b"meta")
            if json.loads(_checked(self.path, b"meta", meta or b"")) != self.meta:
                raise InputError(f"the run in {self.path.parent} went on since; open it again with tierfed.open_run")
        else:
            with self._env.begin() as txn:
                value = txn.get(key)
        return None if value is None else _checked(self.path, key, value)

    def get(self, table: str, ident: int) -> Tree | None:
        key = (table, ident)
        if key in self._staged:
            return self._staged[key]
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        with _explained(self.path):
            frame = self._read(_name(key))
        if frame is None:
            return None
        record = decode(frame, self._device)
        self._remember(key, record)
        return record

    def put(self, table: str, ident: int, record: Tree | None) -> None:
        self._staged[table, ident] = record

    def _remember(self, key: Key, record: Tree) -> None:
        self._forget(key)
        self._cache[key] = record
        self._cached_bytes += nbytes(record)
        while self._cached_bytes > self._limit and len(self._cache) > 1:
            self._cached_bytes -= nbytes(self._cache.popitem(last=False)[1])

    def _forget(self, key: Key) -> None:
        if key in self._cache:
            self._cached_bytes -= nbytes(self._cache.pop(key))

    def ids(self, table: str) -> list[int]:
        prefix = f"{table}/".encode()
        found = set()
        with _explained(self.path), self._env.begin() as txn, txn.cursor() as cursor:
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix):
                        break
                    found.add(int(key[len(prefix) :]))
        for (t, i), record in self._staged.items():
            if t == table:
                (found.discard if record is None else found.add)(i)
        return sorted(found)

    def commit(self, meta: dict[str, Any], log: list[Any]) -> None:
        """In one transaction: all that was put since the last commit, `meta` for the former one, `log` appended."""
        start = int(self.meta.get("logs", 0))
        meta = {**meta, "logs": start + len(log)}
        writes: dict[bytes, bytes | None] = {
            _name(k): None if r is None else encode(r) for k, r in self._staged.items()
        }
        writes |= {b"log/%012d" % (start + i): json.dumps(entry).encode() for i, entry in enumerate(log)}
        writes[b"meta"] = json.dumps(meta).encode()
        with _explained(self.path):
            self._write(writes)
        for key, record in self._staged.items():
            if record is None:
                self._forget(key)
            else:
                self._remember(key, record)
        self._staged, self.meta = {}, meta

    def _write(self, writes: dict[bytes, bytes | None]) -> None:
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for key, value in writes.items():
                        if value is None:
                            txn.delete(key)
                        else:
                            txn.put(key, zlib.crc32(value).to_bytes(4, "big") + value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])

    def discard(self) -> None:
        """Forgets what was put since the last commit."""
        self._staged = {}

    def logs(self) -> Iterator[Any]:
        """All log entries, oldest first."""
        for i in range(int(self.meta.get("logs", 0))):
            with _explained(self.path):
                entry = self._read(b"log/%012d" % i)
            if entry is None:
                raise InputError(_corrupt(self.path, f"log entry {i} is missing"))
            yield json.loads(entry)


def _locked(path: Path) -> IO[bytes]:
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


def _checked(path: Path, key: bytes, value: bytes) -> bytes:
    """A record without its checksum."""
    if len(value) < 4 or zlib.crc32(value[4:]) != int.from_bytes(value[:4], "big"):
        raise InputError(_corrupt(path, f"the checksum of record {key.decode(errors='replace')} is wrong"))
    return value[4:]


def _name(key: Key) -> bytes:
    return f"{key[0]}/{key[1]:012d}".encode()


def _corrupt(path: Path, why: str) -> str:
    return (
        f"the checkpoint in {path} is damaged: {why}; restore the run folder from a copy, or delete it and start "
        "the run again (nothing was changed)"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
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
        raise InputError(_corrupt(path, str(err))) from None
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


def with_default(store: Store, table: str, ident: int, make: Callable[[], Tree]) -> Tree:
    """A record, or what it is before its first write: only records that were written exist."""
    found = store.get(table, ident)
    return make() if found is None else found

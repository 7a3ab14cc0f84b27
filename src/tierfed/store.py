"""What outlives a round: private state of devices, rows and states of nodes, the cloud, the log.

A record is a tree of tensors under (table, id). Reads and writes of a round go through a working copy; `commit` makes
all of it durable in one transaction or not at all, so that a process may be killed at any moment and the last committed
round stays.
"""

import json
import shutil
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import lmdb
import torch
from torch import Tensor

from tierfed.disk import corrupt, explained, locked
from tierfed.errors import InputError
from tierfed.tree import Tree, nbytes, tmap
from tierfed.wire import decode, framed

Key = tuple[str, int]
_Some = dict[Key, Tree | None]
_MAP_BYTES = 1 << 26
_CACHE_BYTES = 1 << 29
_AHEAD_BYTES = 1 << 28  # of records that are read before they are wanted
_VERIFIED_BYTES = 1 << 30  # a larger store is checked record by record when they are read
_CRC_BYTES = 4
_PER_RECORD = 600  # of a record in memory beside its numbers
_SMALLEST_PAGE = 4096


class Records(Protocol):
    """What an engine needs of a store."""

    def get(self, table: str, ident: int) -> Tree | None: ...

    def put(self, table: str, ident: int, record: Tree | None) -> None: ...

    def ids(self, table: str) -> list[int]: ...

    def prefetch(self, table: str, ids: Iterable[int]) -> None: ...


class Store(Records, Protocol):
    """What a run needs of one: all of a round is kept, or nothing."""

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

    def prefetch(self, table: str, ids: Iterable[int]) -> None:
        """Everything is here already."""

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

    Memory holds what was put since the last commit, and beside that a bounded cache.

    :param path: the folder; it is made when missing
    :param device: where tensors that are read should live
    :raises InputError: the folder holds something else, is damaged, or another process is at work on it
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu", cache_bytes: int = _CACHE_BYTES) -> None:
        self.path, self._device, self._limit = path, device, cache_bytes
        self._staged: dict[Key, Tree | None] = {}
        self._cache: OrderedDict[Key, Tree] = OrderedDict()
        self._cached_bytes, self._closed = 0, False
        self._reader, self._reading, self._ready = ThreadPoolExecutor(1), _done({}), _Some()
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = locked(path)
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
            raise InputError(corrupt(self.path, f"data.mdb has {data.stat().st_size} bytes"))
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
        self._reader.shutdown()
        self._env.close()
        self._lock.close()

    def move(self, device: torch.device | str) -> None:
        """Where tensors that are read from now on should live."""
        self._fetched()
        self._device, self._ready = device, {}
        self._cache.clear()
        self._cached_bytes = 0

    def verify(self) -> None:
        """Reads everything once; of a store above 1 GiB the log alone: the rest would take minutes, and every record
        has its checksum compared when it is read.

        :raises InputError: a record is damaged, or one of the log is missing
        """
        if (self.path / "data.mdb").stat().st_size <= _VERIFIED_BYTES:
            with explained(self.path), self._env.begin() as txn, txn.cursor() as cursor:
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
                corrupt(self.path, f"data.mdb has {size} bytes, its index needs {(info['last_pgno'] + 1) * page}")
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
        if key in self._ready:
            ahead = self._ready.pop(key)
            if ahead is not None:
                self._remember(key, ahead)
            return ahead
        with explained(self.path):
            frame = self._read(_name(key))
        if frame is None:
            return None
        record = decode(frame, self._device)
        self._remember(key, record)
        return record

    def put(self, table: str, ident: int, record: Tree | None) -> None:
        self._staged[table, ident] = record

    def prefetch(self, table: str, ids: Iterable[int]) -> None:
        """Reads records in the background, in their order in the file; the next call hands them to `get`. So a caller
        names in every round whom it will want in the round after.

        :raises InputError: a record that the former call asked for is damaged
        """
        self._ready = self._fetched()
        wanted = [(table, i) for i in sorted(set(ids))]
        wanted = [key for key in wanted if key not in self._staged and key not in self._cache]
        if wanted:
            self._reading = self._reader.submit(self._read_ahead, wanted)

    def _read_ahead(self, keys: list[Key]) -> _Some:
        """The records as they are committed now, as many as there is room for."""
        out, size = _Some(), 0
        with explained(self.path), self._env.begin(buffers=True) as txn:
            for key in keys:
                value = txn.get(_name(key))
                out[key] = None if value is None else self._decoded(key, value)
                size += _room(out[key])
                if size > _AHEAD_BYTES:
                    break
        return out

    def _decoded(self, key: Key, value: Any) -> Tree:
        return decode(bytes(_checked(self.path, _name(key), value)), self._device)

    def _fetched(self) -> _Some:
        """What the last prefetch has read; its errors are raised here."""
        found, self._reading = self._reading, _done({})
        return found.result()

    def _remember(self, key: Key, record: Tree) -> None:
        self._forget(key)
        self._cache[key] = record
        self._cached_bytes += _room(record)
        while self._cached_bytes > self._limit and len(self._cache) > 1:
            self._cached_bytes -= _room(self._cache.popitem(last=False)[1])

    def _forget(self, key: Key) -> None:
        if key in self._cache:
            self._cached_bytes -= _room(self._cache.pop(key))

    def ids(self, table: str) -> list[int]:
        prefix = f"{table}/".encode()
        found = set()
        with explained(self.path), self._env.begin() as txn, txn.cursor() as cursor:
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
        texts = {b"log/%012d" % (start + i): json.dumps(entry).encode() for i, entry in enumerate(log)}
        texts[b"meta"] = json.dumps(meta).encode()
        ahead = self._fetched()  # nobody may read while the map grows
        with explained(self.path):
            self._write(texts)
        self._ready, ahead = ({k: r for k, r in a.items() if k not in self._staged} for a in (self._ready, ahead))
        self._reading = _done(ahead)
        self._keep()
        self._staged, self.meta = {}, meta

    def _keep(self) -> None:
        """What was put goes into the cache, the last ones where there is no room for all."""
        room, kept = self._limit, dict[Key, Tree]()
        for key in self._staged:
            self._forget(key)
        for key, record in reversed(self._staged.items()):
            room -= _room(record)
            if room < 0 and kept:
                break
            if record is not None:
                kept[key] = tmap(_alone, record)
        for key in reversed(kept):
            self._remember(key, kept[key])

    def _write(self, texts: dict[bytes, bytes]) -> None:
        """Everything that was put, and some texts, in one transaction."""
        self._grow(sum(_pages(nbytes(r)) for r in self._staged.values() if r is not None))
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    for key in sorted(self._staged):
                        record = self._staged[key]
                        if record is None:
                            txn.delete(_name(key))
                        else:
                            txn.put(_name(key), _stamped(framed(record, _CRC_BYTES)))
                    for name, text in texts.items():
                        txn.put(name, _stamped(bytearray(_CRC_BYTES) + text))
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])

    def _grow(self, size: int) -> None:
        """Makes room for a transaction before it begins: one that runs out of it is written again."""
        info = self._env.info()
        needed = (info["last_pgno"] + 1) * self._env.stat()["psize"] + size + _MAP_BYTES // 4
        if needed > info["map_size"]:
            self._env.set_mapsize(max(2 * info["map_size"], 2 * needed))

    def copy(self, path: Path) -> None:
        """What is committed, as a store in another folder, in the place of the one there: whole or not at all.

        :raises InputError: the disk is full
        """
        fresh = path / "fresh"
        with explained(path):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            self._env.copy(str(fresh), compact=True)
            (fresh / "data.mdb").replace(path / "data.mdb")
            shutil.rmtree(fresh)

    def discard(self) -> None:
        """Forgets what was put since the last commit."""
        self._staged = {}

    def logs(self) -> Iterator[Any]:
        """All log entries, oldest first."""
        for i in range(int(self.meta.get("logs", 0))):
            with explained(self.path):
                entry = self._read(b"log/%012d" % i)
            if entry is None:
                raise InputError(corrupt(self.path, f"log entry {i} is missing"))
            yield json.loads(entry)


def _done(records: _Some) -> Future[_Some]:
    """Something that was read already."""
    out = Future[_Some]()
    out.set_result(records)
    return out


def _stamped(value: bytearray) -> bytearray:
    """A record with its checksum in front, where there is room for it."""
    value[:_CRC_BYTES] = zlib.crc32(memoryview(value)[_CRC_BYTES:]).to_bytes(_CRC_BYTES, "big")
    return value


def _checked(path: Path, key: bytes, value: Any) -> Any:
    """A record, bytes or a view of them, without its checksum."""
    if len(value) < _CRC_BYTES or zlib.crc32(value[_CRC_BYTES:]) != int.from_bytes(value[:_CRC_BYTES], "big"):
        raise InputError(corrupt(path, f"the checksum of record {key.decode(errors='replace')} is wrong"))
    return value[_CRC_BYTES:]


def _pages(size: int) -> int:
    """Bytes of whole pages that a record of this size takes, with its header and its place in the tree."""
    return -(-(size + 2 * _SMALLEST_PAGE) // _SMALLEST_PAGE) * _SMALLEST_PAGE


def _room(record: Tree | None) -> int:
    """Bytes that a record takes in memory."""
    return _PER_RECORD + (0 if record is None else nbytes(record))


def _alone(t: Tensor) -> Tensor:
    """A tensor that keeps nothing else in memory: a view of a part of a larger one is copied."""
    return t.clone() if t.untyped_storage().nbytes() > 2 * t.nbytes else t


def _name(key: Key) -> bytes:
    return f"{key[0]}/{key[1]:012d}".encode()


def with_default(store: Records, table: str, ident: int, make: Callable[[], Tree]) -> Tree:
    """A record, or what it is before its first write: only records that were written exist."""
    found = store.get(table, ident)
    return make() if found is None else found

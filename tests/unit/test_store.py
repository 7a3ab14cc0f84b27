"""What is committed stays, whatever happens then; what is not is forgotten; what is damaged is said so."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zygote
from tierfed.errors import InputError
from tierfed.store import DiskStore, MemoryStore, Store, with_default
from tierfed.testing.toy import gap
from tierfed.tree import Tree


def record(value: float, n: int = 3) -> Tree:
    return {"params": {"w": torch.full((n,), value, dtype=torch.float64)}, "none": {}, "n": torch.tensor(int(value))}


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[DiskStore]:
    store = DiskStore(path, **options)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def either(kind: str, path: Path) -> Iterator[Store]:
    if kind == "memory":
        yield MemoryStore()
    else:
        with opened(path) as store:
            yield store


@pytest.mark.parametrize("kind", ["memory", "disk"])
class TestEither:
    def test_put_get_ids(self, kind: str, tmp_path: Path) -> None:
        with either(kind, tmp_path) as store:
            assert store.get("own", 3) is None
            for i in (11, 3, 200_000):
                store.put("own", i, record(i))
            store.put("owned", 5, record(5))
            assert store.ids("own") == [3, 11, 200_000]
            assert store.ids("ow") == []
            assert gap(store.get("own", 11), record(11)) == 0.0

    def test_discard(self, kind: str, tmp_path: Path) -> None:
        with either(kind, tmp_path) as store:
            for i in (0, 1):
                store.put("own", i, record(i))
            store.commit({}, [])
            store.put("own", 0, record(7))
            store.put("own", 0, record(8))
            store.put("own", 1, None)
            store.put("own", 2, record(2))
            assert store.ids("own") == [0, 2]
            store.discard()
            assert store.ids("own") == [0, 1]
            assert [gap(store.get("own", i), record(i)) for i in (0, 1)] == [0.0, 0.0]

    def test_delete(self, kind: str, tmp_path: Path) -> None:
        with either(kind, tmp_path) as store:
            store.put("own", 0, record(0))
            store.commit({}, [])
            store.put("own", 0, None)
            assert store.get("own", 0) is None
            store.commit({}, [])
            assert store.get("own", 0) is None
            assert store.ids("own") == []
            store.put("own", 9, None)  # what is not there
            store.commit({}, [])

    def test_default(self, kind: str, tmp_path: Path) -> None:
        with either(kind, tmp_path) as store:
            assert gap(with_default(store, "own", 1, lambda: record(4)), record(4)) == 0.0
            assert store.ids("own") == []
            store.put("own", 1, record(5))
            assert gap(with_default(store, "own", 1, lambda: record(4)), record(5)) == 0.0


STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(["own", "kept1"]), st.integers(0, 3), st.integers(0, 99)),
    st.tuples(st.just("delete"), st.sampled_from(["own", "kept1"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["commit", "discard", "reopen"])),
    st.tuples(st.just("prefetch"), st.sampled_from(["own", "kept1"]), st.lists(st.integers(0, 5), max_size=4)),
)


@given(st.lists(STEPS, max_size=14))
@settings(max_examples=25, deadline=None)
def test_a_disk_is_a_memory_that_lasts(steps: list[tuple[Any, ...]]) -> None:
    """Any order of puts, deletions, commits, rejections, kills and reading ahead: the disk holds what a plain memory
    would.
    """
    with tempfile.TemporaryDirectory() as folder:
        memory, disk = MemoryStore(), DiskStore(Path(folder), cache_bytes=64)
        for n, (name, *rest) in enumerate(steps):
            if name in ("put", "delete"):
                for store in (memory, disk):
                    store.put(rest[0], rest[1], record(rest[2]) if name == "put" else None)
            elif name == "prefetch":
                disk.prefetch(rest[0], rest[1])
                if n % 2:  # its turn comes with the next call, which may wait for nothing
                    disk.prefetch("own", [])
            elif name == "commit":
                memory.commit({"round": n}, [n])
                disk.commit({"round": n}, [n])
            else:
                memory.discard()
                disk.discard()
                if name == "reopen":
                    disk.close()
                    disk = DiskStore(Path(folder))
            if name == "prefetch":  # or everything would be in the cache
                continue
            for table in ("own", "kept1"):
                assert disk.ids(table) == memory.ids(table)
                assert all(gap(disk.get(table, i), memory.get(table, i)) == 0.0 for i in range(4))
            assert disk.meta.get("round") == memory.meta.get("round")
        assert list(disk.logs()) == memory.logs
        disk.close()


def test_what_was_put_and_not_committed_dies_with_the_process(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put("own", 0, record(1))
        store.commit({"round": 1}, [{"r": 0}])
        store.put("own", 0, record(2))
        store.put("own", 1, record(2))
    with opened(tmp_path) as store:
        assert store.meta["round"] == 1
        assert store.ids("own") == [0]
        assert gap(store.get("own", 0), record(1)) == 0.0
        assert list(store.logs()) == [{"r": 0}]


def test_logs_are_appended(tmp_path: Path) -> None:
    for r in range(3):
        with opened(tmp_path) as store:
            store.commit({"round": r}, [{"round": r, "k": k} for k in range(r)])
    with opened(tmp_path) as store:
        assert list(store.logs()) == [{"round": 1, "k": 0}, {"round": 2, "k": 0}, {"round": 2, "k": 1}]


def test_the_cache_forgets_and_the_disk_does_not(tmp_path: Path) -> None:
    with opened(tmp_path, cache_bytes=100) as store:
        for i in range(20):
            store.put("own", i, record(i))
        store.commit({}, [])
        assert [gap(store.get("own", i), record(i)) for i in range(20)] == [0.0] * 20


def test_what_is_read_ahead_is_what_is_committed_last(tmp_path: Path) -> None:
    """Reading ahead begins before the commit that changes a record; nothing of it may come back afterwards."""
    with opened(tmp_path) as store:
        for i in range(4):
            store.put("own", i, record(i))
        store.commit({}, [])
    with opened(tmp_path) as store:
        store.prefetch("own", range(6))
        store.put("own", 1, record(70))
        store.put("own", 2, None)
        store.commit({}, [])
        store.put("own", 3, record(80))
        store.prefetch("own", [])
        found = [store.get("own", i) for i in range(5)]
        wanted = [record(0), record(70), None, record(80), None]
        assert [gap(f, w) for f, w in zip(found, wanted, strict=True)] == [0.0] * 5
        store.discard()
        assert gap(store.get("own", 3), record(3)) == 0.0


@pytest.mark.parametrize("then", ["prefetch", "commit"])
def test_damage_that_reading_ahead_meets_is_told(tmp_path: Path, then: str) -> None:
    flip(committed(tmp_path), 1007.0)
    with opened(tmp_path) as store:
        store.prefetch("own", [6, 7])
        with pytest.raises(InputError, match="damaged: the checksum of record own/000000000007 is wrong"):
            store.prefetch("own", []) if then == "prefetch" else store.commit({}, [])


@pytest.mark.parametrize("commit", [False, True])
def test_reading_ahead_is_used(tmp_path: Path, commit: bool) -> None:
    """The file is damaged after that: what was read ahead is whole, what was not is refused. A commit in between, as
    there is one at the end of a round, changes nothing.
    """
    file = committed(tmp_path)
    with opened(tmp_path) as store:
        store.prefetch("own", [7])
        if commit:
            store.put("own", 3, record(5))
            store.commit({}, [])
        store.prefetch("own", [])
        for value in (1007.0, 1008.0):
            flip(file, value)
        assert gap(store.get("own", 7), record(1007, 200)) == 0.0
        with pytest.raises(InputError, match="damaged"):
            store.get("own", 8)


def test_the_cache_holds_no_more_than_it_counts(tmp_path: Path) -> None:
    """A row of a large stack does not keep the stack in memory."""
    stack = torch.zeros(1000, 50)
    with opened(tmp_path) as store:
        store.put("own", 3, {"w": stack[3]})
        store.commit({}, [])
        kept = store.get("own", 3)
        assert kept is not None
        assert kept["w"].untyped_storage().nbytes() == 200


def test_it_grows_beyond_its_first_map(tmp_path: Path) -> None:
    """80 MB in one commit, and as much again in the next; the first map has 64 MiB."""
    for half in range(2):
        with opened(tmp_path) as store:
            for i in range(4):
                store.put("own", 4 * half + i, record(half + i, 2_500_000))
            store.commit({"half": half}, [])
    with opened(tmp_path) as store:
        assert store.meta["half"] == 1
        for i in range(8):
            got = store.get("own", i)
            assert got is not None
            assert got["params"]["w"].shape == (2_500_000,)
            assert float(got["params"]["w"].sum()) == 2_500_000 * (i // 4 + i % 4)


def committed(path: Path) -> Path:
    """A store with some records; its file."""
    with opened(path) as store:
        for i in range(40):
            store.put("own", i, record(1000 + i, 200))
        store.commit({"round": 1}, ["first"])
    return path / "data.mdb"


def flip(file: Path, value: float) -> None:
    """Damages the record that holds this value."""
    data = bytearray(file.read_bytes())
    wanted = torch.full((200,), value, dtype=torch.float64).numpy().tobytes()
    assert wanted in data
    place = data.find(wanted)
    with file.open("r+b") as disk:
        while place >= 0:  # a page that was split leaves an old copy behind
            disk.seek(place + 777)
            disk.write(bytes([data[place + 777] ^ 1]))
            place = data.find(wanted, place + 1)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    flip(committed(tmp_path), 1007.0)
    with opened(tmp_path) as store:
        assert gap(store.get("own", 6), record(1006, 200)) == 0.0
        with pytest.raises(InputError, match="damaged: the checksum of record own/000000000007 is wrong"):
            store.get("own", 7)


def test_a_large_store_is_checked_record_by_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(committed(tmp_path), 1007.0)
    with opened(tmp_path) as store:
        with pytest.raises(InputError, match="checksum of record own/000000000007"):
            store.verify()
        monkeypatch.setattr("tierfed.store._VERIFIED_BYTES", 4096)
        store.verify()
        with pytest.raises(InputError, match="checksum of record own/000000000007"):
            store.get("own", 7)


def test_flipped_meta_is_found_on_opening(tmp_path: Path) -> None:
    file = committed(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data.replace(b'{"round": 1', b'{"round": 2'))
    with pytest.raises(InputError, match="checksum of record meta"):
        DiskStore(tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    """In a process of its own: reading past the end of a mapped file would be a bus error."""
    file = committed(tmp_path)
    os.truncate(file, int(keep * file.stat().st_size) if keep else 100)
    done = in_child(f"from tierfed.store import DiskStore\nDiskStore(Path({str(tmp_path)!r}))")
    assert done.returncode == 1, done.stderr
    assert "InputError" in done.stderr
    assert "is damaged" in done.stderr


def test_another_file_by_that_name_is_refused(tmp_path: Path) -> None:
    content = b"x" * 100_000
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        DiskStore(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == content


def test_one_run_has_one_process(tmp_path: Path) -> None:
    """The second store is refused, in this process or in another; after the first was closed it opens."""
    with opened(tmp_path) as store:
        store.commit({"round": 4}, [])
        with pytest.raises(InputError, match="another process is at work"):
            DiskStore(tmp_path)
        done = in_child(f"from tierfed.store import DiskStore\nDiskStore(Path({str(tmp_path)!r}))")
        assert "another process is at work" in done.stderr
    with opened(tmp_path) as store:
        assert store.meta["round"] == 4


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("mine")
    with pytest.raises(InputError, match="cannot write to"):
        DiskStore(tmp_path / "state")


HEAD = f"import sys\nsys.path[:0] = {sys.path!r}\nfrom pathlib import Path\n"


def in_child(code: str) -> "subprocess.CompletedProcess[str]":
    """Python code in a process of its own, with the import paths of this one."""
    with zygote.start("-c", HEAD + code, cwd=Path.cwd(), env=os.environ) as child:
        out, err = child.communicate(timeout=250)
    return subprocess.CompletedProcess(code, child.wait(), out, err)


def test_a_full_disk_keeps_the_last_commit(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    file = committed(tmp_path)
    done = in_child(f"""
import resource
import torch
from tierfed.errors import InputError
from tierfed.store import DiskStore
store = DiskStore(Path({str(tmp_path)!r}))
limit = {file.stat().st_size + 100_000}
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
store.put("own", 0, {{"w": torch.zeros(1_000_000)}})
store.put("own", 1, {{"w": torch.zeros(3)}})
try:
    store.commit({{"round": 2}}, ["second"])
except InputError as err:
    print(err)
    sys.exit(3)
""")
    assert done.returncode == 3, done.stderr
    assert "cannot write to" in done.stdout
    assert "MiB are free" in done.stdout
    with opened(tmp_path) as store:
        assert store.meta["round"] == 1
        assert list(store.logs()) == ["first"]
        assert [gap(store.get("own", i), record(1000 + i, 200)) for i in range(40)] == [0.0] * 40


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A process that commits as fast as it can is killed: meta, log and every record are of one and the same round."""
    code = f"""
import torch
from tierfed.store import DiskStore
store = DiskStore(Path({str(tmp_path)!r}))
r = int(store.meta.get("round", 0))
while True:
    r += 1
    for i in range(20):
        store.put("own", i, {{"r": torch.full((500,), r)}})
    store.commit({{"round": r}}, [r])
    print(r, flush=True)
"""
    with zygote.start("-c", HEAD + code, cwd=tmp_path, env=os.environ) as child:
        for line in child.stdout:
            if int(line) >= 15:
                break
        child.send_signal(signal.SIGKILL)
    with opened(tmp_path) as store:
        r = store.meta["round"]
        assert r >= 15
        assert list(store.logs()) == list(range(1, r + 1))
        records = [store.get("own", i) for i in range(20)]
        assert [None if t is None else t["r"].unique().tolist() for t in records] == [[r]] * 20

"""The server of the live view: whom it answers, what it finds, what it cannot be made to read; no browser needed."""

import http.client
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from cli.shell import begin, wait_for
from tierfed.errors import InputError
from tierfed.ui import folders
from tierfed.ui.folders import Listing, entries, entry, version
from tierfed.ui.nodes import health
from tierfed.ui.server import listen
from unit.test_report import write_grid, write_run

Serve = Callable[[Path], str]


class Answer:
    """One request to the end: status, headers, body."""

    def __init__(self, address: str, path: str, method: str = "GET", host: str | None = None) -> None:
        link = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        link.request(method, path, headers={} if host is None else {"Host": host})
        got = link.getresponse()
        self.status, self.headers, self.body = got.status, got.headers, got.read()
        link.close()

    @property
    def value(self) -> object:
        return json.loads(self.body)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run, a grid and a folder that is neither, beside something that is nobody's business."""
    root = tmp_path / "runs"
    write_run(root / "mine")
    write_grid(root / "grids" / "first", seeds=1)
    (root / "notes").mkdir()
    write_run(tmp_path / "secret")
    return root


GRID = ["grids/first", *(f"grids/first/{a}-s0" for a in ("ditto", "fedavg", "jobfed", "local"))]


class TestFolders:
    def test_what_is_found(self, runs: Path) -> None:
        found = entries(runs)
        assert list(found) == [*GRID, "mine"]
        assert [e.grid for e in found.values()] == [True] + [False] * 5
        assert list(entries(runs / "mine")) == ["."]
        assert entry(runs / "mine", ".").path == (runs / "mine").resolve()

    @pytest.mark.parametrize(
        "name", ["../secret", "mine/../../secret", "/etc", "mine/", "./mine", "notes", "", "a\\b", "m\0", "link"]
    )
    def test_what_cannot_be_had(self, runs: Path, name: str) -> None:
        (runs / "link").symlink_to(runs.parent / "secret")
        with pytest.raises(InputError, match="no run"):
            entry(runs, name)

    def test_the_nearest_name_is_told(self, runs: Path) -> None:
        with pytest.raises(InputError, match="did you mean 'mine'"):
            entry(runs, "mind")

    def test_links_are_not_followed(self, runs: Path) -> None:
        (runs / "link").symlink_to(runs.parent / "secret")
        assert "link" not in entries(runs)

    def test_a_version_changes_with_any_file_of_a_run(self, runs: Path) -> None:
        for name, file in (("mine", "mine/events.jsonl"), ("grids/first", "grids/first/ditto-s0/metrics.parquet")):
            found = entry(runs, name)
            before = version(found)
            assert version(found) == before
            os.utime(runs / file, ns=(1, 1))
            assert version(found) != before

    def test_a_line_for_each_run(self, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (runs / "mine" / "metrics.parquet").write_bytes(b"half of it")
        (runs / "new" / "state").mkdir(parents=True)
        (runs / "new" / "config.toml").write_text('[run]\nseed = 4\nrounds = 9\n[algorithm]\nname = "ditto"\n')
        listing = Listing(runs)
        rows = {r["name"]: r for r in listing.rows()}
        assert rows["mine"]["state"].startswith("cannot be read: ")
        new = rows["new"]
        assert (new["algorithm"], new["seed"], new["rounds"], new["state"]) == ("ditto", 4, 9, "no numbers yet")
        done = rows["grids/first/ditto-s0"]
        assert (done["round"], done["rounds"], done["state"]) == (4, 4, "all rounds done")
        assert done["scores"]["personal_post"].endswith(" %")
        # nothing has changed: nothing is read again
        monkeypatch.setattr(folders, "_about", None)
        assert {r["name"]: r for r in listing.rows()} == rows


class TestHealth:
    def status(self, folder: Path, node: str, at: float, **more: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        said = {"node": node, "pid": 1, "at": at, "round": 3, "joined": True, "children": [2, 3], "busy_seconds": 0.0}
        (folder / "status.json").write_text(json.dumps({**said, **more}))

    def test_by_hand(self, runs: Path) -> None:
        run, nodes = runs / "mine", runs / "mine.nodes"
        assert health(run, [runs]) == []
        self.status(run, "cloud", 100.0)
        self.status(nodes / "a", "fog-0", 100.0, joined=False)
        self.status(nodes / "b", "d1", 80.0, children=[0, 0])
        self.status(nodes / "c", "d2", 10.0, over=True)
        (nodes / "d").mkdir()
        (nodes / "d" / "status.json").write_text("half of")
        got = [(n["node"], n["state"], n["children"], n["seen_seconds"]) for n in health(run, [runs], now=101.0)]
        assert got == [
            ("cloud", "at work", "2 of 3", 1.0),
            ("fog-0", "not connected", "2 of 3", 1.0),
            ("d1", "silent", "", 21.0),
            ("d2", "over", "2 of 3", 91.0),
        ]

    def test_nothing_outside_is_read(self, runs: Path) -> None:
        self.status(runs.parent / "elsewhere", "cloud", 100.0)
        (runs / "mine.nodes").symlink_to(runs.parent)
        assert health(runs / "mine", [runs]) == []


class TestServer:
    def test_list_and_run(self, runs: Path, serve: Serve) -> None:
        address = serve(runs)
        listed = Answer(address, "/api/runs").value
        assert sorted(r["name"] for r in listed) == [*GRID, "mine"]
        page = Answer(address, "/api/run/mine").value
        assert page["title"] == "jobfed on digits"
        titles = [s["title"] for s in page["sections"]]
        assert {"Learning", "Devices", "The tree", "Faults", "Cost"} <= set(titles)
        grid = Answer(address, "/api/run/grids/first").value
        assert [s["title"] for s in grid["sections"]][:2] == ["Comparison", "Paired tests"]

    def test_a_run_without_numbers_has_a_page(self, runs: Path, serve: Serve) -> None:
        address = serve(runs)
        (runs / "mine" / "metrics.parquet").write_bytes(b"half of it")
        assert "metrics.parquet cannot be read" in Answer(address, "/api/run/mine").value["problem"]
        (runs / "mine" / "metrics.parquet").unlink()
        (runs / "mine" / "state").mkdir()
        page = Answer(address, "/api/run/mine").value
        assert page["problem"].startswith("No numbers yet: ")
        assert page["sections"] == []

    def test_whom_it_answers(self, runs: Path, serve: Serve) -> None:
        address = serve(runs)
        port = urlsplit(address).port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
            assert Answer(address, "/", host=host).status == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
            for path in ("/", "/api/runs", "/events", "/plotly.js"):
                assert Answer(address, path, host=host).status == 400

    def test_what_it_does_not_do(self, runs: Path, serve: Serve) -> None:
        address = serve(runs)
        before = {p: p.stat().st_mtime_ns for p in runs.rglob("*")}
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            for path in ("/", "/api/runs", "/api/run/mine", "/events/mine"):
                assert Answer(address, path, method).status == 405
        for path in ("/api/run/../secret", "/api/run/" + quote("../secret", safe=""), "/api/run/%2fetc", "/events/no"):
            answer = Answer(address, path)
            assert answer.status == 404
            assert b"secret-" not in answer.body
        for path in ("/etc/passwd", "/mine/config.toml", "/../secret/config.toml", "/static/x"):
            assert Answer(address, path).status == 404
        assert {p: p.stat().st_mtime_ns for p in runs.rglob("*")} == before

    def test_every_answer_keeps_others_out(self, runs: Path, serve: Serve) -> None:
        address = serve(runs)
        for path, host in (("/", None), ("/api/runs", None), ("/page.js", None), ("/no", None), ("/", "evil.example")):
            headers = Answer(address, path, host=host).headers
            assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "Access-Control-Allow-Origin" not in headers

    def test_events(self, runs: Path, serve: Serve) -> None:
        """One at the beginning, one when a file has changed, one when a run has appeared."""
        address = serve(runs)
        for path, change in (("/events/mine", "mine/events.jsonl"), ("/events", "new")):
            link = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
            link.request("GET", path)
            got = link.getresponse()
            assert got.headers["Content-Type"].startswith("text/event-stream")
            assert got.readline() == b"event: change\n"
            assert got.readline() == b"data: 1\n"
            if change == "new":
                write_run(runs / "new", devices=2, rounds=1)
            else:
                os.utime(runs / change, ns=(1, 1))
            assert got.readline() == b"\n"
            assert got.readline() == b"event: change\n"
            link.close()

    def test_places_where_nobody_can_listen(self, runs: Path) -> None:
        first = listen(runs)
        port = first.sock.getsockname()[1]
        try:
            with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1 port {port}"):
                listen(runs, port=port)
        finally:
            first.sock.close()
        with pytest.raises(InputError, match=r"is no folder.*; give its path"):
            listen(runs / "zzz")
        with pytest.raises(InputError, match=r"did you mean '.*/runs'"):
            listen(runs.with_name("rnus"))
        with pytest.raises(InputError, match="nodes keep their states"):
            listen(runs, nodes=[runs / "zzz"])


class TestCommand:
    def test_it_serves_until_it_is_told_to_end(self, runs: Path) -> None:
        child = begin(runs, "ui", ".", "--port", "0")
        try:
            wait_for(child, "live view of .: http://127.0.0.1:")
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=250)
        finally:
            child.close()
        assert (child.returncode, err) == (0, "")

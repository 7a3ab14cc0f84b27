"""Downloads from a server on this machine, and the data directory."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tierfed.data import DataSettings, open_source, sources
from tierfed.data.download import Remote, fetch, resolve
from tierfed.errors import InputError

CONTENT = bytes(range(256)) * 4000


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def remote(*urls, md5=None):
    return Remote(name="a.bin", urls=urls, md5=md5 or hashlib.md5(CONTENT, usedforsecurity=False).hexdigest())


def test_a_file_arrives_whole_and_only_once(server, tmp_path):
    folder = fetch((remote(server + "a.bin"),), tmp_path / "new" / "folder")
    assert (folder / "a.bin").read_bytes() == CONTENT
    assert [p.name for p in folder.iterdir()] == ["a.bin"]
    (tmp_path / "served" / "a.bin").unlink()
    assert fetch((remote(server + "a.bin"),), folder) == folder


def test_the_second_address_is_asked_where_the_first_has_nothing(server, tmp_path):
    folder = fetch((remote(server + "gone.bin", server + "a.bin"),), tmp_path / "new")
    assert (folder / "a.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(InputError, match=r"a.bin: the checksum of what came is \w{32}, it should be 00; nothing was"):
        fetch((remote(server + "a.bin", md5="00"),), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_nobody_answers(server, tmp_path):
    with pytest.raises(InputError, match=r"cannot download http.*gone.*without a network put these files there: a.bin"):
        fetch((remote(server + "gone.bin"),), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_built_in_set_is_downloaded_into_the_data_directory(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.REMOTES, "cifar10", (remote(server + "a.bin"),))
    # What comes is no archive, but it is there.
    with pytest.raises(InputError, match=r"a.bin is no archive that can be read"):
        open_source(DataSettings(source="cifar10", dir=str(tmp_path / "data")))
    assert (tmp_path / "data" / "cifar10" / "a.bin").read_bytes() == CONTENT


def test_a_set_that_nobody_may_hand_out(tmp_path):
    with pytest.raises(InputError, match=r"uci_har is not here .* put uci_har.npz or the official folder into"):
        open_source(DataSettings(source="uci_har", dir=str(tmp_path)))
    with pytest.raises(InputError, match=r"cifar10_subset is not here .* put cifar10_subset.npz into"):
        open_source(DataSettings(source="cifar10_subset", dir=str(tmp_path)))


def test_data_directory(monkeypatch):
    monkeypatch.setenv("TIERFED_DATA", "/env")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert resolve("/told") == Path("/told")
    assert resolve(None) == Path("/env")
    monkeypatch.delenv("TIERFED_DATA")
    assert resolve(None) == Path("/cache/tierfed")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert resolve(None) == Path.home() / ".cache" / "tierfed"


def test_the_list_of_sets(tmp_path):
    assert list(sources.DATASETS) == [
        *("watch", "uci_har", "mobiact", "mnist", "fashion_mnist", "cifar10", "cifar100", "emnist", "cifar10_subset"),
    ]
    assert all(source.name == name for name, source in sources.DATASETS.items())
    assert all(source.about and source.devices and source.license for source in sources.DATASETS.values())
    here = {name for name, source in sources.DATASETS.items() if source.available(str(tmp_path))}
    assert here - {"fashion_mnist"} == {"watch"}


def test_published_files_are_on_https_and_have_checksums():
    for files in sources.REMOTES.values():
        for file in files:
            assert all(url.startswith("https://") for url in file.urls)
            assert len(bytes.fromhex(file.md5)) == 16

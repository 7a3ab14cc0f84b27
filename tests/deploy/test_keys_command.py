"""`tierfed keys`, as it is typed."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.shell import DEVICES, Shell, environment, toy_arrays, wait_for
from deploy.pki import parent
from tierfed.deploy.identity import load_credentials
from zygote import start


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.fixture
def ca(shell: Shell) -> Shell:
    """A shell where `tierfed keys init` was typed."""
    assert "keep keys/ca.key to yourself" in shell.good("keys", "init")
    return shell


def told(shell: Shell, *arguments: str) -> Any:
    """What a command says to programs."""
    return json.loads(shell.good("keys", *arguments, "--json"))


def test_a_tree_of_a_config(ca: Shell) -> None:
    """Eight devices in two natural teams by parity; every one can join its fog and no other."""
    rows = told(ca, "issue", "--config", "toy.toml")
    names = [str(i) for i in range(DEVICES)]
    assert [row["name"] for row in rows] == ["cloud", "fog-0", "fog-1", *names]
    assert {row["name"]: row["parent"] for row in rows[3:]} == {name: f"fog-{int(name) % 2}" for name in names}
    assert [row["folder"] for row in rows[:2]] == ["keys/nodes/cloud", "keys/nodes/fog-0"]
    with parent(load_credentials(Path("keys/nodes/fog-1"))) as fog:
        child = load_credentials(Path("keys/nodes/5"))
        assert fog.join(child, claimed="5") == "device '5' joins"
    again = told(ca, "issue", "--config", "toy.toml")
    assert not {row["serial"] for row in rows} & {row["serial"] for row in again}
    assert len(told(ca, "list")) == len(rows)
    assert len(told(ca, "list", "--all")) == 2 * len(rows)


def test_roaming_devices_of_a_config(ca: Shell) -> None:
    formed = ("issue", "--config", "toy.toml", "--set", "topology.teams=ifca", "--set", "topology.fogs=2")
    assert "let devices join any fog (--roaming)" in ca.bad("keys", *formed)
    rows = told(ca, *formed, "--roaming")
    assert [row["parent"] for row in rows] == ["", "cloud", "cloud", *["any"] * DEVICES]


def test_an_algorithm_that_moves_devices_needs_roaming(ca: Shell) -> None:
    jobfed = ("issue", "--config", "toy.toml", "--set", "algorithm.name=jobfed", "--set", "topology.fogs=2")
    assert "let them stay (algorithm.recluster_every = 0)" in ca.bad("keys", *jobfed)
    assert "let them stay" in ca.bad("keys", *jobfed, "--set", "deploy.roaming=true")
    assert len(told(ca, *jobfed, "--set", "algorithm.recluster_every=0")) == 3 + DEVICES


def test_devices_whose_data_nobody_else_has(ca: Shell) -> None:
    config = """
data = { source = "csv", path = "{name}.csv" }
algorithm = { name = "fedavg" }
deploy = { devices = { fog-0 = ["ann", "bob"], fog-1 = ["eve"] }, shape = [2], classes = 2 }
"""
    (ca.folder / "own.toml").write_text(config, "utf-8")
    assert "deploy it (`tierfed up`" in ca.bad("show", "own.toml")
    rows = told(ca, "issue", "--config", "own.toml")
    assert {row["name"]: row["parent"] for row in rows if row["tier"] == "device"} == {
        "ann": "fog-0",
        "bob": "fog-0",
        "eve": "fog-1",
    }


def test_one_node_after_the_other(ca: Shell) -> None:
    assert "fog-0" in ca.good("keys", "issue", "fog-0", "--host", "fog.example.org")
    assert "wanted a host name" in ca.bad("keys", "issue", "fog-0", "--host", "http://fog")
    assert "device 'ann' is new: say which node it may join" in ca.bad("keys", "issue", "ann")
    first = told(ca, "issue", "ann", "--parent", "fog-0", "--days", "30")[0]
    renewed = told(ca, "issue", "ann")[0]  # where it belongs is known by now
    assert (renewed["tier"], renewed["parent"]) == ("device", "fog-0")
    assert renewed["until"] > first["until"]
    assert "the name 'ann' is taken: a device of 'fog-0'" in ca.bad("keys", "issue", "ann", "--parent", "fog-1")
    said = ca.good("keys", "revoke", "ann")
    assert "ann: 2 certificates revoked" in said
    assert "copy keys/crl.pem" in said
    assert "ann: none was valid" in ca.good("keys", "revoke", "ann")
    assert [(row["name"], row["status"]) for row in told(ca, "list")] == [("fog-0", "valid"), ("ann", "revoked")]
    table = ca.good("keys", "list", "--all")
    assert table.count("ann") == 2
    assert renewed["serial"] in table


def test_moved_to_another_fog(ca: Shell) -> None:
    ca.good("keys", "issue", "ann", "--parent", "fog-0")
    assert told(ca, "revoke", "ann")["revoked"][0]["name"] == "ann"
    assert told(ca, "issue", "ann", "--parent", "fog-1")[0]["parent"] == "fog-1"
    assert told(ca, "issue", "bob", "--roaming")[0]["parent"] == "any"


def test_bad_input(ca: Shell) -> None:
    assert "keys exists and is not empty" in ca.bad("keys", "init")
    assert "no node 'ann' was issued" in ca.bad("keys", "revoke", "ann")
    ca.good("keys", "issue", "fog-0")
    assert "did you mean 'fog-0'?" in ca.bad("keys", "revoke", "fog0")
    assert "wants the NAME of one node, or --config" in ca.bad("keys", "issue")
    assert "wants the NAME of one node, or --config" in ca.bad("keys", "issue", "ann", "--config", "toy.toml")
    assert "leave them out" in ca.bad("keys", "issue", "--config", "toy.toml", "--parent", "fog-0")
    assert "give one of them" in ca.bad("keys", "issue", "ann", "--parent", "fog-0", "--roaming")
    assert "there is no tier 'edge'" in ca.bad("keys", "issue", "ann", "--tier", "edge", "--parent", "fog-0")
    assert "wanted 1 to 3650" in ca.bad("keys", "issue", "fog-0", "--days", "0")
    assert "`tierfed keys init` makes one" in ca.bad("keys", "list", "--keys", "no")
    assert "this is no token" in ca.bad("keys", "enroll", "tierfed1.a.b.c", "--address", "a:1", "--out", "ann")
    assert "wanted HOST:PORT" in ca.bad("keys", "serve", "--bind", "7071")


def test_a_device_called_as_a_fog(ca: Shell) -> None:
    arrays = toy_arrays()
    names = np.array(["fog-1", *(f"d{i}" for i in range(1, DEVICES))])
    np.savez("toy.npz", **{**arrays, "device": names[arrays["device"]]})
    assert "'fog-1' is the name of a fog and of a device" in ca.bad("keys", "issue", "--config", "toy.toml")


def test_enrollment(ca: Shell) -> None:
    """A real process serves the CA until Ctrl-C; the token comes in a file, as it would on another machine."""
    ca.good("keys", "issue", "fog-0")
    Path("token").write_text(ca.good("keys", "token", "dan", "--parent", "fog-0", "--hours", "1"))
    assert told(ca, "token", "eve", "--roaming")["parent"] == "*"
    child = start("-m", "tierfed", "keys", "serve", "--bind", "127.0.0.1:0", cwd=ca.folder, env=environment())
    try:
        address = wait_for(child, "waiting for nodes").split(" at ")[1].split(";")[0]
        enrolled = told(ca, "enroll", "token", "--address", address, "--out", "dan")[0]
        assert (enrolled["name"], enrolled["parent"], enrolled["folder"]) == ("dan", "fog-0", "dan")
        assert "was used before" in ca("keys", "enroll", "token", "--address", address, "--out", "dan2").err
        child.send_signal(signal.SIGINT)
        said, errors = child.communicate(timeout=250)
    finally:
        child.close()
        child.wait()
    assert child.returncode == 130, errors
    assert "enrolled device 'dan'" in said
    assert "refused ipv4:127.0.0.1" in said
    assert "Traceback" not in errors
    with parent(load_credentials(Path("keys/nodes/fog-0"))) as fog:
        assert fog.join(load_credentials(Path("dan"))) == "device 'dan' joins"
    assert [row["name"] for row in told(ca, "list")] == ["fog-0", "dan"]

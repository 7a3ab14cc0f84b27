"""The commands of nodes: bad input, health, and all nodes of a run as processes that one command begins."""

import json
import os
import signal
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cli.shell import Shell
from deploy.drills import SECONDS
from deploy.harness import config, distance, simulated
from deploy.processes import CONFIG, RUN, Process, Run, free_ports
from tierfed.config import to_toml
from tierfed.deploy.status import FILE, Status, read, trouble, write
from tierfed.errors import InputError


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cloud", "toy.toml"), "keys/nodes/cloud/node.pem"),
        (("cloud", "toy.toml", "--insecure", "--listen", "0.0.0.0:7400"), "--insecure works between processes of one"),
        (("fog", "toy.toml", "--name", "fog-7", "--insecure"), "no fog is called 'fog-7'"),
        (("fog", "toy.toml", "--name", "fog-0", "--insecure", "--parent", "cloud.example:1"), "--insecure works"),
        (("device", "toy.toml", "--name", "nobody", "--insecure"), "no device is called 'nobody'"),
        (("device", "toy.toml", "--name", "0", "--insecure", "--data", "mine.csv"), "--data is for devices with files"),
        (("cloud", "toy.toml", "--insecure", "--set", "algorithm.name=ppt"), "passes sums from device to device"),
        (("cloud", "toy.toml", "--insecure", "--set", "topology.teams=ifca"), "works in simulation alone"),
        (("up", "toy.toml", "--set", "deploy.host=10.0.0.1"), "works between processes of one machine"),
        (("health", "toy.toml", "--name", "fog-0"), "has left no"),
    ],
)
def test_bad_input(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    assert message in shell.bad(*arguments)


def test_health(tmp_path: Path, shell: Shell) -> None:
    status = Status(
        node="fog-0", pid=os.getpid(), at=time.time(), round=3, joined=True, children=(4, 4), busy_seconds=0.0
    )
    folder = tmp_path / "r.nodes" / "fog-0"
    folder.mkdir(parents=True)
    write(folder, status)
    found = json.loads(shell.good("health", "toy.toml", "--name", "fog-0", "--out", "r", "--json"))
    assert (found["round"], found["trouble"]) == (3, "")
    assert 0 <= found["age_seconds"] < SECONDS
    assert "at" not in found
    assert str(status.at)[:8] not in shell.good("health", "toy.toml", "--name", "fog-0", "--out", "r")
    write(folder, replace(status, at=status.at - 100))
    silent = shell("health", "toy.toml", "--name", "fog-0", "--out", "r")
    assert (silent.code, "it is not at work" in silent.out) == (1, True)
    assert json.loads(shell("health", "toy.toml", "--name", "fog-0", "--out", "r", "--json").out)["age_seconds"] >= 100
    assert trouble(status, status.at + 60).startswith("it is not at work")
    write(folder, replace(status, joined=False))
    assert shell("health", "toy.toml", "--name", "fog-0", "--out", "r").code == 1
    assert "did you mean 'fog-0'?" in shell.bad("health", "toy.toml", "--name", "fogg-0", "--out", "r")
    (folder / FILE).write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        read(folder, "fog-0")


def kill_device(folder: Path) -> None:
    """kill -9 of the process of device 0, as soon as its state names the one that is at work."""
    for _ in range(200):
        with suppress(ProcessLookupError):
            os.kill(read(folder, "0").pid, signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError("no process of device 0 was there")


def test_up(tmp_path: Path) -> None:
    """Ctrl-C ends all processes; the same command goes on, and starts again whoever is killed."""
    flat = {"fogs": 0, "teams": "auto", "team_rounds": 1}
    deploy = {"devices_per_process": 0, "port": free_ports(1)}
    run = {"rounds": 30, "out": RUN}
    made = config(tmp_path, {"name": "fedavg"}, topology=flat, run=run, deploy=deploy)
    (tmp_path / CONFIG).write_text(to_toml(made))
    with closing(Process(["up", CONFIG], tmp_path, os.environ)) as first:
        first.until("round 2/")
        first.signal(signal.SIGINT)
        assert first.wait() == 130
    with closing(Process(["up", CONFIG], tmp_path, os.environ)) as again:
        again.until("round ", 2)
        kill_device(tmp_path / f"{RUN}.nodes" / "0")
        assert again.wait() == 0, again.text
    tiers = {"cloud": "cloud", **{str(i): "device" for i in range(12)}}
    kept = Run(tmp_path, made, tiers).kept()
    assert distance(kept, simulated(made)[1]) < 1e-10

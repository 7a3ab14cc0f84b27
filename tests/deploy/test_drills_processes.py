"""Real processes that are killed at an exact place, hang, or have no disk left; no committed round is lost."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cli.shell import environment
from deploy.drills import SECONDS, Absent, Clock, drill, is_reply, logged, simulated, small
from deploy.harness import distance, models_of
from deploy.processes import CONFIG, RUN, Process, Run, free_ports, running
from deploy.sockets import Proxy
from deploy.test_drills_messages import FLOAT64
from tierfed.config import to_toml
from tierfed.deploy import household
from tierfed.deploy.journal import Journal
from tierfed.deploy.secure import insecure
from tierfed.store import DiskStore

ROUNDS = 6
TIERS = {"cloud": "cloud", "fog-0": "fog", "fog-1": "fog", **{str(i): "device" for i in range(4)}}
ARM = """
import os, signal
from importlib import import_module


def arm(place, at, after=False, then=None):
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    holder = import_module(module)
    for owner in owners:
        holder = getattr(holder, owner)
    real, calls = getattr(holder, name), [0]

    def armed(*arguments, **more):
        calls[0] += 1
        now = calls[0] == at
        if now and then is not None:
            then()
        elif now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        out = real(*arguments, **more)
        if now and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    setattr(holder, name, armed)


"""
COMMIT, WRITE, STAMP = "tierfed.store:DiskStore.commit", "tierfed.store:DiskStore._write", "tierfed.store:_stamped"
VISIT = "tierfed.deploy.journal:Journal.commit_visit"
ASKING, ASKED = "tierfed.deploy.household:Household.gather", "tierfed.deploy.member:Member._asked"


def before(place: str, at: int) -> str:
    """kill -9 at a call of a function."""
    return f"{ARM}arm({place!r}, {at})"


def after(place: str, at: int) -> str:
    """kill -9 when it has done its work, and has not returned."""
    return f"{ARM}arm({place!r}, {at}, after=True)"


def amid(at: int) -> str:
    """kill -9 in the middle of a transaction: records are written, and it is not committed."""
    return f"{ARM}arm({WRITE!r}, {at}, then=lambda: arm({STAMP!r}, 2))"


def full(size: int) -> str:
    """A disk with no room behind so many bytes of a file."""
    return f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


@pytest.fixture
def permfl(tmp_path: Path) -> Iterator[Run]:
    """PerMFL on 1 cloud, 2 fogs and 4 devices; devices 1 and 3 share a process."""
    made = partial(small, tmp_path, "permfl", topology={"team_rounds": 2})
    with running(tmp_path, made, TIERS, inner=3, run={"rounds": ROUNDS}) as run:
        yield run


def test_killed_at_every_place(permfl: Run) -> None:
    """Cloud, fog and device each before, in and after their commits; the cloud also finds its disk full."""
    lives: dict[str, list[str]] = {
        # round 2 before its commit; round 3 in it; round 4 after it; round 5 finds no room
        "cloud": [before(COMMIT, 3), amid(2), after(COMMIT, 2), full(8192), ""],
        # in a team round: burst 2 of round 2, after two evaluations and three bursts; between commit and report
        "fog-0": [before(ASKING, 6), after(VISIT, 1), ""],
        # trained, and nothing kept; in a commit; before the upload; after the upload, when asked for more
        "0": [before(VISIT, 1), amid(2), after(VISIT, 1), before(ASKED, 4), ""],
    }
    codes: dict[str, list[int]] = {name: [] for name in lives}
    texts: dict[str, list[str]] = {name: [] for name in lives}
    for name, planned in lives.items():
        permfl.start(name, code=planned.pop(0))
    for names in (("fog-1",), ("2",), ("1", "3")):
        permfl.start(*names)
    end = time.monotonic() + 200.0
    while any(lives.values()):
        assert time.monotonic() < end, {n: p.text for n, p in permfl.processes.items()}
        time.sleep(0.02)
        for name, planned in lives.items():
            process = permfl.of(name)
            if planned and process.child.poll() is not None:
                codes[name].append(process.wait())
                texts[name].append(process.text)
                permfl.start(name, code=planned.pop(0))
    permfl.finish()
    kill = -signal.SIGKILL
    assert codes == {"cloud": [kill, kill, kill, 2], "fog-0": [kill, kill], "0": [kill] * 4}, texts
    assert "make room" in texts["cloud"][3]
    rounds = [{k for k in range(1, ROUNDS + 1) if f"round {k}/" in text} for text in texts["cloud"]]
    assert rounds == [{1}, {2}, {3}, set()]  # round 4 is committed, though nobody was told
    store = DiskStore(permfl.folder / RUN / "state")
    try:
        assert [entry["round"] for entry in store.logs()] == list(range(ROUNDS + 1))
    finally:
        store.close()
    assert distance(permfl.kept(), simulated(permfl.config, Absent())) < FLOAT64


def test_a_device_that_is_cut_off_hangs_and_has_no_disk(  # noqa: PLR0915  one run of processes for all of it
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real process, all others in this one. The fog waits as long as it takes, but for the device that hangs."""
    clock, port = Clock(), free_ports(3)
    monkeypatch.setattr(household, "time", clock)
    deploy = {"port": port, "keepalive_seconds": 1.0, "retry_seconds": 0.5}
    wanted = small(tmp_path, "fedavg", rounds=5, deploy=deploy, topology={"team_rounds": 1}, eval={"every": 100})
    (tmp_path / CONFIG).write_text(to_toml(wanted))
    proxy, begun = Proxy(port + 1), list[Process]()

    def start(code: str = "", *more: str) -> Process:
        arguments = ["device", CONFIG, "--name", "0", "--insecure", "--parent", proxy.address, *more]
        begun.append(Process(arguments, tmp_path, environment(), code))
        return begun[-1]

    def joined(times: int) -> None:
        logged(log, "0 has joined", times=times)

    try:
        device = start()
        with drill(
            wanted,
            stops=[0, 1, 2, 3],
            network=lambda name: (insecure(wanted.deploy, f"127.0.0.1:{port}").transport, None),
            elsewhere=["0"],
        ) as one:
            one.steps.after(0)
            proxy.hold_after(300)  # bytes of its reply pass
            one.steps.go()
            assert proxy.holding.wait(SECONDS)
            device.kill()
            proxy.cut()
            logged(log, "0 is gone")
            proxy.heal()
            device = start()
            one.steps.after(1)

            device.signal(signal.SIGSTOP)
            engine, house = one.nodes["fog-0"].node.engine, one.house("fog-0")
            engine.settings = replace(engine.settings, deadline_seconds=1000.0)
            one.steps.go()
            _answered(house, 2, 1)
            clock.ahead += 1000.0
            house.wake()
            one.steps.after(2)
            engine.settings = replace(engine.settings, deadline_seconds=None)
            logged(log, "round 2 at fog-0: goes on without 0 (no")
            logged(log, "0 is gone", times=2)
            device.signal(signal.SIGCONT)
            joined(3)
            device.kill()

            device = start(full(8192))
            joined(4)
            one.steps.after(3)
            device.until("make room")
            logged(log, "round 3 at fog-0: goes on without 0 (cannot write to")
            device.kill()
            device = start()
            joined(5)
            result = one.steps.finish()
            assert device.wait() == 0
            fresh = start(full(4096), "--set", "deploy.folder='fresh'")
            assert fresh.wait() == 2
            assert "make room" in fresh.text
            kept = one.kept() | _of_device(tmp_path)
        missed = Absent(unheard=((1, 0, 2, 0), (2, 0, 2, 0)))
        assert distance(kept, simulated(wanted, missed)) < FLOAT64
        assert result.engine.round == 5
    finally:
        for process in begun:
            process.close()
        proxy.close()


def _answered(house: Any, child: int, round_: int) -> None:
    """Until a parent has the reply of a child in a round from 0."""
    end = time.monotonic() + SECONDS
    while not is_reply(house._came.get(child, b"TFD1\x02\0\0\0\0\0\0\0{}"), round_ + 1):
        assert time.monotonic() < end
        time.sleep(0.01)


def _of_device(folder: Path) -> dict[str, Any]:
    store = DiskStore(folder / f"{RUN}.nodes" / "0")
    try:
        return models_of(Journal(store))
    finally:
        store.close()

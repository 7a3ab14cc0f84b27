"""Replies and messages that come twice, late, from the past, damaged or forged; each run ends with the right model."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploy.drills import (
    DEVICES,
    SECONDS,
    Absent,
    Clock,
    Drill,
    Place,
    drill,
    is_ask,
    is_reply,
    knock,
    logged,
    simulated,
    small,
)
from deploy.harness import distance
from tierfed.deploy import household
from tierfed.deploy.frame import Header, pack, unpack
from tierfed.tree import Tree, tmap

FLOAT64 = 1e-10
LEVEL = 2  # of devices


def as_simulated(one: Drill, away: tuple[Place, ...] = (), unheard: tuple[Place, ...] = ()) -> None:
    """The run ends as the simulation with the same participants does, and every round was committed once."""
    kept = one.kept()
    models = simulated(one.config, Absent(away=away, unheard=unheard))
    assert distance(kept, models) < FLOAT64
    result = one.steps.result
    assert result is not None
    assert result.engine.round == one.config.run.rounds


def test_the_same_update_twice_and_again_in_a_later_round(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Of devices and of a fog; and what was asked once is asked again."""
    with drill(small(tmp_path, topology={"team_rounds": 2}), stops=[0]) as one:
        one.steps.after(0)
        old: dict[str, list[bytes]] = {"0": [], "fog-1": []}

        def twice(name: str) -> Callable[[bytes], list[bytes]]:
            def up(frame: bytes) -> list[bytes]:
                if is_reply(frame, 1) or is_reply(frame, 2):
                    old[name].append(frame)
                    return [frame, frame]
                return [*old[name], frame] if is_reply(frame, 3) else [frame]

            return up

        for name in old:
            one.taps[name].up = twice(name)
        questions: list[bytes] = []

        def down(frame: bytes) -> list[bytes]:
            if is_ask(frame, 1):
                questions.append(frame)
            return [frame]

        one.taps["3"].down = down
        one.steps.stops.add(2)
        one.steps.after(2)
        member = one.nodes["3"].member
        member.received(member._stream, questions[0])  # type: ignore[arg-type]
        as_simulated(one)
        assert one.house("fog-0").counters.late >= 4 + 4
        assert one.house("cloud").counters.late >= 2 + 2
    assert "refused reply of 0 for round 0" in log.text
    assert "refused reply of fog-1 for round 1" in log.text
    assert "3: the parent counts on state of the beginning, this node has" in log.text


def test_a_straggler_past_the_deadline(
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its private model has moved on all the same, and what it says later is refused by the id of the round."""
    clock = Clock()
    monkeypatch.setattr(household, "time", clock)
    with drill(small(tmp_path, topology={"team_rounds": 2}), stops=[1]) as one:
        one.steps.after(1)
        engine = one.nodes["fog-0"].node.engine
        engine.settings = replace(engine.settings, deadline_seconds=1000.0)
        held, came, late = threading.Event(), threading.Event(), list[bytes]()

        def hold(frame: bytes) -> list[bytes]:
            if is_reply(frame, 2) and not held.is_set():
                late.append(frame)
                held.set()
                return []
            return [frame]

        def pass_on(frame: bytes) -> list[bytes]:
            if is_reply(frame, 2):
                came.set()
            return [frame]

        one.taps["0"].up, one.taps["2"].up = hold, pass_on
        one.steps.stops.add(2)
        one.steps.go()
        assert held.wait(SECONDS)
        assert came.wait(SECONDS)
        _drained(one)
        clock.ahead += 1000.0
        one.house("fog-0").wake()
        one.steps.after(2)
        engine.settings = replace(engine.settings, deadline_seconds=None)
        stream = one.taps["0"].now
        assert stream is not None
        stream.send(late[0])
        as_simulated(one, unheard=((1, 0, LEVEL, 0),))
    assert "round 2 at fog-0: goes on without 0 (no answer in time)" in log.text
    assert "refused reply of 0 for round 1: nobody waits for it any more" in log.text


def _drained(one: Drill) -> None:
    """Until the network in memory has delivered what was sent before."""
    done = threading.Event()
    one.network.call(done.set)
    assert done.wait(SECONDS)


def altered(frame: bytes, change: Callable[[Header, Tree], tuple[Header, Tree]]) -> bytes:
    """A frame with other content and the right checksum."""
    header, body = unpack(frame).header, unpack(frame).tree
    return pack(*change(dict(header), dict(body)))


def _ups(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Header, Tree], tuple[Header, Tree]]:
    return lambda header, tree: (header, {**tree, "ups": tmap(change, tree["ups"])})


def _counts(header: Header, tree: Tree) -> tuple[Header, Tree]:
    return {**header, "from": [[i, version, [1e6, 1, 1]] for i, version, _ in header["from"]]}, tree


def _negative(header: Header, tree: Tree) -> tuple[Header, Tree]:
    return {**header, "from": [[i, version, [-1, 1, 1]] for i, version, _ in header["from"]]}, tree


def _for_another(header: Header, tree: Tree) -> tuple[Header, Tree]:
    said = [[2, version, counts] for _, version, counts in header["from"]]
    return {**header, "from": said}, {**tree, "ups": {"2": next(iter(tree["ups"].values()))}}


FORGERIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "NaN": (lambda f: altered(f, _ups(lambda t: t * float("nan"))), "holds NaN or infinite numbers"),
    "wrong shape": (lambda f: altered(f, _ups(lambda t: t.unsqueeze(0))), "wanted torch.float64 ["),
    "wrong dtype": (lambda f: altered(f, _ups(lambda t: t.float())), "is torch.float32"),
    "nothing in it": (lambda f: altered(f, lambda h, t: (h, {**t, "ups": {"0": {}}})), "the message has no"),
    "too much weight": (lambda f: altered(f, _counts), "it speaks for"),
    "negative weight": (lambda f: altered(f, _negative), "counts [-1, 1, 1]"),
    "in another's name": (lambda f: altered(f, _for_another), "who was not asked through it"),
    "cut off in its tensors": (lambda f: f[:-9], "it was cut off or changed on its way"),
    "one bit changed": (lambda f: f[:-1] + bytes([f[-1] ^ 1]), "it was cut off or changed on its way"),
}


def test_forged_replies_of_a_device(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """It has a certificate, and is in the wrong hands: one reply after the other is refused, as if it was lost."""
    wanted = small(tmp_path, rounds=len(FORGERIES) + 1, topology={"team_rounds": 1}, eval={"every": 100})
    forgeries = list(FORGERIES.values())
    with drill(wanted, stops=[0]) as one:
        one.steps.after(0)

        def up(frame: bytes) -> list[bytes]:
            for k, (forge, _) in enumerate(forgeries):
                if is_reply(frame, k + 1):
                    return [forge(frame)]
            return [frame]

        one.taps["0"].up = up
        as_simulated(one, unheard=tuple((k, 0, LEVEL, 0) for k in range(len(forgeries))))
        assert one.house("fog-0").counters.rejected == len(forgeries)
    lines = [r.getMessage() for r in log.records if r.getMessage().startswith("refused the reply of 0: ")]
    assert len(lines) == len(forgeries)
    for line, (name, (_, why)) in zip(lines, FORGERIES.items(), strict=True):
        assert why in line, name


def test_frames_that_are_none(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Whoever sends one is cut off; a device that is none of them comes back and takes part in every round."""
    bad = [
        b"",
        b"TFD1",
        b"GET / HTTP/1.1\r\n\r\n",
        b"TFD9" + pack({"kind": "hello"})[4:],
        b"TFD1\xff\xff\xff\xff\0\0\0\0{}",  # a header of 4 GiB
        b"TFD1\x02\0\0\0\0\0\0\0[]",
        b"TFD1" + len(b"[" * 9000).to_bytes(4, "little") + b"\0\0\0\0" + b"[" * 9000,
        pack({"kind": "reply", "id": "x"}),
    ]
    with drill(small(tmp_path, rounds=2), stops=[0, 1]) as one:
        one.steps.after(0)
        where = one.nodes["0"].member.address
        for frame in bad:
            said = knock(one.network, where, frame)
            assert [h["kind"] for h in said.heard] == ["refused"]
        done = list[bytes]()

        def cut(frame: bytes) -> list[bytes]:
            if is_reply(frame, 1) and not done:
                done.append(frame)
                return [frame[:30]]
            return [frame]

        one.taps["0"].up = cut
        one.steps.after(1)
        assert done
        as_simulated(one)
    assert log.text.count("refused a connection from memory: it sent no valid frame") == len(bad)
    assert "refused 0: it sent no valid frame" in log.text
    assert (
        "refused a connection from memory: it sent no valid frame: the header should have 4294967295 bytes" in log.text
    )


def test_who_is_let_in(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Another version, another config, other data, nobody of this tree, somebody of another fog."""
    with drill(small(tmp_path, rounds=1), stops=[0]) as one:
        one.steps.after(0)
        hello, where = one.nodes["0"].member.hello(), one.nodes["0"].member.address
        changed: list[tuple[Header, str]] = [
            ({"protocol": 2}, "it speaks protocol 2, this node 1; install one version"),
            ({"protocol": None}, "it speaks protocol None"),
            ({"config": "x"}, "0 has another config"),
            ({"samples": 17}, "0 has 17 training samples, fog-0 counts on "),
            ({"name": "7"}, "fog-0 knows no device '7'"),
            ({"name": "fog-0", "tier": "fog"}, "fog-0 knows no fog 'fog-0'"),
            ({"kind": "reply"}, "the first frame is 'reply', wanted 'hello'"),
        ]
        for change, why in changed:
            said = knock(one.network, where, pack({**hello, **change}))
            assert why in said.heard[0]["reason"]
            logged(log, "…" + why)
        other = {**hello, "name": "1", "samples": one.nodes["1"].member.hello()["samples"]}
        said = knock(one.network, where, pack(other))
        assert (said.heard[0]["parent"], said.heard[0]["final"]) == ("fog-1", False)
        assert len(one.house("fog-0").present()) == DEVICES // 2
        as_simulated(one)


def test_a_child_that_sends_too_much_is_cut_off(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """It comes back, and the round takes it along."""
    with drill(small(tmp_path, rounds=2, deploy={"messages_per_second": 10.0}), stops=[1]) as one:
        one.steps.after(1)
        flooding = one.taps["2"].now
        assert flooding is not None
        for _ in range(150):
            flooding.send(pack({"kind": "reply", "id": "x", "round": 7}))
        _drained(one)
        as_simulated(one)
    assert "refused 2: it sends more messages than messages_per_second allows" in log.text


def test_more_strangers_than_there_is_room_for(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Who says nothing is counted; the children that are there stay."""
    with drill(small(tmp_path, rounds=2), stops=[1]) as one:
        one.steps.after(1)
        where = one.nodes["0"].member.address
        silent = [Silent() for _ in range(300)]
        for stranger in silent:
            one.network.dial(where, stranger)
        _drained(one)
        _drained(one)
        refused = [s for s in silent if s.over.is_set()]
        assert len(refused) == 300 - 256
        as_simulated(one)
    assert log.text.count("refused a connection from memory: there are too many") == 300 - 256


class Silent:
    """Somebody who dials and says nothing (the protocol `Owner`)."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def opened(self, stream: object) -> None:
        """Silence."""

    def received(self, stream: object, frame: bytes) -> None:
        """Nobody listens."""

    def closed(self, stream: object, why: str) -> None:
        self.over.set()

"""A parent among its children: who is let in, what counts, what is refused; on the network in memory."""

import json
import logging
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from tierfed.deploy.frame import MAGIC, Header, pack, peek, unpack
from tierfed.deploy.household import Household, Refusal, Superseded
from tierfed.deploy.memory import Memory
from tierfed.deploy.transport import Peer, Stream
from tierfed.deployment import DeploySettings
from tierfed.errors import InputError

SOON = 10.0


class Child:
    """A child that says what a test tells it to (the protocol `Owner`)."""

    def __init__(self, network: Memory, name: str) -> None:
        self.name, self.got, self.stream = name, list[Header](), None
        self.answer: Callable[[Header], list[bytes]] = lambda asked: [reply(asked["id"])]
        self.ended = threading.Event()
        network.dial("parent", self)

    def opened(self, stream: Stream) -> None:
        self.stream = stream
        stream.send(pack({"kind": "hello", "name": self.name}))

    def received(self, stream: Stream, frame: bytes) -> None:
        header = peek(frame)
        self.got.append(header)
        if header["kind"] == "ask":
            for one in self.answer(header):
                stream.send(one)

    def closed(self, stream: Stream | None, why: str) -> None:
        self.ended.set()


def reply(ident: str, **more: object) -> bytes:
    return pack({"kind": "reply", "id": ident, "round": 1, **more})


def ask(ident: str) -> tuple[str, bytes]:
    return ident, pack({"kind": "ask", "id": ident})


def admit(peer: Peer, hello: Header) -> int | Refusal:
    name = str(hello["name"])
    return int(name) if name.isdigit() else Refusal(f"nobody knows {name}")


@pytest.fixture
def network() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.close()


def household(network: Memory, **settings: object) -> Household:
    house = Household(DeploySettings(**settings), admit, str)
    network.listen("parent", house)
    return house


def test_everybody_is_asked_and_heard(network: Memory) -> None:
    house = household(network)
    for i in range(3):
        Child(network, str(i))
    found = house.gather({i: ask(f"q{i}") for i in range(3)}, SOON)
    assert sorted(found.replies) == [0, 1, 2]
    assert found.missing == {}


def test_who_comes_late_and_who_answers_twice(network: Memory, caplog: pytest.LogCaptureFixture) -> None:
    house = household(network)
    twice, late = Child(network, "0"), Child(network, "1")
    twice.answer = lambda asked: [reply(asked["id"], n=1), reply(asked["id"], n=2)]
    late.answer = lambda asked: []
    found = house.gather({0: ask("a"), 1: ask("b")}, 0.3)
    assert (found.replies[0].header["n"], found.missing) == (1, {1: "no answer in time"})
    assert late.stream is not None
    with caplog.at_level(logging.WARNING):
        late.stream.send(reply("b"))
        late.answer = lambda asked: [reply("b"), reply(asked["id"], n=3)]
        found = house.gather({1: ask("c")}, SOON)
    assert found.replies[1].header["n"] == 3
    assert house.counters.late == 3
    assert "nobody waits for it any more" in caplog.text


def test_a_child_that_comes_back_is_asked_again(network: Memory) -> None:
    house = household(network)
    first = Child(network, "0")

    def vanish(asked: Header) -> list[bytes]:
        assert first.stream is not None
        first.stream.close()
        Child(network, "0")
        return []

    first.answer = vanish
    assert 0 in house.gather({0: ask("a")}, SOON).replies


def test_a_half_open_connection_gives_way(network: Memory) -> None:
    """The child has dialed again, the parent has not noticed that the former connection is dead."""
    house = household(network)
    dead = Child(network, "0")
    dead.answer = lambda asked: []
    Child(network, "0")
    assert dead.ended.wait(SOON)
    assert 0 in house.gather({0: ask("a")}, SOON).replies
    assert house.present() == {0}


def test_who_is_not_there(network: Memory) -> None:
    house = household(network)
    assert house.gather({7: ask("a")}, 0.05).missing == {7: "not connected"}


def test_enough_are_enough(network: Memory) -> None:
    house = household(network)
    slow = Child(network, "0")
    slow.answer = lambda asked: []
    Child(network, "1")
    found = house.gather({0: ask("a"), 1: ask("b")}, SOON, enough=1)
    assert (list(found.replies), found.missing) == ([1], {0: "no answer in time"})


def test_nobody_wants_to_know_any_more(network: Memory) -> None:
    house = household(network)
    with pytest.raises(Superseded):
        house.gather({0: ask("a")}, None, going=lambda: False)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"GET / HTTP/1.1",
        pack({"kind": "hello", "name": "0"})[:-3],
        struct.pack("<4sII", MAGIC, 10 * 2**30 % 2**32, 0),
        struct.pack("<4sII", MAGIC, 4, 0) + b"null",
        b"TFD9" + pack({"kind": "hello", "name": "0"})[4:],
        pack({"kind": "hello", "name": "mallory"}),
        pack({"kind": "reply", "id": "a"}),
        struct.pack("<4sII", MAGIC, 100_000, 0) + b"[" * 100_000,
    ],
)
def test_a_stranger_is_refused(network: Memory, frame: bytes, caplog: pytest.LogCaptureFixture) -> None:
    house = household(network)

    class Stranger(Child):
        def opened(self, stream: Stream) -> None:
            stream.send(frame)

    with caplog.at_level(logging.WARNING):
        stranger = Stranger(network, "0")
        assert stranger.ended.wait(SOON)
    assert "refused a connection" in caplog.text
    assert [h["kind"] for h in stranger.got] == ["refused"]
    assert (house.present(), house.counters.refused) == (set(), 1)


def test_a_reply_that_was_changed_is_no_reply(network: Memory) -> None:
    house = household(network)
    child = Child(network, "0")
    child.answer = lambda asked: [reply(asked["id"], n=1).replace(b'"n":1', b'"n":2')]
    found = house.gather({0: ask("a")}, SOON)
    assert "checksum" in found.missing[0]


def test_who_sends_too_much_is_cut_off(network: Memory, caplog: pytest.LogCaptureFixture) -> None:
    house = household(network, messages_per_second=2.0)
    child = Child(network, "0")
    child.answer = lambda asked: [reply("old")] * 30
    with caplog.at_level(logging.WARNING):
        house.gather({0: ask("a")}, 0.2)
        assert child.ended.wait(SOON)
    assert "messages_per_second" in caplog.text


def test_strangers_do_not_fill_the_house(network: Memory) -> None:
    house = household(network)

    class Silent(Child):
        def opened(self, stream: Stream) -> None:
            self.stream = stream

    crowd = [Silent(network, "") for _ in range(300)]
    Child(network, "0")
    assert all(s.ended.wait(SOON) for s in crowd[256:])
    assert house.counters.refused >= 44


def test_a_frame_is_what_it_was() -> None:
    header = {"kind": "x", "list": [1, 2.5, None], "text": "ü"}
    assert json.loads(json.dumps(unpack(pack(header)).header)) == header
    with pytest.raises(InputError, match="cut off"):
        unpack(pack(header)[:-1])

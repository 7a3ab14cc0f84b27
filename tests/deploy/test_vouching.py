"""A child and its parent's certificate: over real mutual TLS on loopback, and every welcome that is none."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from deploy.drills import SECONDS, logged
from deploy.pki import made_by, of
from deploy.processes import free_ports
from tierfed.deploy.admission import Gate, read_revocations
from tierfed.deploy.authority import Authority, issue, revoke
from tierfed.deploy.frame import Frame, Header, pack
from tierfed.deploy.household import Household
from tierfed.deploy.identity import CRL, load_credentials
from tierfed.deploy.member import Going, Member
from tierfed.deploy.memory import Memory
from tierfed.deploy.names import Node
from tierfed.deploy.secure import Network, secured
from tierfed.deploy.transport import Peer, Stream
from tierfed.deployment import DeploySettings

SETTINGS = DeploySettings(retry_seconds=0.3)
FOG = Node(name="fog-0", tier="fog", parent="cloud")


class Parent(NamedTuple):
    house: Household
    address: str


@contextmanager
def parent(folder: Path, name: str = "fog-0") -> Iterator[Parent]:
    """A node at work with the credentials in a folder; whoever joins is child 0."""
    network, address = secured(SETTINGS, folder, name), f"127.0.0.1:{free_ports(1)}"
    assert network.gate is not None
    house = Household(SETTINGS, lambda peer, hello: 0, lambda i: "the child", network.gate)
    listener = network.transport.listen(address, house)
    try:
        yield Parent(house, address)
    finally:
        house.close()
        listener.close()
        network.transport.close()


class Child(NamedTuple):
    member: Member
    network: Network
    asked: list[Frame]

    def goes_to(self, other: Parent) -> None:
        self.member.move("another one", other.address)


@contextmanager
def child(folder: Path, name: str, to: Parent) -> Iterator[Child]:
    """A node that dials, and answers whatever it is asked."""
    network, asked = secured(SETTINGS, folder, name), list[Frame]()

    def answer(frame: Frame, going: Going) -> bytes:
        asked.append(frame)
        return pack({"kind": "reply", "id": frame.header["id"], "round": 0})

    hello: Header = {"kind": "hello", "name": name}
    member = Member(name, network.transport, to.address, lambda: hello, answer, longest=0.3, doubting=network.gate)
    member.start()
    try:
        yield Child(member, network, asked)
    finally:
        member.close()
        network.transport.close()


def question(ident: str) -> dict[int, tuple[str, bytes]]:
    return {0: (ident, pack({"kind": "ask", "id": ident}))}


def test_a_thief_with_the_key_of_the_parent(own: Authority, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Once the device has heard of it from the parent with its new certificate, the stolen one is good for nothing."""
    shutil.copytree(own.node_folder("fog-0"), tmp_path / "stolen")
    shutil.copytree(own.node_folder("ann"), tmp_path / "ann")  # on another machine: no command renews this list
    with parent(tmp_path / "stolen") as thief, child(tmp_path / "ann", "ann", thief) as ann:
        assert list(thief.house.gather(question("before"), SECONDS).replies) == [0]  # nobody knows of the theft
        revoke(own, ["fog-0"])
        issue(own, [FOG])
        with parent(own.node_folder("fog-0")) as genuine:
            ann.goes_to(genuine)
            thief.house.close()
            assert list(genuine.house.gather(question("new"), SECONDS).replies) == [0]
            logged(log, "ann: got revocation list ")
            ann.goes_to(thief)
        logged(log, f"ann: refused the parent at {thief.address}: revoked: the certificate ", times=2)
        assert thief.house.gather(question("after"), 0.5).replies == {}
    assert [frame.header["id"] for frame in ann.asked] == ["before", "new"]
    gate = Gate(load_credentials(tmp_path / "ann"))  # the next process knows as well
    assert load_credentials(tmp_path / "stolen").identity.serial in gate.revocations().serials


def test_a_list_goes_down_to_those_who_are_connected(
    own: Authority, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """And whoever finds its parent on it leaves."""
    shutil.copytree(own.node_folder("ann"), tmp_path / "ann")
    with parent(own.node_folder("fog-0")) as fog, child(tmp_path / "ann", "ann", fog) as ann:
        assert ann.member.welcome.wait(SECONDS)
        revoke(own, ["bob"])
        fog.house.review()
        logged(log, "ann: got revocation list ")
        ca = own.folder / "ca.pem"
        assert (tmp_path / "ann" / CRL).read_bytes() == (own.folder / CRL).read_bytes()
        assert len(read_revocations(tmp_path / "ann" / CRL, ca.read_bytes()).serials) == 1
        assert fog.house.present() == {0}
        revoke(own, ["fog-0"])
        fog.house.review()
        logged(log, "ann: refused the parent at ")
        end = time.monotonic() + SECONDS
        while ann.member.joined:
            assert time.monotonic() < end
            time.sleep(0.01)


class Wire:
    """A stream to a child (the protocol `Stream`)."""

    def __init__(self) -> None:
        self.sent, self.closed = list[bytes](), False
        self.peer = Peer(address="test")

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def close(self) -> None:
        self.closed = True


def test_whoever_asks_before_a_welcome_is_left(log: pytest.LogCaptureFixture) -> None:
    asked = list[Frame]()

    def answer(frame: Frame, going: Going) -> bytes:
        asked.append(frame)
        return b""

    network, wire = Memory(), Wire()
    member = Member("ann", network, "nowhere", lambda: {"kind": "hello"}, answer)
    stream: Stream = wire
    member.opened(stream)
    member.received(stream, pack({"kind": "ask", "id": "a"}))
    network.close()
    assert wire.closed
    assert asked == []
    assert "refused the parent at nowhere: its first frame is 'ask', wanted 'welcome'" in log.text


def test_welcomes(own: Authority, other: Authority, tmp_path: Path) -> None:
    ann, rover, fog = (Gate(of(own, name)) for name in ("ann", "rover", "fog-0"))
    hello = {"name": "ann", "nonce": "n1"}
    good = fog.welcome(hello)
    assert ann.doubts(good, "n1") == ""
    assert rover.doubts(fog.welcome({"name": "rover", "nonce": "n2"}), "n2") == ""
    assert ann.doubts(good, "n2").startswith("wrong key: ")  # of another connection
    assert rover.doubts(good, "n1").startswith("wrong key: ")  # for another child
    assert ann.doubts({}, "n1").startswith("no certificate: ")
    assert ann.doubts({**good, "signature": "xyz"}, "n1").startswith("no certificate: ")
    other_end = "11" if good["signature"].endswith("00") else "00"
    assert ann.doubts({**good, "signature": good["signature"][:-2] + other_end}, "n1").startswith("wrong key: ")
    stranger = Gate(of(own, "fog-1"))
    assert ann.doubts(stranger.welcome(hello), "n1").startswith("wrong parent: device 'ann' was issued for 'fog-0'")
    cloud = Gate(of(own, "cloud"))
    assert rover.doubts(cloud.welcome({"name": "rover", "nonce": "n2"}), "n2").startswith("wrong parent: ")
    assert fog.doubts(cloud.welcome({"name": "fog-0", "nonce": "n3"}), "n3") == ""
    mixed = {**Gate(of(other, "fog-0")).welcome(hello), "list": good["list"]}
    assert ann.doubts(mixed, "n1").startswith("wrong CA: ")
    old = made_by(own, of(own, "fog-0").folder, "fog-0", days_ago=302)
    assert ann.doubts(Gate(old).welcome(hello), "n1").startswith("expired: ")
    assert ann.doubts(good, "n1") == ""


@pytest.mark.parametrize("change", ["forged", "torn", "none", "older"])
def test_lists_that_change_nothing(
    change: str, own: Authority, other: Authority, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(own.node_folder("ann"), tmp_path / "ann")
    older = Gate(of(own, "fog-0")).news()
    revoke(own, ["bob"])
    ann, newest = Gate(load_credentials(tmp_path / "ann")), Gate(of(own, "fog-0")).news()
    ann.learn(newest)
    known = ann.revocations()
    revoke(other, ["ann"]) if change == "forged" else None
    text = {
        "forged": Gate(of(other, "fog-0")).news()["list"],
        "torn": newest["list"][:-90],
        "none": None,
        "older": older["list"],
    }[change]
    ann.learn({"number": 99, "list": text})
    assert ann.revocations() == known
    assert (tmp_path / "ann" / CRL).read_bytes() == known.pem
    assert ("stays in use" in log.text) == (change != "older")


def test_a_renewed_certificate_vouches(own: Authority) -> None:
    ann, fog = Gate(of(own, "ann")), Gate(of(own, "fog-0"))
    revoke(own, ["fog-0"])
    issue(own, [FOG])
    assert fog.welcome({"name": "ann", "nonce": "n"})["certificate"] == of(own, "fog-0").certificate.decode()
    assert ann.doubts(fog.welcome({"name": "ann", "nonce": "n"}), "n") == ""
    assert replace(ann.revocations()) == fog.revocations()

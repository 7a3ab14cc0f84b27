"""A run over gRPC with mutual TLS, and who tries to get in."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.harness import config, distance, everything, simulated
from deploy.processes import free_ports
from tierfed.config import Config
from tierfed.deploy.authority import create, issue, revoke
from tierfed.deploy.grpc_transport import Grpc
from tierfed.deploy.joining import find, greeting
from tierfed.deploy.member import Member
from tierfed.deploy.names import CLOUD, ROAMING, Node, tree_nodes
from tierfed.deploy.process import Cloud, Nodes, begin_node, world_of
from tierfed.deploy.secure import Network, insecure, secured
from tierfed.errors import InputError
from tierfed.setup import World

SOON = 30.0


def made(folder: Path, **deploy: Any) -> Config:
    return config(folder, {"name": "jobfed"}, deploy={"port": free_ports(4), "roaming": True, **deploy})


def keys(folder: Path, world: World) -> Path:
    """A CA that has issued everybody; devices may roam."""
    nodes = tree_nodes(world.topology, world.federation.devices)
    named = [
        Node(name=n.name, tier=n.tier, parent=ROAMING if n.tier == "device" else n.parent, level=n.level, index=n.index)
        for n in nodes
    ]
    issue(create(folder), named)
    return folder / "nodes"


@pytest.fixture
def networks() -> Iterator[list[Network]]:
    opened: list[Network] = []
    yield opened
    for one in opened:
        one.transport.close()


def test_as_in_simulation_over_tls(tmp_path: Path, networks: list[Network]) -> None:
    """Devices move between fogs, whose names their certificates do not say."""
    wanted = made(tmp_path)
    shared, compute, nodes = world_of(wanted), threading.Lock(), Nodes()
    folder = keys(tmp_path / "keys", shared)

    def network(name: str) -> Network:
        networks.append(secured(wanted.deploy, folder / name, name))
        return networks[-1]

    try:
        by_name = {}
        for one in tree_nodes(shared.topology, shared.federation.devices)[1:]:
            world, lock = (shared, compute) if one.tier == "device" else (world_of(wanted), None)
            here = network(one.name)
            node = begin_node(world, one.name, one.tier, here.transport, gate=here.gate, memory=True, compute=lock)
            by_name[one.name] = node
            nodes.at_work.append(node)
        here = network(CLOUD)
        result = Cloud(wanted, here.transport, gate=here.gate).run(folder=False)
        kept = everything(result, by_name)
    finally:
        nodes.close()
    assert any(e["event"] == "regroup" for e in result.events)
    assert distance(kept, simulated(wanted)[1]) < 1e-10


class Fog:
    """One fog that takes devices."""

    def __init__(self, folder: Path, opened: list[Network], **deploy: Any) -> None:
        self.config = made(folder, **deploy)
        self.world, self.keys, self.opened = world_of(self.config), folder / "keys", opened
        self.nodes = keys(self.keys, self.world)
        self.here = self.network(self.nodes / "fog-0", "fog-0")
        self.at_work = begin_node(
            world_of(self.config), "fog-0", "fog", self.here.transport, gate=self.here.gate, memory=True
        )
        self.house = self.at_work.node.engine.house

    def network(self, folder: Path, name: str) -> Network:
        self.opened.append(secured(self.config.deploy, folder, name))
        return self.opened[-1]

    def member(self, transport: Grpc, name: str, tier: str = "device", **said: Any) -> Member:
        """Somebody who dials the fog and says that it is a node."""
        hello = {**greeting(self.world, find(self.world, name, tier)), **said}
        address = f"127.0.0.1:{self.config.deploy.port + 1}"
        one = Member(name, transport, address, lambda: hello, lambda frame, going: b"", longest=0.5)
        one.start()
        return one


@pytest.fixture
def fog(tmp_path: Path, networks: list[Network]) -> Iterator[Fog]:
    one = Fog(tmp_path, networks)
    yield one
    one.at_work.close()


def test_who_may_join_and_who_may_not(fog: Fog, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert fog.house is not None
    friend = fog.member(fog.network(fog.nodes / "0", "0").transport, "0")
    assert friend.welcome.wait(SOON)
    posing = fog.member(fog.network(fog.nodes / "3", "3").transport, "6")
    as_fog = fog.member(fog.opened[-1].transport, "fog-1", "fog")
    older = fog.member(fog.opened[-1].transport, "3", protocol=99)
    other = fog.member(fog.opened[-1].transport, "3", config="another")
    with caplog.at_level(logging.WARNING):
        for one, why in (
            (posing, "wrong name"),
            (as_fog, "wrong tier"),
            (older, "protocol 99"),
            (other, "another config"),
        ):
            assert one.done.wait(SOON), why
            assert why in str(one.failure)
            one.close()
    assert keys(tmp_path / "theirs", fog.world).is_dir()
    stranger = fog.member(fog.network(tmp_path / "theirs" / "nodes" / "9", "9").transport, "9")
    plain = fog.member(Grpc(fog.config.deploy), "9")
    assert not stranger.welcome.wait(1.0)
    assert not plain.welcome.is_set()
    assert fog.house.present() == {0}
    for one in (stranger, plain, friend):
        one.close()


def test_a_certificate_that_is_revoked_ends_a_connection(fog: Fog) -> None:
    from tierfed.deploy.authority import open_authority

    assert fog.house is not None
    one = fog.member(fog.network(fog.nodes / "0", "0").transport, "0")
    assert one.welcome.wait(SOON)
    revoke(open_authority(fog.keys), ["0"])
    fog.at_work.review()
    assert one.done.wait(SOON)
    assert "revoked" in str(one.failure)
    assert fog.house.present() == set()
    one.close()


def test_a_message_beyond_the_limit_never_arrives(tmp_path: Path) -> None:
    wanted = made(tmp_path, max_message_bytes=4096)
    network = insecure(wanted.deploy)
    fog = begin_node(world_of(wanted), "fog-0", "fog", network.transport, memory=True)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{wanted.deploy.port + 1}") as channel:
            call = channel.stream_stream("/tierfed.v1/frames")(iter([b"x" * 10_000]))
            with pytest.raises(grpc.RpcError) as ended:
                next(call)
        assert ended.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        fog.close()
        network.transport.close()


def test_without_certificates_on_this_machine_alone(tmp_path: Path) -> None:
    settings = made(tmp_path).deploy
    insecure(settings, "127.0.0.1:1", "[::1]:1", "localhost:1")
    for address in ("10.0.0.1:1", "0.0.0.0:1", "fog.example:1", ":1"):
        with pytest.raises(InputError, match="--insecure works between processes of one machine"):
            insecure(settings, address)

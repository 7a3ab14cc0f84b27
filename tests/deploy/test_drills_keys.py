"""Intruders with certificates that are not theirs, at a run with mutual TLS; clocks are an hour apart."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy.drills import drill, knock, logged, small
from deploy.processes import free_ports
from deploy.test_drills_messages import as_simulated
from tierfed.deploy import certificates
from tierfed.deploy.authority import Authority, create, issue, revoke
from tierfed.deploy.frame import Header, pack
from tierfed.deploy.grpc_transport import Grpc, Keys
from tierfed.deploy.identity import (
    Credentials,
    channel_credentials,
    channel_options,
    load_credentials,
    peer_identity,
    server_credentials,
)
from tierfed.deploy.names import Node
from tierfed.deploy.secure import secured

HOUR = timedelta(hours=1)
NODES = (
    Node(name="cloud", tier="cloud"),
    *(Node(name=f"fog-{k}", tier="fog", parent="cloud") for k in range(2)),
    *(Node(name=str(i), tier="device", parent=f"fog-{i % 2}") for i in range(4)),
)


def made_at(authority: Authority, name: str, days_ago: int) -> Credentials:
    """Credentials of a node whose certificate was good for nine days, not looked at before they are used."""
    key, genuine = certificates.new_key(), load_credentials(authority.node_folder(name))
    made = certificates.certificate_for(
        key.public_key(),
        authority.certificate,
        authority.key,
        tier=genuine.identity.tier,
        name=name,
        parent=genuine.identity.parent,
        days=9,
        now=certificates.utc_now() - timedelta(days=days_ago),
    )
    return replace(genuine, private=certificates.key_pem(key), certificate=certificates.pem(made))


def line(settings: Any, shown: Credentials, options: Sequence[tuple[str, Any]] | None = None) -> Grpc:
    """What somebody dials with. :param options: whom it believes to dial; by default its parent"""
    keys = Keys(
        server=server_credentials(shown),
        channel=channel_credentials(shown),
        options=channel_options(shown) if options is None else options,
        who=peer_identity,
    )
    return Grpc(settings, keys)


def test_intruders(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """None of them has any effect on the model."""
    now = certificates.utc_now()
    authority = create(tmp_path / "keys", now=now - HOUR)
    issue(authority, NODES, now=now - HOUR)
    stolen = load_credentials(authority.node_folder("0"))
    revoke(authority, ["0"], now=now - HOUR)
    issue(authority, [NODES[1], *NODES[3:5]], now=now + HOUR)  # a fog and two devices are two hours ahead of the others
    other = create(tmp_path / "other")
    issue(other, NODES)

    port = free_ports(3)
    wanted = small(tmp_path, rounds=3, deploy={"port": port}, topology={"team_rounds": 1})

    def network(name: str) -> Any:
        return secured(wanted.deploy, authority.node_folder(name), name)

    with drill(wanted, stops=[1, 3], network=network) as one:
        one.steps.after(1)
        zero, two, of_fog_1 = (load_credentials(authority.node_folder(n)) for n in ("0", "2", "1"))
        at_fog, at_cloud = f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}"
        hello, as_fog = (one.nodes[n].member.hello() for n in ("0", "fog-0"))
        to_fog, to_cloud = (channel_options(load_credentials(authority.node_folder(n))) for n in ("0", "fog-0"))

        def try_(shown: Credentials, said: Header, address: str, options: Any) -> Any:
            transport = line(wanted.deploy, shown, options)
            try:
                return knock(transport, address, pack(said))
            finally:
                transport.close()

        thief = load_credentials(other.node_folder("0"))
        for shown in (thief, replace(thief, ca=zero.ca), made_at(authority, "0", 10), made_at(authority, "0", -2)):
            refused = try_(shown, hello, at_fog, to_fog)
            assert refused.heard == []  # TLS ends it before a line of ours runs
            doubts_the_fog = shown is thief
            told = "wrong CA: " if doubts_the_fog else "it has ended the connection before TLS was agreed upon: "
            assert refused.why.startswith(f"unavailable: {told}")

        for shown, said, address, options, why in (
            (stolen, hello, at_fog, to_fog, "revoked: the certificate "),
            (two, hello, at_fog, to_fog, "wrong name: it says that it is '0', its certificate is that of device '2'"),
            (
                zero,
                as_fog,
                at_cloud,
                to_cloud,
                "wrong tier: it says that it is a fog, its certificate is that of device '0'",
            ),
            (zero, {**hello, "tier": "fog"}, at_fog, to_fog, "wrong tier: it says that it is a fog"),
            (of_fog_1, {**hello, "name": "1"}, at_fog, to_fog, "wrong parent: device '1' was issued for 'fog-1'"),
        ):
            refused = try_(shown, said, address, options)
            assert why in refused.heard[0]["reason"]
            logged(log, f"…: {why}")
        assert one.house("fog-0").present() == {0, 2}
        assert one.house("cloud").present() == {0, 1}

        one.steps.after(3)
        revoke(authority, ["3"])  # its connection is open, and ends
        one.nodes["fog-1"].review()
        logged(log, "refused 3: revoked: the certificate")
        as_simulated(one)

"""A CA with a small tree, and a parent that answers over real gRPC on loopback."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from tierfed.deploy import certificates
from tierfed.deploy.admission import Gate
from tierfed.deploy.authority import Authority, create, issue
from tierfed.deploy.identity import (
    Credentials,
    channel_credentials,
    channel_options,
    load_credentials,
    peer_identity,
    server_credentials,
)
from tierfed.deploy.names import ROAMING, Node

NOW = certificates.utc_now()
TREE = (
    Node(name="cloud", tier="cloud"),
    Node(name="fog-0", tier="fog", parent="cloud"),
    Node(name="fog-1", tier="fog", parent="cloud"),
    Node(name="ann", tier="device", parent="fog-0"),
    Node(name="bob", tier="device", parent="fog-1"),
    Node(name="rover", tier="device", parent=ROAMING),
)


def new_tree(folder: Path) -> Authority:
    """A CA in a folder, and credentials for `TREE`."""
    authority = create(folder, now=NOW - timedelta(days=1000))
    issue(authority, TREE)
    return authority


def of(authority: Authority, name: str) -> Credentials:
    return load_credentials(authority.node_folder(name))


def made_by(authority: Authority, folder: Path, name: str = "ann", days_ago: int = 0, days: int = 300) -> Credentials:
    """Credentials of `ann` whose certificate was made at another time, not looked at before they are used."""
    key = certificates.new_key()
    node = next(node for node in TREE if node.name == name)
    made = certificates.certificate_for(
        key.public_key(),
        authority.certificate,
        authority.key,
        tier=node.tier,
        name=node.name,
        parent=node.parent,
        days=days,
        now=NOW - timedelta(days=days_ago),
    )
    before = of(authority, name)
    return replace(before, folder=folder, private=certificates.key_pem(key), certificate=certificates.pem(made))


def copied(credentials: Credentials, folder: Path) -> Credentials:
    """The same credentials on another machine."""
    shutil.copytree(credentials.folder, folder)
    return load_credentials(folder)


@dataclass
class Parent:
    """A node that listens."""

    port: int
    gate: Gate
    asked: list[str] = field(default_factory=list)

    def join(self, child: Credentials, options: Any = None, **claims: Any) -> str:
        """What the parent says to a child: joined, or why not. :raises grpc.RpcError: the handshake fails"""
        options = channel_options(child) if options is None else options
        return self.call(channel_credentials(child), options, claims.get("claimed", ""))

    def call(self, credentials: Any, options: Any, said: str = "") -> str:
        target = f"127.0.0.1:{self.port}"
        channel = (
            grpc.insecure_channel(target) if credentials is None else grpc.secure_channel(target, credentials, options)
        )
        with channel:
            answer: bytes = channel.unary_unary("/test.Parent/Join")(said.encode(), timeout=20)
            return answer.decode()


@contextmanager
def parent(credentials: Credentials, **rules: Any) -> Iterator[Parent]:
    """A server with mutual TLS whose only method asks the gate. :param rules: of `Gate.admit`"""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(credentials))
    here = Parent(port, Gate(credentials))

    def answer(request: bytes, context: Any) -> bytes:
        peer = peer_identity(context.auth_context())
        here.asked.append(peer.name)
        return (here.gate.admit(peer, claimed=request.decode(), **rules) or f"{peer} joins").encode()

    methods = {"Join": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Parent", methods),))
    server.start()
    try:
        yield here
    finally:
        server.stop(None).wait()

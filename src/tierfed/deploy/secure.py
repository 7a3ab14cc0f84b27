"""Mutual TLS for the processes of a run, or none on the loopback device."""

from pathlib import Path
from typing import NamedTuple

from tierfed.deploy.admission import Gate
from tierfed.deploy.grpc_transport import Grpc, Keys
from tierfed.deploy.identity import (
    channel_credentials,
    channel_options,
    load_credentials,
    peer_identity,
    server_credentials,
)
from tierfed.deploy.joining import check_local
from tierfed.deployment import DeploySettings
from tierfed.errors import InputError


class Network(NamedTuple):
    """What a node is reached by and reaches others by. :param gate: none: nobody shows a certificate"""

    transport: Grpc
    gate: Gate | None


def secured(settings: DeploySettings, folder: Path, name: str) -> Network:
    """gRPC with mutual TLS for one node.

    :param folder: its credentials, as `tierfed keys issue` has made them
    :raises InputError: they are missing, damaged, not valid now, or those of another node
    """
    credentials = load_credentials(folder)
    if credentials.identity.name != name:
        raise InputError(
            f"the certificate in {folder} is that of {credentials.identity}, this is {name!r}; give its own folder "
            "with --keys"
        )
    keys = Keys(
        server=server_credentials(credentials),
        channel=channel_credentials(credentials),
        options=channel_options(credentials),
        who=peer_identity,
        warning=credentials.warning(),
    )
    return Network(Grpc(settings, keys), Gate(credentials))


def insecure(settings: DeploySettings, *addresses: str) -> Network:
    """gRPC without certificates.

    :param addresses: where this process listens and dials
    :raises InputError: one of them is not on this machine alone
    """
    for address in addresses:
        check_local(address, "--insecure works")
    return Network(Grpc(settings), None)

"""The network hop of an enrollment: one unary gRPC method on a TLS port where only the server shows a certificate.

The node trusts nobody but the CA that its token carries, so the first contact is authenticated; the CA trusts the
secret of the token. Messages are JSON. The private key of the node never leaves its machine.
"""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from tierfed.deploy import certificates, files
from tierfed.deploy.authority import DAYS, Authority
from tierfed.deploy.identity import CA, CRL, NODE, Credentials, identity_of, load_credentials
from tierfed.deploy.names import Node, server_name
from tierfed.deploy.tokens import Token, enroll, make_csr
from tierfed.errors import InputError

SERVICE, METHOD = "tierfed.Enrollment", "Enroll"
PENDING = "pending.key"
_MOST_BYTES = 1 << 16
_AT_ONCE = 8
_TIMEOUT_SECONDS = 30
_SERVER = [
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ("grpc.max_receive_message_length", _MOST_BYTES),
    ("grpc.max_metadata_size", 1 << 13),
    ("grpc.max_connection_age_ms", 60_000),
]
_LOG = logging.getLogger(__name__)


def handler(authority: Authority, tell: Callable[[str], None] = _LOG.info) -> Any:
    """The method, to be added to a server.

    :param tell: is told who was enrolled, and who was refused and why
    :returns: grpc.GenericRpcHandler
    """

    def answer(request: bytes, context: Any) -> bytes:
        try:
            asked = _fields(request, "secret", "csr")
            done = enroll(authority, asked["secret"], asked["csr"].encode())
        except InputError as e:
            tell(f"refused {context.peer()}: {e}")
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(e))
        tell(f"enrolled {identity_of(done.certificate)} at {context.peer()}")
        return json.dumps({"certificate": done.certificate.decode(), "crl": done.crl.decode()}).encode()

    method = grpc.unary_unary_rpc_method_handler(answer)
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})


def _fields(content: bytes, *names: str) -> dict[str, str]:
    """Texts from outside. :raises InputError: not all of them are there"""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, Mapping) or not all(isinstance(found.get(name), str) for name in names):
        raise InputError(f"the message is not understood; wanted JSON with {' and '.join(names)}: use one version")
    return {name: found[name] for name in names}


def serve(authority: Authority, bind: str, tell: Callable[[str], None] = _LOG.info) -> tuple[Any, int]:
    """A running server that enrolls nodes. Its key is made now and never written.

    :param bind: HOST:PORT; port 0: any that is free
    :param tell: as of `handler`
    :returns: the grpc.Server and its port
    :raises InputError: it cannot listen there
    """
    key, now = certificates.new_key(), certificates.utc_now()
    shown = certificates.certificate_for(
        key.public_key(),
        authority.certificate,
        authority.key,
        tier=certificates.ENROLL,
        name=certificates.ENROLL,
        parent="",
        days=DAYS,
        now=now,
    )
    server = grpc.server(ThreadPoolExecutor(2), options=_SERVER, maximum_concurrent_rpcs=_AT_ONCE)
    server.add_generic_rpc_handlers((handler(authority, tell),))
    pair = (certificates.key_pem(key), certificates.pem(shown))
    try:
        port = server.add_secure_port(bind, grpc.ssl_server_credentials([pair]))
    except RuntimeError as e:
        server.stop(None)
        raise InputError(f"cannot listen on {bind}: {e}; wanted a free HOST:PORT of this machine") from None
    server.start()
    return server, port


def request(token: Token, address: str, folder: Path, timeout_seconds: float = _TIMEOUT_SECONDS) -> Credentials:
    """The credentials of a new node: its key is made here, its certificate comes from the CA.

    Interrupted, it can be called again: it goes on with the same key.

    :param address: HOST:PORT where the CA serves
    :param folder: where the credentials are to be
    :raises InputError: the folder has credentials, the CA cannot be reached, is another one or refuses
    """
    if (folder / NODE).exists():
        raise InputError(f"{folder} holds the credentials of a node; choose another folder (--out), or delete it")
    files.make_folder(folder)
    key = _own_key(folder / PENDING)
    answer = _ask(token, address, make_csr(key, token.node), timeout_seconds)
    certificate = certificates.read_certificate(answer["certificate"].encode(), "the answer of the CA")
    if certificates.public_bytes(certificate) != certificates.public_bytes(key):
        raise InputError("the CA has answered with a certificate for another key; ask for another token")
    found = identity_of(certificate)
    if Node(name=found.name, tier=found.tier, parent=found.parent) != token.node:
        raise InputError(f"the CA has answered with a certificate of {found}, the token is for {token.node.name!r}")
    files.write(folder / CA, token.ca)
    files.write(folder / CRL, answer["crl"].encode())
    files.write(folder / NODE, certificates.key_pem(key) + certificates.pem(certificate), private=True)
    (folder / PENDING).unlink()
    return load_credentials(folder)


def _own_key(path: Path) -> certificates.Key:
    """The key of an enrollment that was interrupted, or a new one."""
    if not path.exists():
        files.write(path, certificates.key_pem(certificates.new_key()), private=True)
    return certificates.read_key(files.read(path, "the key of this enrollment", "try again", private=True), path)


def _ask(token: Token, address: str, csr: bytes, timeout_seconds: float) -> dict[str, str]:
    content = json.dumps({"secret": token.secret, "csr": csr.decode()}).encode()
    options = [
        ("grpc.ssl_target_name_override", server_name(certificates.ENROLL)),
        ("grpc.max_receive_message_length", 1 << 24),  # the revocation list is in it
    ]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(token.ca), options) as channel:
        try:
            answer = channel.unary_unary(f"/{SERVICE}/{METHOD}")(content, timeout=timeout_seconds)
        except grpc.RpcError as e:
            if e.code() == grpc.StatusCode.PERMISSION_DENIED:
                raise InputError(f"the CA refuses: {e.details()}") from None
            raise InputError(
                f"no answer from the CA that made the token at {address}: {e.details()}; is `tierfed keys serve` "
                "running there, with the keys that the token is from?"
            ) from None
    return _fields(answer, "certificate", "crl")

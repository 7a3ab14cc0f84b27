"""The process of the live view: an address of this machine and a server on it."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import uvicorn

from tierfed.errors import InputError
from tierfed.lookup import near_folder
from tierfed.ui.app import make_app

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Server(uvicorn.Server):
    """A server that says when it answers; from then on Ctrl-C ends it in good order."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready: Callable[[], object] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()


class Listening(NamedTuple):
    """A server that has its address but does not answer yet; `server.run(sockets=[sock])` does."""

    server: Server
    sock: socket.socket
    url: str


def listen(
    root: Path, host: str = "127.0.0.1", port: int = 0, hosts: Sequence[str] = (), nodes: Sequence[Path] = ()
) -> Listening:
    """Takes an address for the runs below a folder.

    :param host: an address of this machine; others than those of loopback let other machines read
    :param port: 0: any that is free
    :param hosts: further names by which a browser may call this machine
    :param nodes: further folders in which states of nodes may be read
    :raises InputError: no such folder, or nobody can listen there
    """
    for folder, what in ((root, "your runs are"), *((n, "nodes keep their states") for n in nodes)):
        if not folder.is_dir():
            hint = near_folder(folder) or "; give its path"
            raise InputError(f"{folder} is no folder, wanted the one in which {what}{hint}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()  # whoever calls from now on waits until the server is there
    except (OSError, OverflowError) as err:
        sock.close()
        raise InputError(f"cannot listen at {host} port {port}: {err}; take another --port or --host") from None
    known = [f"[{name}]" if ":" in name else name for name in (*LOOPBACK, host, *hosts)]
    server: Server
    config = uvicorn.Config(
        make_app(root, known, lambda: server.should_exit, nodes),
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=3,
    )
    name = f"[{host}]" if ":" in host else host
    server = Server(config)
    return Listening(server, sock, f"http://{name}:{sock.getsockname()[1]}/")

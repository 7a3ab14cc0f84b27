"""A connection to Ray: to a cluster of this machine alone, which is begun and ended here, or to one that runs already.

Ray is told to keep its usage statistics to itself. A cluster that is begun here listens on the loopback device, and
asks for a token that only its own processes know.
"""

import importlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tierfed.errors import InputError

_REACH_SECONDS = 20
_ROOM_BYTES = 1 << 30  # of the object store beside the data: messages on their way; what is more goes to disk
_HERE = "run tierfed on a machine of the cluster"


def check_address(address: str) -> None:
    """What can be said of the settings before anything is begun.

    :param address: as engine.address
    :raises InputError: Ray is not installed, or nothing can be reached under such an address
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("engine.name = 'ray', but Ray is not installed: pip install \"tierfed[ray]\"")
    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise InputError(
            f"engine.address = {address!r}: Ray's client protocol is not supported; {_HERE}, with engine.address = "
            "'auto'"
        )
    if address not in ("", "auto") and not (host and colon and port.isdigit() and 0 < int(port) < 1 << 16):
        raise InputError(
            f"engine.address = {address!r}: wanted 'auto', or host:port of the head of a cluster (`ray start --head` "
            "prints it); empty begins a cluster of this machine alone"
        )


class Cluster:
    """What this process is connected to; one that the caller has connected to before (`ray.init`) is used as it is.

    :param address: as engine.address
    :param workers: as engine.workers, for a cluster that is begun here; 0: one per core
    :param data_bytes: of what all workers read
    :raises InputError: Ray is not installed, cannot be reached within 20 seconds, or is another version
    """

    def __init__(self, address: str, workers: int, data_bytes: int) -> None:
        check_address(address)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray looks at it when it is imported
        self.ray: Any = importlib.import_module("ray")
        self._ours, self._session = not self.ray.is_initialized(), ""
        self._before = signal.getsignal(signal.SIGTERM)  # Ray's own handler leaves in good order
        if not self._ours:
            return
        try:
            if address:
                self._join(address)
            else:
                self._start(workers, data_bytes)
        except BaseException:
            self.close()
            raise

    def resources(self) -> dict[str, float]:
        """What the machines have together: CPU, GPU, ..."""
        return dict(self.ray.cluster_resources())

    def nodes(self) -> set[str]:
        """The machines that are there, by Ray's ids."""
        return {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}

    def close(self) -> None:
        """Ends what was begun here: the connection, or the cluster."""
        if self._ours and self.ray.is_initialized():
            self.ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, self._before)
        if self._session:
            shutil.rmtree(self._session, ignore_errors=True)  # logs and sockets of what has ended well

    def _start(self, workers: int, data_bytes: int) -> None:
        try:
            with _alone(), _secret():
                context = self.ray.init(
                    address="local",
                    num_cpus=workers or None,
                    object_store_memory=data_bytes + _ROOM_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (RuntimeError, ValueError, OSError) as err:
            raise InputError(
                f"Ray cannot begin a cluster on this machine: {line(err)}; see the files in /tmp/ray/session_latest/"
                "logs, or take engine.name = 'vectorized'"
            ) from None
        self._session = context.address_info["session_dir"]

    def _join(self, address: str) -> None:
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS", "auto")
            check_address(address)
        _reach(address)
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as err:
            text = line(err)
            if "ersion" in text:
                raise InputError(
                    f"the Ray cluster at {address!r} does not fit to this process: {text}; take the same versions of "
                    "Python and Ray on all machines"
                ) from None
            raise InputError(f"the Ray cluster at {address!r} cannot be joined: {text}; {_HERE}") from None


def _reach(address: str) -> None:
    """Asks whether a cluster is there, in another process: Ray itself would try for minutes.

    :raises InputError: it does not answer
    """
    what = [] if address == "auto" else ["--address", address]
    why = f"no answer within {_REACH_SECONDS} seconds"
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "health-check", *what],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_REACH_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return
        why = next((line for line in reversed(done.stderr.splitlines()) if "rror" in line), "it does not answer")
    raise InputError(
        f"engine.address = {address!r}: no Ray cluster can be reached there ({why}); `ray start --head` begins one, "
        "`ray status` shows it; an empty engine.address needs none"
    )


@contextmanager
def _alone() -> Iterator[None]:
    """A cluster that begins meanwhile has the address 127.0.0.1, as on systems where Ray knows no others; on Linux it
    would listen on all.
    """
    constants = importlib.import_module("ray._private.ray_constants")
    before = getattr(constants, "ENABLE_RAY_CLUSTER", True)
    constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before  # type: ignore[attr-defined]


@contextmanager
def _secret() -> Iterator[None]:
    """A cluster that begins meanwhile has a token of its own, which Ray would else write into the user's folder; where
    the user has said nothing about tokens.
    """
    if any(name.startswith("RAY_AUTH") for name in os.environ):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
            os.environ.pop(name, None)


def line(err: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    return " ".join(str(err).split())[:400]

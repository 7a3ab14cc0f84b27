"""tierfed for those who run Flower: the device half of an algorithm as a `ClientApp`, its cloud half as a `ServerApp`.

    app = tierfed.flower.client_app("my.toml")   # client_app.py
    app = tierfed.flower.server_app("my.toml")   # server_app.py

Both halves read the same config, and whatever is drawn (participants, batches, dropout masks) is a pure function of its
seed: models are those of `tierfed run my.toml`, up to rounding. Messages are frames of `tierfed.wire`, never pickle.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierfed.config import Config
from tierfed.errors import InputError

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

__all__ = ["client_app", "server_app"]


def client_app(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    data: Any = None,
    module: Any = None,
    folder: Path | str | None = None,
) -> "ClientApp":
    """The device half of a run. Its node config says which device a supernode is: device='NAME' or partition-id=NUMBER.

    :param config: a `Config`, a dict of its tables, a TOML file or the name of a preset; keys of the run config that
        begin with the name of one of its tables, as algorithm.lr, are applied on top
    :param data: what `tierfed.run` takes, or a function that returns it; the same as of the server
    :param module: the same of the model
    :param folder: where private state is kept, a folder of its own for each device; it survives the supernode. None:
        the node config's state='FOLDER', else in `context.state`, which the supernode keeps in memory: a supernode
        that restarts has lost it, and a device that needs it is then refused
    :raises InputError: Flower is not installed
    """
    return _half("device").client_app(config, data, module, folder)  # type: ignore[no-any-return]


def server_app(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    data: Any = None,
    module: Any = None,
    wait_seconds: float = 60.0,
    reply_seconds: float = 600.0,
) -> "ServerApp":
    """The cloud half of a run, which writes a run folder: run.out, by default runs/flower-<id of Flower's run>. Where
    run.out is an unfinished run of the same config, that one goes on.

    :param config: see `client_app`; :param data: the same; :param module: the same
    :param wait_seconds: how long it waits for the supernodes of all devices before it begins without the others
    :param reply_seconds: how long it waits for replies; who has not answered by then is not heard in this round
    :raises InputError: Flower is not installed
    """
    return _half("cloud").server_app(config, data, module, wait_seconds, reply_seconds)  # type: ignore[no-any-return]


def _half(name: str) -> Any:
    try:
        return importlib.import_module(f"tierfed.flower.{name}")
    except ModuleNotFoundError as err:
        if (err.name or "").split(".")[0] != "flwr":
            raise
        raise InputError(
            "Flower is not installed in this environment; install it: pip install 'tierfed[flower]'"
        ) from None

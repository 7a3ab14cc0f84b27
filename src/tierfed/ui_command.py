"""`tierfed ui`: the live view of run folders in a browser."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tierfed.errors import InputError


def ui(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the runs are.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="An address of this machine; by default nobody else can read.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8642,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name by which browsers call this machine.")
    ] = None,
    nodes: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Where nodes keep their states, if not below (deploy.folder)."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the browser.")] = False,
) -> None:
    """Look at runs while they go on: curves, tree, faults, nodes. Reads the folder, writes nothing. Ctrl-C ends it."""
    try:
        from tierfed.ui.server import LOOPBACK, listen  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] not in ("starlette", "uvicorn", "plotly", "jinja2", "markupsafe"):
            raise
        raise InputError(f"the live view needs {err.name}, which is not installed; pip install 'tierfed[ui]'") from None
    server, sock, url = listen(folder, host, port, allow_host or (), nodes or ())

    def ready() -> None:
        Console().print(f"live view of {folder}: {url}", soft_wrap=True, markup=False, highlight=False)
        if host not in LOOPBACK:
            told = "every computer that reaches this address can read these runs; there is no password"
            Console(stderr=True).print(f"warning: {told}", soft_wrap=True)
        if show:
            typer.launch(url)

    server.ready = ready
    try:
        server.run(sockets=[sock])
    except KeyboardInterrupt:  # the way to end it
        pass
    finally:
        sock.close()

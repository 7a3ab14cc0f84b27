"""`tierfed cloud`, `fog`, `device`, `up` and `health`: a run as processes."""

import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from tierfed.config import Config, to_toml
from tierfed.deploy.joining import address, check_local, find, run_folder, state_folder
from tierfed.deploy.logs import event, logged
from tierfed.deploy.names import CLOUD, folder_name, tree_nodes
from tierfed.deploy.process import AtWork, Cloud, Nodes, begin_node, world_of
from tierfed.deploy.status import Beat, metrics, read, serve_metrics, trouble, write
from tierfed.deploy.up import Crew, environment, parts
from tierfed.deploy.up import run as run_all
from tierfed.errors import InputError
from tierfed.metrics import write_atomic
from tierfed.options import DataDir, Json, Sets, load
from tierfed.output import err, listing, out, say
from tierfed.progress import line, watching
from tierfed.result import Progress, Watcher
from tierfed.session import on_disk
from tierfed.setup import World, threads

if TYPE_CHECKING:
    from tierfed.deploy.secure import Network

Source = Annotated[str, typer.Argument(metavar="CONFIG", help="A TOML file or a preset; the same for all nodes.")]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder (run.out).")]
Keys = Annotated[
    Path | None, typer.Option("--keys", metavar="FOLDER", help="Certificate of the node; keys/nodes/NAME by default.")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="No certificates; on the loopback device alone.")]
Listen = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where it listens (deploy.addresses).")]
Parent = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where its parent listens.")]
Anew = Annotated[bool, typer.Option("--anew", help="Delete what it has kept: it takes the place of a lost one.")]
_STDIN = "TIERFED_STOPS_WITH_STDIN"
_LOG = logging.getLogger(__name__)


def cloud(
    source: Source,
    set_: Sets = None,
    data_dir: DataDir = None,
    out_dir: Out = None,
    keys: Keys = None,
    insecure: Insecure = False,
    listen: Listen = None,
    as_json: Json = False,
) -> None:
    """Be the cloud of a run: begin it, or go on with it after its last committed round."""
    config = load(source, set_ or [], None, None, data_dir, out_dir)
    here = listen or config.deploy.addresses.get(CLOUD, f"{config.deploy.host}:{config.deploy.port}")
    result = None
    with logged(config.deploy.log, CLOUD) as log, _stopping(threading.Event()) as stopped, ExitStack() as ends:
        network = _Reach(keys=keys, insecure=insecure).network(config, CLOUD, here)
        ends.callback(network.transport.close)
        at_work = Cloud(config, network.transport, gate=network.gate, listen=here)
        log.round = at_work.round
        beat = Beat(lambda: _beat_cloud(at_work, run_folder(config)))
        ends.callback(beat.close)
        if config.deploy.metrics:
            ends.callback(serve_metrics(config.deploy.metrics, metrics(at_work.seen)))
        with _watching(config, as_json) as watch:
            result = at_work.run(watch)
    if result is None or result.interrupted:
        err.print("stopped; the same command goes on", highlight=False)
        raise typer.Exit(0 if stopped() == signal.SIGTERM else 130)
    if as_json:
        say({"folder": str(result.folder), "rounds": result.engine.round, "scores": result.scores})
    else:
        out.print(f"folder: {result.folder}", soft_wrap=True, markup=False, highlight=False)


def fog(
    source: Source,
    name: Annotated[str, typer.Option(metavar="NAME", help="fog-0, fog-1, …; in deeper trees also region-0, …")],
    set_: Sets = None,
    data_dir: DataDir = None,
    out_dir: Out = None,
    keys: Keys = None,
    insecure: Insecure = False,
    listen: Listen = None,
    parent: Parent = None,
    anew: Anew = False,
) -> None:
    """Be a fog of a run: a child of the cloud, the parent of its devices; until the run is over."""
    config = load(source, set_ or [], None, None, data_dir, out_dir)
    _work(config, [name], "fog", _Reach(keys=keys, insecure=insecure, listen=listen, parent=parent), anew=anew)


def device(
    source: Source,
    name: Annotated[list[str], typer.Option(metavar="NAME", help="Its name in the data; several: all in one process.")],
    set_: Sets = None,
    data_dir: DataDir = None,
    out_dir: Out = None,
    keys: Keys = None,
    insecure: Insecure = False,
    parent: Parent = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Its own samples, where deploy.devices names it.")
    ] = None,
    anew: Anew = False,
) -> None:
    """Be a device of a run, or several of them; until the run is over."""
    if data is not None and len(name) > 1:
        raise InputError("--data is the file of one device; put {name} into data.path for several in one process")
    config = load(source, set_ or [], None, None, data_dir, out_dir)
    _work(config, name, "device", _Reach(keys=keys, insecure=insecure, parent=parent), anew=anew, data=data)


def up(
    source: Source,
    set_: Sets = None,
    data_dir: DataDir = None,
    out_dir: Out = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", metavar="FOLDER", help="Certificates of all nodes, FOLDER/NAME each.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Be all nodes of a run on this machine, each a process; Ctrl-C stops them, the same command goes on."""
    config = load(source, set_ or [], None, None, data_dir, out_dir)
    world = world_of(config)
    nodes = tree_nodes(world.topology, world.federation.devices)
    for one in nodes:
        if one.tier != "device":
            check_local(address(world, one.name))
    folder = state_folder(config, CLOUD).parent
    with on_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.toml", to_toml(config))
    more = ["--insecure"] if keys is None else []
    crew = Crew(
        parts=parts(nodes, folder / "config.toml", folder, config.deploy.devices_per_process, more),
        env=environment(_STDIN),
    )
    if keys is not None:
        for part in crew.parts:
            part.arguments += ["--keys", str(keys / folder_name(part.nodes[0]) if len(part.nodes) == 1 else keys)]
    with _stopping(threading.Event()):
        run_all(crew, out, as_json)
        if as_json:
            say({"folder": str(run_folder(config)), "processes": len(crew.parts)})
        else:
            out.print(f"folder: {run_folder(config)}", soft_wrap=True, markup=False, highlight=False)


def health(
    source: Source,
    name: Annotated[str, typer.Option(metavar="NAME", help="cloud, fog-0, or the name of a device.")],
    set_: Sets = None,
    out_dir: Out = None,
    as_json: Json = False,
) -> None:
    """Whether a node on this machine is well: exit code 0, else 1."""
    config = load(source, set_ or [], None, None, None, out_dir)
    status = read(run_folder(config) if name == CLOUD else state_folder(config, name), name)
    why, seen = trouble(status), {k: v for k, v in asdict(status).items() if k != "at"}
    seen |= {"busy_seconds": round(status.busy_seconds, 1), "age_seconds": round(max(0.0, time.time() - status.at), 1)}
    if as_json:
        say({**seen, "trouble": why})
    else:
        seen["children"] = "{} of {}".format(*status.children) if status.children[1] else "none"
        listing(f"{name}: {why or ('the run is over' if status.over else 'at work')}", [seen], False)
    if why:
        raise typer.Exit(1)


def _work(
    config: Config, names: Sequence[str], tier: str, reach: "_Reach", *, anew: bool, data: Path | None = None
) -> None:
    """Nodes of one tier, from their begin to the end of the run."""
    nodes, over = Nodes(), False
    me = names[0] if len(names) == 1 else f"{names[0]}+{len(names) - 1}"
    with logged(config.deploy.log, me) as log, _stopping(nodes.stopping) as stopped, ExitStack() as ends:
        log.round = lambda: max((one.round() or 0 for one in nodes.at_work), default=0) or None
        ends.callback(nodes.close)
        for one in _begun(config, names, tier, reach, ends, anew, data):
            nodes.at_work.append(one)
        beat = Beat(lambda: _beat(config, nodes.at_work))
        ends.callback(beat.close)
        if config.deploy.metrics:
            seen = metrics(lambda: [(one.status(), one.node.engine.house) for one in nodes.at_work])
            ends.callback(serve_metrics(config.deploy.metrics, seen))
        over = nodes.wait()
    if not over and stopped() != signal.SIGTERM:
        raise typer.Exit(130)


def _begun(
    config: Config, names: Sequence[str], tier: str, reach: "_Reach", ends: ExitStack, anew: bool, data: Path | None
) -> Iterator[AtWork]:
    """The nodes, one after the other. :param ends: what is to be closed at the end"""
    separate = tier == "device" and bool(config.deploy.devices)  # each device has data of its own
    worlds = {name: world_of(config, name if separate else "", data) for name in (names if separate else names[:1])}
    world, compute = worlds[names[0]], threading.Lock()
    torch.set_num_threads(threads(config, [t.module for t in world.tasks]))
    for name in names:
        listen, parent = reach.addresses(world, name, tier)
        network = reach.network(config, name, *filter(None, (listen, parent)), alone=len(names) == 1)
        ends.callback(network.transport.close)
        yield begin_node(
            worlds.get(name, world),
            name,
            tier,
            network.transport,
            gate=network.gate,
            anew=anew,
            listen=listen,
            parent=parent,
            compute=compute,
        )


@dataclass(frozen=True, kw_only=True)
class _Reach:
    """How a node is reached and reaches others, as options say it. :param keys: of several nodes: a folder of theirs"""

    keys: Path | None
    insecure: bool
    listen: str | None = None
    parent: str | None = None

    def addresses(self, world: World, name: str, tier: str) -> tuple[str, str]:
        """Where a node listens, if it does, and where its parent does."""
        me = find(world, name, tier)
        here = self.listen or (address(world, name) if tier == "fog" else "")
        return here, self.parent or address(world, me.parent)

    def network(self, config: Config, name: str, *addresses: str, alone: bool = True) -> "Network":
        """What a node is reached by.

        :param addresses: where it listens and dials
        :param alone: no other node is in this process
        :raises InputError: the extra is not installed, no certificate, --insecure beyond this machine
        """
        if importlib.util.find_spec("grpc") is None or importlib.util.find_spec("cryptography") is None:
            raise InputError("processes talk over gRPC, which is not installed: pip install 'tierfed[deploy]'")
        from tierfed.deploy import secure  # noqa: PLC0415  (an extra)

        if self.insecure:
            return secure.insecure(config.deploy, *addresses)
        keys = self.keys or Path("keys") / "nodes"
        single = self.keys is not None and alone
        return secure.secured(config.deploy, keys if single else keys / folder_name(name), name)


def _beat(config: Config, at_work: list[AtWork]) -> None:
    for one in list(at_work):
        one.review()
        write(state_folder(config, one.node.name), one.status())


def _beat_cloud(at_work: Cloud, folder: Path) -> None:
    for status, house in at_work.seen():
        if house is not None:
            house.review()
        if folder.is_dir():
            write(folder, status)


@contextmanager
def _watching(config: Config, quiet: bool) -> Iterator[Watcher | None]:
    """Rounds as they come: log lines where programs read them, else for people."""
    if config.deploy.log == "json":
        yield _log_round
    else:
        with watching(out, quiet=quiet) as watch:
            yield watch


def _log_round(progress: Progress) -> None:
    if text := line(progress):
        _LOG.info("%s", text, extra=event("doing" if progress.doing else "round", round=progress.round))


@contextmanager
def _stopping(event: threading.Event) -> Iterator["_Asked"]:
    """Ctrl-C and SIGTERM end a process in an orderly way, and so does the end of the standard input where it is asked
    for.
    """
    asked = _Asked()

    def stop(number: int, frame: FrameType | None) -> None:
        asked.by = number
        if event.is_set():
            return
        event.set()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    if os.environ.get(_STDIN):
        threading.Thread(target=_until_stdin_ends, daemon=True).start()
    try:
        yield asked
    except KeyboardInterrupt:
        if asked.by != signal.SIGTERM:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Asked:
    """Which signal has asked the process to stop; 0: none."""

    by = 0

    def __call__(self) -> int:
        return self.by


def _until_stdin_ends() -> None:
    while os.read(0, 1 << 16):  # not sys.stdin: its lock must be free when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)

"""`tierfed keys`: a private CA, certificates, revocation, and the enrollment of nodes that make their own keys."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierfed.deploy.joining import check_roaming
from tierfed.deploy.names import ROAMING, Node, moving, tree_nodes
from tierfed.deploy.process import world_of
from tierfed.errors import InputError
from tierfed.options import DataDir, Json, Sets, load
from tierfed.output import listing, out, say
from tierfed.setup import prepare

if TYPE_CHECKING:
    from tierfed.deploy.authority import Authority
    from tierfed.deploy.identity import Identity

keys = typer.Typer(
    no_args_is_help=True, help="Identities for cloud, fogs and devices: a private CA and what it issues."
)

Keys = Annotated[Path, typer.Option("--keys", metavar="FOLDER", help="The folder of the CA.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A node: cloud, fog-0, or the name of a device.")]
Tier = Annotated[str | None, typer.Option(help="cloud, fog or device; by the name where it is cloud or fog-N.")]
Parent = Annotated[str | None, typer.Option(metavar="NAME", help="The only node that it may join; cloud for a fog.")]
Roaming = Annotated[bool, typer.Option("--roaming", help="It may join any fog.")]
Days = Annotated[int, typer.Option(help="Until the certificate ends.")]
_HERE = Path("keys")


@keys.command()
def init(
    folder: Keys = _HERE,
    years: Annotated[int, typer.Option(min=1, max=50, help="Until the CA ends, and all that it has issued.")] = 10,
    as_json: Json = False,
) -> None:
    """Make a private CA in a new folder."""
    _needed()
    from tierfed.deploy.authority import create  # noqa: PLC0415  (an extra)

    made = create(folder, years=years)
    ends = made.certificate.not_valid_after_utc
    if as_json:
        say({"keys": str(folder), "not_after": ends.isoformat()})
        return
    _tell(f"CA: {folder}, until {ends:%Y-%m-%d}; keep {folder / 'ca.key'} to yourself, whoever has it can be any node")


@keys.command()
def issue(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A node; none with --config.")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="For all nodes of a config's tree: a TOML file or a preset.")
    ] = None,
    set_: Sets = None,
    data_dir: DataDir = None,
    tier: Tier = None,
    parent: Parent = None,
    roaming: Roaming = False,
    hosts: Annotated[
        list[str] | None, typer.Option("--host", metavar="HOST", help="Where the node listens, for other clients.")
    ] = None,
    days: Days = 365,
    folder: Keys = _HERE,
    as_json: Json = False,
) -> None:
    """Issue a key and a certificate to a node, or to all nodes of a config; anew for those that have some."""
    authority = _open(folder)
    from tierfed.deploy.authority import issue as issue_nodes  # noqa: PLC0415  (an extra)
    from tierfed.deploy.identity import load_credentials  # noqa: PLC0415

    if (name is None) == (config is None):
        raise InputError("tierfed keys issue wants the NAME of one node, or --config for all nodes of a tree")
    if config is not None:
        if tier is not None or parent is not None:
            raise InputError("--tier and --parent come from the tree of --config; leave them out")
        nodes = config_nodes(config, set_ or [], data_dir, roaming)
    else:
        nodes = [_node(authority, str(name), tier, parent, roaming)]
    done = issue_nodes(authority, nodes, days=days, hosts=hosts or ())
    rows = [{**_row(load_credentials(at).identity), "folder": str(at)} for at in done]
    listing("Issued", rows, as_json)


@keys.command()
def revoke(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Nodes whose certificates shall end now.")],
    folder: Keys = _HERE,
    as_json: Json = False,
) -> None:
    """End all certificates of some nodes; unused tokens for them too."""
    authority = _open(folder)
    from tierfed.deploy.authority import revoke as revoke_nodes  # noqa: PLC0415  (an extra)

    ended = revoke_nodes(authority, names)
    if as_json:
        say({"revoked": [{"name": r.name, "serial": f"{r.serial:x}"} for r in ended], "crl": str(folder / "crl.pem")})
        return
    for name in names:
        count = sum(r.name == name for r in ended)
        _tell(f"{name}: {count} certificate{'' if count == 1 else 's'} revoked" if count else f"{name}: none was valid")
    _tell(
        f"nodes with folders in {folder} have the new list; where the cloud is on another machine, copy "
        f"{folder / 'crl.pem'} into its folder: it reads it at once and hands it on, as do fogs"
    )


@keys.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also what has expired, or was issued anew.")] = False,
    folder: Keys = _HERE,
    as_json: Json = False,
) -> None:
    """What was issued: the newest certificate of every node, or all of them."""
    authority = _open(folder)
    from tierfed.deploy.authority import records  # noqa: PLC0415  (an extra)
    from tierfed.deploy.certificates import utc_now  # noqa: PLC0415

    found = records(authority)
    shown = found if everything else list({r.name: r for r in found}.values())
    now = utc_now()
    rows = [{**_row(r), "status": r.status(now)} for r in shown]
    listing(f"Certificates of {folder}", rows, as_json)


@keys.command()
def token(
    name: Name,
    tier: Tier = None,
    parent: Parent = None,
    roaming: Roaming = False,
    hours: Annotated[float, typer.Option(min=0.01, max=8760, help="Until the token cannot be used any more.")] = 24,
    days: Days = 365,
    folder: Keys = _HERE,
    as_json: Json = False,
) -> None:
    """Make a token with which a node makes its own key and gets a certificate; good once."""
    authority = _open(folder)
    from tierfed.deploy.tokens import make_token  # noqa: PLC0415  (an extra)

    node = _node(authority, name, tier, parent, roaming)
    made = make_token(authority, node, hours=hours, days=days)
    if as_json:
        say({"name": node.name, "tier": node.tier, "parent": node.parent, "hours": hours, "token": made.text()})
        return
    typer.echo(made.text())


@keys.command()
def serve(
    bind: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where new nodes reach the CA.")] = "127.0.0.1:7071",
    folder: Keys = _HERE,
) -> None:
    """Answer new nodes that have a token, until Ctrl-C."""
    authority = _open(folder)
    from tierfed.deploy import enroll  # noqa: PLC0415  (an extra)

    server, port = enroll.serve(authority, _address(bind, "--bind"), tell=_tell)
    host = bind.rpartition(":")[0]
    _tell(f"waiting for nodes with a token at {host}:{port}; Ctrl-C ends it")
    try:
        server.wait_for_termination()
    finally:
        server.stop(None).wait()


@keys.command("enroll")
def enroll_(
    token_: Annotated[str, typer.Argument(metavar="TOKEN", help="The token, a file that holds it, or - to read it.")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where `tierfed keys serve` runs.")],
    out_dir: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where this node's credentials are to be.")],
    as_json: Json = False,
) -> None:
    """On a new node: make a key, and get a certificate for it with a token."""
    _needed()
    from tierfed.deploy import enroll  # noqa: PLC0415  (an extra)
    from tierfed.deploy.tokens import read_token  # noqa: PLC0415

    found = read_token(_token_text(token_))
    done = enroll.request(found, _address(address, "--address"), out_dir)
    listing("Enrolled", [{**_row(done.identity), "folder": str(out_dir)}], as_json)


def config_nodes(source: str, sets: list[str], data_dir: str | None, roaming: bool) -> Sequence[Node]:
    """The nodes of a config's tree. :param roaming: devices may join any fog

    :raises InputError: devices find their fogs in the run, and may not roam
    """
    config = load(source, sets, None, None, data_dir, None)
    world = world_of(config) if config.deploy.devices else prepare(config, draft=True)
    if moving(world.config.topology.teams) and not roaming:
        raise InputError(
            f"topology.teams = {world.config.topology.teams!r} finds the fog of a device in the run, so a certificate "
            "cannot name it: let devices join any fog (--roaming), or take other teams"
        )
    if not roaming:
        check_roaming(replace(world, config=replace(config, deploy=replace(config.deploy, roaming=False))))
    nodes = tree_nodes(world.topology, world.federation.devices)
    return [_roams(node) if roaming and node.tier == "device" else node for node in nodes]


def _roams(node: Node) -> Node:
    return Node(name=node.name, tier=node.tier, parent=ROAMING, level=node.level, index=node.index)


def _node(authority: "Authority", name: str, tier: str | None, parent: str | None, roaming: bool) -> Node:
    """A node as options name it; what they leave out is as it was issued before, or as its name says."""
    from tierfed.deploy.authority import place_of  # noqa: PLC0415  (an extra)

    if roaming and parent is not None:
        raise InputError(f"--roaming and --parent {parent}: give one of them")
    before = place_of(authority, name)
    kind = name.rpartition("-")[0]
    tier = tier or (before.tier if before else "cloud" if name == "cloud" else "fog" if kind == "fog" else "device")
    if roaming:
        parent = ROAMING
    elif parent is None:
        parent = before.parent if before else {"cloud": "", "fog": "cloud"}.get(tier)
    if parent is None:
        raise InputError(
            f"device {name!r} is new: say which node it may join (--parent fog-0, or --roaming for any fog)"
        )
    return Node(name=name, tier=tier, parent=parent)


def _row(node: "Identity | Any") -> dict[str, Any]:
    end: datetime = node.not_after
    parent = "any" if node.parent == ROAMING else node.parent
    return {"name": node.name, "tier": node.tier, "parent": parent, "serial": f"{node.serial:x}", "until": f"{end:%F}"}


def _token_text(given: str) -> str:
    if given == "-":
        return sys.stdin.readline().strip()
    try:
        path = Path(given)
        return path.read_text("utf-8").strip() if path.is_file() else given
    except (OSError, ValueError):  # too long to be the name of a file
        return given


def _address(text: str, option: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) >= 1 << 16:
        raise InputError(f"{option} {text!r}: wanted HOST:PORT, for example 127.0.0.1:7071")
    return text


def _needed() -> None:
    for package in ("cryptography", "grpc"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f'tierfed keys needs the package {package}: pip install "tierfed[deploy]"')


def _open(folder: Path) -> "Authority":
    _needed()
    from tierfed.deploy.authority import open_authority  # noqa: PLC0415  (an extra)

    return open_authority(folder)


def _tell(text: str) -> None:
    out.print(text, soft_wrap=True, markup=False, highlight=False)

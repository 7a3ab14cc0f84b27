"""`tierfed units`: cloud, fogs and devices as services of systemd."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from tierfed.deploy import files
from tierfed.errors import InputError
from tierfed.output import out

HOME, CONFIG = "/var/lib/tierfed", "/etc/tierfed/run.toml"
NAMES = {
    "cloud": "tierfed-cloud.service",
    "fog": "tierfed-fog@.service",
    "device": "tierfed-device@.service",
}
# Writable memory that can run is left alone: PyTorch makes code for the processor that it finds.
_UNIT = """\
# Made by `tierfed units`; changes belong into `systemctl edit {name}`.
[Unit]
Description=tierfed {what}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=600
StartLimitBurst=20

[Service]
ExecStart={command} {tier} {config}{named} --keys keys
WorkingDirectory={home}/{folder}
User={user}
Group={user}
Environment=TIERFED_DATA={home}/{folder}/data
# 0: the run is over, or somebody has stopped it
Restart=on-failure
RestartSec=10
TimeoutStopSec=60
KillMode=mixed

ProtectSystem=strict
ReadWritePaths={home}/{folder}
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectHome=yes
PrivateTmp=yes
# a run on a GPU (run.device = "cuda") needs PrivateDevices=no
PrivateDevices=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def unit(tier: str, command: str, config: str = CONFIG, home: str = HOME, user: str = "tierfed") -> str:
    """The unit of a tier; that of fogs and devices is a template whose instance is the name of the node.

    :param command: what starts tierfed, an absolute path
    :param home: below it each node has a folder of its own, with its credentials in `keys`
    """
    alone = tier == "cloud"
    return _UNIT.format(
        name=NAMES[tier],
        what="cloud" if alone else f"{tier} %I",
        command=command,
        tier=tier,
        config=config,
        named="" if alone else " --name %I",
        folder="cloud" if alone else "%i",
        home=home,
        user=user,
    )


def units(
    out_dir: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Such as /etc/systemd/system.")] = Path(),
    config: Annotated[str, typer.Option(metavar="FILE", help="The config of all nodes of this machine.")] = CONFIG,
    home: Annotated[str, typer.Option(metavar="FOLDER", help="Each node has a folder below it.")] = HOME,
    user: Annotated[str, typer.Option(help="Who runs them.")] = "tierfed",
) -> None:
    """Write units of systemd: tierfed-cloud, tierfed-fog@NAME, tierfed-device@NAME."""
    for path in (config, home):
        if not os.path.isabs(path) or any(c in path for c in " %\\'\"\n"):
            raise InputError(f"got {path!r}; wanted an absolute path without spaces, quotes and %")
    files.make_folder(out_dir)
    for tier, name in NAMES.items():
        files.write(out_dir / name, unit(tier, _command(), config, home, user).encode())
        out.print(str(out_dir / name), soft_wrap=True, markup=False, highlight=False)


def _command() -> str:
    """This installation."""
    beside = Path(sys.executable).with_name("tierfed")
    found = str(beside) if beside.exists() else shutil.which("tierfed")
    return found or f"{sys.executable} -m tierfed"

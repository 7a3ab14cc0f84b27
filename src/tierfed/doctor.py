"""`tierfed doctor`: what is installed and found here, and what would get in the way of a run."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

import torch
import typer

from tierfed.data import DATASETS
from tierfed.data.download import resolve
from tierfed.options import DataDir, Json
from tierfed.output import err, listing, say

_SMALL_SHM_MIB, _SMALL_DISK_MIB = 256, 1024
_SHARED = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at; a note can be lived with, a problem cannot."""

    topic: str
    state: Literal["ok", "note", "problem"]
    found: str
    todo: str = ""


def doctor(
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What is installed and found here, and common mistakes; exit code 1 where something is a problem."""
    findings = list(examine(os.environ, data_dir))
    bad = [f for f in findings if f.state == "problem"]
    if as_json:
        say({"problems": len(bad), "findings": [asdict(f) for f in findings]})
    else:
        listing("What is here", [asdict(f) for f in findings], False)
        for f in bad:
            err.print(f"{f.topic}: {f.found}; {f.todo}", markup=False, soft_wrap=True, highlight=False)
    if bad:
        raise typer.Exit(1)


def examine(env: Mapping[str, str], data_dir: str | None = None) -> Iterator[Finding]:
    """Everything that is looked at.

    :param env: the variables of the environment
    :param data_dir: in the place of TIERFED_DATA
    """
    yield Finding(topic="tierfed", state="ok", found=f"{_version('tierfed')}, in {Path(__file__).parent}")
    yield Finding(topic="Python", state="ok", found=f"{platform.python_version()} on {platform.platform()}")
    yield from packages()
    yield gpu(torch.cuda.is_available(), _has_gpu(), torch.__version__, _cuda_names())
    yield threads(env, cores(), os.cpu_count() or 1, torch.get_num_threads())
    if _SHARED.is_dir():
        yield shared_memory(shutil.disk_usage(_SHARED).total // 2**20)
    yield data_folder(env, data_dir)
    yield Finding(topic="data sets", state="ok", found=", ".join(_at_hand(data_dir)))
    yield working_folder(Path.cwd())


def packages() -> Iterator[Finding]:
    """What tierfed depends on, and its extras."""
    needed: dict[str, list[str]] = {}
    for line in distribution("tierfed").requires or []:
        name = re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0]
        asked = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        needed.setdefault(asked[1] if asked else "", []).append(name)
    for extra, names in needed.items():
        if extra in ("dev", "docs", "bench"):
            continue
        have = {n: _version(n) for n in names if n != "tierfed"}
        found = ", ".join(f"{n} {v or 'missing'}" for n, v in have.items())
        missing = [n for n, v in have.items() if not v]
        todo = f"pip install 'tierfed[{extra}]', if you want it" if extra else f"pip install {' '.join(missing)}"
        state: Literal["ok", "note", "problem"] = "ok" if not missing else "note" if extra else "problem"
        yield Finding(
            topic=f"extra {extra}" if extra else "packages", state=state, found=found, todo=todo if missing else ""
        )


def gpu(works: bool, there: bool, torch_version: str, names: str) -> Finding:
    """Whether PyTorch sees a GPU.

    :param works: it does; :param there: the machine has one
    """
    if works:
        return Finding(topic="GPU", state="ok", found=f"{names}; PyTorch {torch_version}")
    if there:
        return Finding(
            topic="GPU",
            state="problem",
            found=f"this machine has an NVIDIA GPU, but PyTorch {torch_version} cannot use it",
            todo="install a PyTorch for CUDA, or a driver that fits it (pytorch.org tells which); runs stay on the "
            "processor until then",
        )
    return Finding(topic="GPU", state="ok", found=f"none; PyTorch {torch_version} computes on the processor")


def cores() -> int:
    """Cores that this process may use, by its affinity and by the quota of a container."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
        return own if quota == "max" else min(own, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return own


def threads(env: Mapping[str, str], usable: int, machine: int, of_torch: int) -> Finding:
    """Whether more threads would be started than there are cores to run them."""
    found = f"{usable} of {machine} cores, PyTorch has {of_torch} threads"
    asked = {k: env[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if env.get(k, "").isdigit()}
    many = [f"{k}={v}" for k, v in asked.items() if int(v) > usable]
    if many or of_torch > usable:
        return Finding(
            topic="threads",
            state="problem",
            found=found + "".join(f", {text}" for text in many),
            todo=f"more threads than cores wait for each other: set OMP_NUM_THREADS={usable} or less, or run.threads",
        )
    if env.get("OMP_WAIT_POLICY", "").lower() == "active":
        todo = "threads that spin take the cores of others; unset OMP_WAIT_POLICY where several runs share a machine"
        return Finding(topic="threads", state="note", found=f"{found}, OMP_WAIT_POLICY=active", todo=todo)
    return Finding(topic="threads", state="ok", found=found)


def shared_memory(mib: int) -> Finding:
    """Whether worker processes have room for what they share."""
    if mib >= _SMALL_SHM_MIB:
        return Finding(topic="/dev/shm", state="ok", found=f"{mib:,} MiB")
    todo = "worker processes share models there: give a container more (docker run --shm-size=2g), or engine.workers=1"
    return Finding(topic="/dev/shm", state="problem", found=f"{mib} MiB", todo=todo)


def data_folder(env: Mapping[str, str], data_dir: str | None) -> Finding:
    """Whether the folder of the data sets is there, or can be made, and written to."""
    where = resolve(data_dir or env.get("TIERFED_DATA"))
    named = "--data-dir" if data_dir else "TIERFED_DATA" if env.get("TIERFED_DATA") else ""
    if where.is_dir():
        writable = os.access(where, os.W_OK)
        found = f"{where}{f' ({named})' if named else ''}{'' if writable else ', read-only'}"
        todo = "" if writable else "sets that are not there yet cannot be downloaded into it"
        return Finding(topic="data folder", state="ok" if writable else "note", found=found, todo=todo)
    if named:
        todo = f"make the folder, or correct {named}"
        return Finding(topic="data folder", state="problem", found=f"{named} is {where}, which is no folder", todo=todo)
    above = next(p for p in where.parents if p.exists())
    if os.access(above, os.W_OK):
        return Finding(topic="data folder", state="ok", found=f"{where}, made when a set is downloaded")
    found = f"{where} is not there, and {above} cannot be written to"
    return Finding(topic="data folder", state="problem", found=found, todo="name another folder: TIERFED_DATA")


def working_folder(folder: Path) -> Finding:
    """Whether runs can be written where the user is, and nothing there hides a package."""
    free = shutil.disk_usage(folder).free // 2**20
    found = f"{folder}, {free:,} MiB free"
    hides = [n for n in ("tierfed", "torch", "numpy") if (folder / f"{n}.py").is_file()]
    if not os.access(folder, os.W_OK):
        return Finding(topic="folder", state="problem", found=f"{found}, read-only", todo="work in another one")
    if hides:
        todo = "rename it: Python may import it in the place of the package"
        return Finding(topic="folder", state="problem", found=f"{folder} holds {hides[0]}.py", todo=todo)
    if free < _SMALL_DISK_MIB:
        return Finding(topic="folder", state="note", found=found, todo="checkpoints need room: take another run.out")
    return Finding(topic="folder", state="ok", found=found)


def _at_hand(data_dir: str | None) -> list[str]:
    return [name for name, source in DATASETS.items() if source.available(data_dir)]


def _has_gpu() -> bool:
    return sys.platform == "linux" and Path("/proc/driver/nvidia/version").exists()


def _cuda_names() -> str:
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

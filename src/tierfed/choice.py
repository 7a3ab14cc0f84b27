"""How the visits of a run are computed: with which kernel, by how many processes, how many devices at once."""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tierfed.config import EngineSettings
from tierfed.engine import Engine, Vectorized
from tierfed.engine.evaluate import convolves, message_to, recurs
from tierfed.engine.visits import Job, Workplace
from tierfed.errors import InputError
from tierfed.kernels import BATCHED, KERNELS, equipped, refusal
from tierfed.metrics import write_atomic
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.tree import nbytes, stack

_CACHE_BYTES, _GPU_BYTES = 13 << 18, 1 << 30  # a processor's second cache and a half; a small part of a GPU
_ONE_BY_ONE_BYTES = 1 << 26  # of models that are trained one after the other, and handed over together
_MOST_AT_ONCE, _MOST_ON_GPU, _IN_TURN = 256, 1024, 8
_FLOPS, _STEP_SECONDS = 2e10, 2e-4  # of one core, roughly: what decides whether processes or a trial pay
_MOST_THREADS = 4  # beyond, what Python does between the trainings of a round, in one thread, takes too long
_CREW_SECONDS, _TRIAL_SECONDS = 20.0, 60.0
_TRIAL_STEPS, _TRIALS = 4, 3


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What `Vectorized` computes visits with."""

    kernel: str = "vmap"
    chunk: int = 16
    """Devices at once."""
    workers: int = 1
    """Processes; 0: as many as there will be."""
    shares: int = 1
    """Into how many even shares a cohort is cut at least; 0: one for each worker. It decides on the last bits, so a run
    keeps it, whatever workers it goes on with."""
    bf16: bool = False
    why: str = ""
    gave_way: bool = False
    """Whether the config asks for a kernel that cannot run here."""


def possible(tasks: Sequence[Task], device: torch.device) -> dict[str, str]:
    """Every kernel, and why it cannot run one of the models here; empty: it can."""
    return {name: next(filter(None, (refusal(name, t, device) for t in tasks)), "") for name in KERNELS}


def choose(settings: EngineSettings, engine: Engine, seconds: float, kernel: str = "", shares: int = -1) -> Choice:
    """The choice by rule, or as the config has it; what takes longer than a minute is worth a trial, see `tried`.

    :param seconds: of all rounds on one core, see `round_seconds`
    :param kernel: of the run that goes on; :param shares: likewise
    :raises InputError: bf16 with a kernel that has none, or processes on a GPU
    """
    tasks, device = engine.tasks, torch.device("cuda") if settings.gpus else engine.plan.x.device
    refused = possible(tasks, device)
    name, why = _rule(engine, device, refused)
    wanted = kernel or (settings.kernel if settings.kernel != "auto" else "")
    gave_way = bool(wanted and refused[wanted])
    if gave_way:
        why = f"engine.kernel = {wanted!r} cannot run here: {refused[wanted]}; {name} in its place"
    elif wanted:
        name, why = wanted, "as the run began" if kernel else "engine.kernel"
    if settings.bf16 and name != "loop":
        raise InputError(
            f"engine.bf16 goes with the kernel 'loop' alone, and this model is trained with {name!r} ({why}); set "
            "engine.kernel = 'loop', or leave bf16 out"
        )
    if device.type == "cuda" and settings.workers > 1 and settings.name != "ray":
        raise InputError(
            f"engine.workers = {settings.workers}, but a GPU is shared by no processes; leave workers out, or set "
            "run.device = 'cpu'"
        )
    enough = name == "native" and cores() <= _MOST_THREADS  # threads of this process train as fast as other processes
    crew = device.type == "cpu" and seconds >= _CREW_SECONDS and not enough
    workers = settings.workers or (0 if settings.name == "ray" else cores() if crew else 1)
    chunk = settings.chunk or min(chunk_of(task, name, device) for task in tasks)
    return Choice(
        kernel=name,
        chunk=chunk,
        workers=workers,
        shares=workers if shares < 0 else shares,
        bf16=settings.bf16,
        why=why,
        gave_way=gave_way,
    )


def worth_a_trial(settings: EngineSettings, seconds: float, choice: Choice) -> bool:
    """Whether kernels should be compared before the first round of a run that takes so long on one core: not where
    the rule has found the one that is the fastest wherever it runs.
    """
    free = settings.kernel == "auto" and not settings.bf16 and not settings.gpus
    return free and choice.kernel != "native" and seconds >= _TRIAL_SECONDS


def tried(choice: Choice, settings: EngineSettings, engine: Vectorized, tell: Callable[[str], None] | None) -> Choice:
    """The kernel that is the fastest for a few steps of a few devices; remembered for this model on this machine."""
    device = engine.plan.x.device
    names = [name for name, why in possible(engine.tasks, device).items() if not why and name != "compile"]
    memory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierfed" / "kernels.json"
    known, key = _read(memory), _key(engine)
    how = "remembered"
    if known.get(key, {}).keys() != set(names):
        if tell is not None:
            tell(f"trying kernels: {', '.join(names)}")
        turns = [{name: _seconds(engine, name, device) for name in names} for _ in range(_TRIALS)]
        known[key], how = {name: min(t[name] for t in turns) for name in names}, "measured"
        _write(memory, known)
    best = min(known[key], key=known[key].__getitem__)
    each = ", ".join(f"{name} {1e3 * s:.3g}" for name, s in sorted(known[key].items(), key=lambda item: item[1]))
    chunk = settings.chunk or min(chunk_of(task, best, device) for task in engine.tasks)
    return replace(choice, kernel=best, chunk=chunk, why=f"{how}, ms per device and {_TRIAL_STEPS} steps: {each}")


def chunk_of(task: Task, kernel: str, device: torch.device) -> int:
    """Devices per chunk: their models together stay in a processor's cache, or fill a small part of a GPU."""
    if kernel not in BATCHED:
        return _IN_TURN
    size = max(1, nbytes(task.init()))
    if device.type == "cuda":
        return min(max(4, _GPU_BYTES // size), _MOST_ON_GPU)
    room = _ONE_BY_ONE_BYTES if kernel == "native" else _CACHE_BYTES
    return min(max(4, room // size), _MOST_AT_ONCE)


def _rule(engine: Engine, device: torch.device, refused: dict[str, str]) -> tuple[str, str]:
    tasks = engine.tasks
    if any(recurs(task.module) for task in tasks):
        return "loop", "recurrent layers have no batched form"
    if not refused["native"]:
        return "native", "a chain of layers that C code knows"
    if not refused["graphs"] and _even(engine):
        return "graphs", "a chain of dense layers, and as many steps for every device"
    if not refused["fused"]:
        return "fused", "a chain of dense layers"
    if device.type == "cpu" and any(convolves(task.module) for task in tasks):
        return "loop", "convolutions of many models at once are slow on a processor"
    return "vmap", "a model of other layers than dense ones" if device.type == "cpu" else "many models at once"


def _even(engine: Engine) -> bool:
    """Whether all devices take as many steps on batches as wide, as far as the first thousand tell."""
    some = np.arange(min(engine.topology.devices, 1000), dtype=np.int64)
    plan = engine.plan
    return len(np.unique(plan.counts(some, engine.algorithm))) == 1 == len(np.unique(plan.widths[some]))


def round_seconds(engine: Engine) -> float:
    """Roughly how long one core trains for one round."""
    plan, some = engine.plan, np.linspace(0, engine.topology.devices - 1, 100).astype(np.int64)
    samples = float(plan.work(some, engine.algorithm).mean())
    steps = samples / float(plan.widths[some].mean())
    flops = 3 * max(_forward_flops(task, plan) for task in engine.tasks)  # backward: twice the forward pass
    return visits(engine) * (samples * flops / _FLOPS + steps * _STEP_SECONDS)


def _forward_flops(task: Task, plan: Plan) -> float:
    """Floating-point operations of a forward pass with one sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.outputs(task.init(), plan.x[:1])
    return float(counter.get_total_flops())


def visits(engine: Engine) -> float:
    """Visits of devices per round."""
    topology, polled = engine.topology, 1.0
    for d, policy in enumerate(topology.policies):
        n = topology.shape[d + 1] / topology.shape[d]
        polled *= (min(policy.sample, n) if isinstance(policy.sample, int) else policy.sample * n) * engine.bursts(d)
    return polled


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(engine: Vectorized, name: str, device: torch.device) -> float:
    """Seconds per device of a few steps with a kernel, the second time; infinite where vmap cannot map the model."""
    kind = engine.kind(0)
    chunk = chunk_of(engine.tasks[kind], name, device)
    same = np.flatnonzero(engine.plan.widths[:1000] == engine.plan.width(0))
    ids = np.array([i for i in same if engine.kind(int(i)) == kind][:chunk])
    place = Workplace(
        algorithm=engine.algorithm,
        tasks=engine.tasks if name == "vmap" else [equipped(task, name) for task in engine.tasks],
        plan=engine.plan,
        batched=name in BATCHED,
        most_steps=_TRIAL_STEPS,
    )
    messages, states = stack([message_to(engine, 0)]), stack([engine.own(int(i)) for i in ids])
    job = Job(kind, ids, np.zeros(len(ids), np.int64), 0, 0)
    start = 0.0
    for _ in range(2):
        start = time.perf_counter()
        try:
            place.visit(job, messages, states)
        except RuntimeError:
            if name not in BATCHED:
                raise
            return math.inf
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / len(ids)


def _key(engine: Engine) -> str:
    """What a trial depends on."""
    plan = engine.plan
    machine = (platform.machine(), platform.processor(), os.cpu_count(), torch.get_num_threads(), str(plan.x.device))
    gpu = torch.cuda.get_device_name(plan.x.device) if plan.x.device.type == "cuda" else ""
    models = [str(task.module) for task in engine.tasks]
    facts = (torch.__version__, machine, gpu, models, repr(engine.algorithm), plan.batch, str(plan.dtype))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, known: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(known))
    except OSError:
        return  # then it is measured again

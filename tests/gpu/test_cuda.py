"""On a GPU: every algorithm and every kernel do in float64 what the serial engine does on a processor."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tierfed
from laws.cases import CASES, fits, task_of
from tierfed.algorithm import Data
from tierfed.config import load_config
from tierfed.kernels import equipped
from tierfed.models import build_model
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.testing import gap
from tierfed.testing.trees import MODES, Trace, by_name, evaluated, happened, relative, small_plan, walked
from tierfed.tree import Params, Tree

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
KERNELS = ("vmap", "fused", "graphs")


def on_gpu(task: Task, plan: Plan) -> tuple[Task, Plan]:
    there = copy.deepcopy(task)
    there.to(GPU)
    return there, replace(plan, x=plan.x.to(GPU), y=plan.y.to(GPU))


def at_home(tree: Tree) -> Tree:
    return {k: at_home(v) if isinstance(v, dict) else v.cpu() for k, v in tree.items()}


def agree(a: Trace, b: Trace, limit: float = 1e-9) -> None:
    """Same bytes and events; records and evaluated models to rounding."""
    assert [happened(log) for log in a.logs] == [happened(log) for log in b.logs]
    for kept in (by_name, evaluated):
        assert relative(at_home(kept(a.engine)), at_home(kept(b.engine))) <= limit


@pytest.mark.parametrize("name", [name for name in CASES if fits(name, "4 tiers")])
def test_every_algorithm(name: str) -> None:
    task, plan = task_of(name), small_plan()
    wanted = walked("serial", CASES[name], task, plan, "4 tiers", MODES["lossy"], 2)
    agree(walked("vectorized", CASES[name], *on_gpu(task, plan), "4 tiers", MODES["lossy"], 2), wanted)


@pytest.mark.parametrize("kernel", ["fused", "graphs"])
@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold", "permfl", "ditto", "fedper", "fedbn", "jobfed"])
def test_kernels_in_rounds(name: str, kernel: str) -> None:
    task, plan = task_of(name), small_plan()
    wanted = walked("serial", CASES[name], task, plan, "4 tiers", MODES["lossy"], 2)
    there, moved = on_gpu(task, plan)
    agree(walked("vectorized", CASES[name], equipped(there, kernel), moved, "4 tiers", MODES["lossy"], 2), wanted)


@pytest.mark.parametrize("name", ["fedavg", "jobfed", "pfedhn"])
def test_the_serial_engine(name: str) -> None:
    task, plan = task_of(name), small_plan()
    wanted = walked("serial", CASES[name], task, plan, "3 tiers", MODES["full"], 2)
    agree(walked("serial", CASES[name], *on_gpu(task, plan), "3 tiers", MODES["full"], 2), wanted)


def cohort(task: Task, shape: tuple[int, ...], where: torch.device, again: int) -> Params:
    """Nine devices of twelve samples after four steps by `task.train`; `again`: other rows, rates and drifts."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(108, *shape, generator=rng, dtype=torch.float64), torch.randint(4, (108,), generator=rng)
    rng.manual_seed(again)
    rows = 12 * torch.arange(9)[:, None, None, None] + torch.randint(12, (9, 2, 2, 6), generator=rng)
    rate = 0.05 + 0.1 * torch.rand(9, generator=rng, dtype=torch.float64)
    start = {k: v.cpu() for k, v in task.init().items()}
    drift = {k: 0.01 * torch.randn(9, *start[k].shape, generator=rng, dtype=torch.float64) for k in task.trainable}
    x, y, rows, rate = (t.to(where) for t in (x, y, rows, rate))
    start, drift = ({k: v.to(where) for k, v in tree.items()} for tree in (start, drift))
    live = torch.ones(rows.shape[:3], dtype=torch.bool, device=where)
    seed = torch.zeros(rows.shape[:3], dtype=torch.int64, device=where)

    def one(rows: Tensor, live: Tensor, seed: Tensor, rate: Tensor, drift: Params) -> Params:
        data = Data(x, y, rows, live, seed, rows[0, 0], live[0], ragged=False)
        return task.train(start, data, rate, drift=drift, pull=(0.3, start))

    return at_home(torch.func.vmap(one)(rows, live, seed, rate, drift))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_called_several_times(kernel: str) -> None:
    """A graph that was captured once is played with other rates, drifts and rows, on a pool at another place too."""
    task = task_of("fedavg")
    there = copy.deepcopy(task)
    there.to(GPU)
    there = equipped(there, kernel)
    for again in (0, 1, 0, 2):
        assert gap(cohort(there, (8,), GPU, again), cohort(task, (8,), torch.device("cpu"), again)) <= 1e-10


def test_convolutions_of_many_models() -> None:
    net = build_model("har_cnn", (3, 20, 20), 4, {}, seed=0).double()
    task = Task(net)
    there = Task(net.to(GPU))
    assert gap(cohort(there, (3, 20, 20), GPU, 0), cohort(task, (3, 20, 20), torch.device("cpu"), 0)) <= 1e-9


@pytest.mark.parametrize("kernel", ["auto", "vmap", "fused", "graphs"])
def test_a_run_by_its_config(kernel: str) -> None:
    """Accuracy and loss of every device are those of a processor."""
    scores = {}
    for device, how in (("cpu", {"engine.name": "serial"}), ("cuda", {"engine.kernel": kernel})):
        given = {"run.device": device, "run.dtype": "float64", "run.rounds": 2, "eval.every": 1, **how}
        run = tierfed.run(load_config("quickstart", given), folder=False)
        scores[device] = {row[:-1]: row.value for row in run.rows if row.metric in ("accuracy", "loss")}
    assert scores["cpu"].keys() == scores["cuda"].keys()
    assert max(abs(v - scores["cuda"][k]) for k, v in scores["cpu"].items()) <= 1e-9


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    """Stopped after a round and resumed on the GPU: the models of the run that was never stopped, bit by bit."""
    given = {"run.device": "cuda", "run.rounds": 2, "eval.every": 1}
    straight = tierfed.run(load_config("quickstart", {**given, "run.out": str(tmp_path / "a")}))
    tierfed.run(load_config("quickstart", {**given, "run.out": str(tmp_path / "b"), "run.rounds": 1}))
    again = tierfed.resume(tmp_path / "b", rounds=2)
    here, there = straight.global_model().state_dict(), again.global_model().state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(here[k], there[k]) for k in here)

"""Worker processes: the same bits as one process, and nothing left behind when something is lost."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zygote
from laws.cases import CASES, task_of
from tierfed.engine.arena import Arena, Windows
from tierfed.engine.processes import Processes, answer
from tierfed.engine.vectorized import Vectorized
from tierfed.errors import InputError
from tierfed.task import Task
from tierfed.testing.toy import apart, gap, make_engine
from tierfed.testing.trees import MODES, evaluated, happened, small_plan, trees
from tierfed.tree import tmap


def engine_of(
    name: str, workers: int, tree: str = "4 tiers", kernel: str = "vmap", task: Task | None = None
) -> Vectorized:
    mode = MODES["lossy"]
    settings = trees(mode.participation)[tree]
    engine = make_engine("vectorized", CASES[name], task or task_of(name), small_plan(), settings, mode.faults)
    assert isinstance(engine, Vectorized)
    engine.workers, engine.kernel, engine.chunk = workers, kernel, 2
    return engine


@pytest.fixture
def engines() -> Iterator[list[Vectorized]]:
    """Engines that are closed at the end of the test."""
    made: list[Vectorized] = []
    yield made
    for engine in made:
        engine.close()


def pids(engine: Vectorized) -> list[int]:
    crew = engine.crew
    assert isinstance(crew, Processes)
    return [worker.pid for worker in crew.begun]


def gone(pid: int) -> bool:
    """Whether a process has ended, be it as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(pids: list[int], seconds: float = 200.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(gone(p) for p in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("name", "kernel", "workers"), [("jobfed", "fused", 3), ("ditto", "loop", 2)])
def test_as_many_workers_as_you_like_give_the_same_bits(
    engines: list[Vectorized], name: str, kernel: str, workers: int
) -> None:
    """State of devices, stacked replies, messages of several parents, lost ones and chunks of unequal size."""
    alone, shared = engine_of(name, 1, kernel=kernel), engine_of(name, workers, kernel=kernel)
    engines += [alone, shared]
    logs = [[happened(e.step()) for _ in range(2)] for e in (alone, shared)]
    assert logs[0] == logs[1]
    assert apart(alone, shared) == 0.0
    assert gap(evaluated(alone), evaluated(shared)) == 0.0
    assert len(set(pids(shared))) == workers
    assert os.getpid() not in pids(shared)


class Local(nn.Module):
    """A user's own module: it is known in this process alone, as one that is written in a notebook."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sin(self.a(x)))  # type: ignore[no-any-return]


def test_a_model_of_a_notebook_travels(engines: list[Vectorized], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Local, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Local", Local, raising=False)
    task = Task(Local().double())
    pair = [engine_of("fedavg", w, "flat", task=task) for w in (1, 2)]
    engines += pair
    for engine in pair:
        engine.step()
    assert apart(*pair) == 0.0


def test_a_killed_worker_is_an_error_and_takes_the_others_with_it(engines: list[Vectorized]) -> None:
    """After it the run goes on to the same bits."""
    alone, engine = engine_of("scaffold", 1), engine_of("scaffold", 2)
    engines += [alone, engine]
    engine.step()
    engine.store.commit({}, [])
    before = pids(engine)
    os.kill(before[1], signal.SIGKILL)
    with pytest.raises(InputError, match=r"a worker process died \(signal 9\).*engine.workers.*resume") as found:
        engine.step()
    assert "\n" not in str(found.value)
    assert wait_for(before)
    engine.store.discard()
    engine.step()  # others are begun in their place
    assert set(pids(engine)).isdisjoint(before)
    for _ in range(2):
        alone.step()
    assert apart(alone, engine) == 0.0


class Failing(nn.Module):
    """Fails in the way that is asked for, but not in the process that made it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how, self.home = nn.Linear(8, 4), how, os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home:
            if self.how == "memory":
                raise MemoryError
            raise ZeroDivisionError("by the user")
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("memory", InputError, r"no memory left; take fewer workers \(engine.workers\)"),
        ("otherwise", RuntimeError, r"in forward\b[\s\S]*ZeroDivisionError: by the user"),
    ],
)
def test_what_fails_in_a_worker_is_said_here(how: str, error: type[Exception], said: str) -> None:
    """Without memory what to do; of other errors the place too."""
    engine = engine_of("fedavg", 2, "flat", "loop", Task(Failing(how).double()))
    with pytest.raises(error, match=said):
        engine.step()
    assert pids(engine) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.", "refused"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "refused"),
        ("unsupported memory format", "failed"),
    ],
)
def test_which_errors_say_that_memory_is_short(text: str, kind: str) -> None:
    def compute() -> None:
        raise RuntimeError(text)

    found, said = answer(compute)
    assert found == kind
    assert ("engine.workers" in said) == (kind == "refused")


PARENT = """
import signal
from unit.test_processes import engine_of, pids
engine = engine_of("fedavg", 2)
engine.step()
print(*pids(engine), flush=True)
signal.pause()
"""


def test_workers_end_with_their_parent() -> None:
    tests = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with zygote.start("-c", PARENT, cwd=tests, env=env) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert not any(gone(p) for p in workers)
        parent.send_signal(signal.SIGKILL)
        assert wait_for(workers)


class TestArena:
    def tree(self) -> dict[str, Any]:
        return {
            "a": torch.arange(7.0),
            "b": {"c": torch.ones(2, 3, dtype=torch.bool), "none": torch.zeros(0, 4)},
            "d": {},
        }

    def test_what_was_put_is_seen(self) -> None:
        arena, windows, tree = Arena(), Windows(), self.tree()
        seen = windows.get(arena.put(tree))
        assert seen["d"] == {}
        tmap(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), seen, tree)

    def test_it_grows_and_is_used_again(self) -> None:
        arena, windows = Arena(), Windows()
        for size in (10, 10**6, 3 * 10**6, 5):
            arena.clear()
            trees = [{"x": torch.full((size,), float(k))} for k in range(3)]
            places = [arena.put(t) for t in trees]
            windows.keep(places)
            for k, place in enumerate(places):
                assert windows.get(place)["x"].eq(k).all()
        paths = {p["x"].path for p in places}
        assert len(paths) == 1  # one piece is left, of the largest size that was needed

    def test_a_path_that_is_taken_again_is_other_memory(self) -> None:
        windows = Windows()
        for k in range(4):
            place = Arena().put({"x": torch.full((3,), float(k))})
            del place
            arena = Arena()
            assert windows.get(arena.put({"x": torch.full((3,), float(k))}))["x"].tolist() == [float(k)] * 3

    def test_more_than_there_is(self) -> None:
        huge = torch.zeros(1).expand(1 << 45)
        with pytest.raises(InputError, match=r"MiB of shared memory are not to be had .*engine.workers = 1"):
            Arena().put({"x": huge})

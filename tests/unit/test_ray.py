"""Ray workers: the same bits as one process, also when a machine is lost in the middle of a round."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tierfed
import zygote
from tierfed.engine import ray_cluster, ray_crew
from tierfed.engine.ray_cluster import Cluster, check_address
from tierfed.engine.ray_crew import RayCrew
from tierfed.engine.vectorized import Vectorized
from tierfed.engine.visits import Here
from tierfed.errors import InputError
from tierfed.loop import open_run
from tierfed.task import Task
from tierfed.testing.toy import apart, gap
from tierfed.testing.trees import evaluated, happened
from unit.test_processes import Failing, engine_of, wait_for

TESTS = str(Path(__file__).parents[1])
QUICK: dict[str, Any] = {
    "data.devices": 5, "run.rounds": 3, "algorithm.name": "fedavg", "model.name": "mlp", "topology.fogs": 2,
    "topology.teams": "sequential", "eval.post": False, "eval.every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two machines with one processor each, on the loopback device, which this process has joined."""
    import ray.cluster_utils
    from ray._private import ray_constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # the workers' machines have our code
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as there, where Ray takes 127.0.0.1
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        patch.setattr(ray_crew, "_BEGIN_SECONDS", 240.0)  # on a loaded machine
        made = ray.cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.add_node(num_cpus=1)
        joined = Cluster(made.address, 0, 0)
        yield made
        joined.close()
        made.shutdown()


@pytest.fixture
def engines(cluster: Any) -> Iterator[list[Vectorized]]:
    """Engines that are closed at the end of the test."""
    made: list[Vectorized] = []
    yield made
    for engine in made:
        engine.close()


def on_ray(
    name: str, workers: int, tree: str = "4 tiers", kernel: str = "vmap", task: Task | None = None
) -> Vectorized:
    engine = engine_of(name, 1, tree, kernel, task)
    engine.hire = partial(RayCrew, workers=workers)
    return engine


def plain(engine: Vectorized, task: Task, crew: Any) -> Vectorized:
    """The engine with a crew that computes the module as it is, one device after the other."""
    engine.hire = lambda place: crew(replace(place, tasks=[task], batched=False))
    return engine


def crew_of(engine: Vectorized) -> RayCrew:
    assert isinstance(engine.crew, RayCrew)
    return engine.crew


def test_workers_on_two_machines_give_the_same_bits(engines: list[Vectorized]) -> None:
    """Stacked replies and states; a kernel that trains one device after the other: the test of what was lost."""
    alone, shared = engine_of("jobfed", 1, kernel="fused"), on_ray("jobfed", 2, kernel="fused")
    engines += [alone, shared]
    logs = [[happened(e.step()) for _ in range(2)] for e in (alone, shared)]
    assert logs[0] == logs[1]
    assert apart(alone, shared) == 0.0
    assert gap(evaluated(alone), evaluated(shared)) == 0.0
    assert len({actor.node for actor in crew_of(shared).actors}) == 2


class Watched(nn.Module):
    """Writes down where it is computed; on the machine that `folder`/stop names it waits to be killed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.layer, self.folder = nn.Linear(8, 4), folder

    def forward(self, x: Tensor) -> Tensor:
        import ray

        where = ray.get_runtime_context().get_node_id() if "ray" in sys.modules and ray.is_initialized() else "here"
        stop = self.folder / "stop"
        if stop.exists() and stop.read_text() == where:
            (self.folder / "held").write_text(str(os.getpid()))
            time.sleep(300)
        with (self.folder / "where").open("a") as file:
            file.write(f"{where}\n")
        return self.layer(x)  # type: ignore[no-any-return]

    def computed_at(self) -> set[str]:
        return set((self.folder / "where").read_text().split())


@pytest.fixture
def doomed(cluster: Any) -> Iterator[Any]:
    """One more machine with one processor, until the end of the test at the latest."""
    node = cluster.add_node(num_cpus=1)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


@pytest.mark.parametrize("what", ["machine", "process"])
def test_what_was_lost_in_a_round_is_computed_elsewhere(
    engines: list[Vectorized], cluster: Any, doomed: Any, tmp_path: Path, what: str
) -> None:
    """The last of the machines, or its worker, is killed while it computes a visit."""
    import ray

    torch.manual_seed(0)
    module = Watched(tmp_path)
    task = Task(module.double())
    alone, shared = (
        plain(engine_of("ditto", 1, task=task), task, crew) for crew in (Here, partial(RayCrew, workers=3))
    )
    engines += [alone, shared]
    shared.step()
    crew, node = crew_of(shared), doomed.node_id
    assert node in module.computed_at()
    (tmp_path / "where").write_text("")
    (tmp_path / "stop").write_text(node)

    def kill() -> None:
        end = time.monotonic() + 200
        while not (tmp_path / "held").exists() and time.monotonic() < end:
            time.sleep(0.02)
        if what == "machine":
            cluster.remove_node(doomed, allow_graceful=False)
        else:
            (tmp_path / "stop").unlink()  # its successor may begin there in the same round
            os.kill(int((tmp_path / "held").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        shared.step()
    finally:
        killer.join()
    assert (tmp_path / "held").exists()
    if what == "machine":
        shared.step()
        assert [actor.node == node for actor in crew.actors] == [False] * 2
        assert node not in module.computed_at()
    else:
        wait_until(lambda: len(grown(crew, shared)) == 3)  # the machine is there: a successor has begun
        cluster.remove_node(doomed)
    for _ in range(shared.round):
        alone.step()
    assert apart(alone, shared) == 0.0
    assert ray.is_initialized()


def grown(crew: RayCrew, engine: Vectorized) -> list[Any]:
    engine.step()
    return crew.actors


def wait_until(holds: Any, seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


class Deadly(nn.Module):
    """Ends every other process than the one that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.home = nn.Linear(8, 4), os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home:
            os._exit(1)
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("workers", "tries", "text"),
    [
        (2, 3, r"all Ray workers were lost \(its worker process has died.*tierfed resume"),
        (1, 1, "a chunk of devices \\([12]\\) has lost its Ray worker 1 times"),
    ],
)
def test_a_visit_that_nobody_survives(
    engines: list[Vectorized], monkeypatch: pytest.MonkeyPatch, workers: int, tries: int, text: str
) -> None:
    monkeypatch.setattr(ray_crew, "_TRIES", tries)
    task = Task(Deadly().double())
    engine = plain(engine_of("fedavg", 1, "flat", task=task), task, partial(RayCrew, workers=workers))
    engines.append(engine)
    with pytest.raises(InputError, match=text) as found:
        engine.step()
    assert "\n" not in str(found.value)


class Absent(nn.Module):
    """Its code is where it was made, and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.home = nn.Linear(8, 4), os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["home"] != os.getpid():
            raise ModuleNotFoundError("No module named 'mine'")
        vars(self).update(state)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def test_code_that_a_machine_does_not_have(engines: list[Vectorized]) -> None:
    task = Task(Absent().double())
    engines.append(plain(engine_of("fedavg", 1, "flat", task=task), task, partial(RayCrew, workers=1)))
    with pytest.raises(
        InputError, match=r"cannot begin: .*No module named 'mine'; every machine needs the same"
    ) as found:
        engines[0].open()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("memory", InputError, r"no memory left; take fewer workers \(engine.workers\)"),
        ("otherwise", RuntimeError, "ZeroDivisionError: by the user"),
    ],
)
def test_what_fails_in_a_visit_fails_here(
    engines: list[Vectorized], how: str, error: type[Exception], text: str
) -> None:
    task = Task(Failing(how).double())
    engine = plain(engine_of("fedavg", 1, "flat", task=task), task, partial(RayCrew, workers=1))
    engines.append(engine)
    with pytest.raises(error, match=text):
        engine.step()


def test_a_run_goes_on_with_another_engine(cluster: Any, tmp_path: Path) -> None:
    """And has the numbers of a run with neither a stop nor Ray."""
    begun = {**QUICK, "run.rounds": 1, "run.out": str(tmp_path / "two"), "engine.workers": 2}
    whole = tierfed.run(tierfed.load_config("quickstart", {**QUICK, "engine.workers": 2}), folder=False)
    tierfed.run(tierfed.load_config("quickstart", begun))
    parts = tierfed.resume(tmp_path / "two", rounds=3, engine={"name": "ray"})
    assert parts.rows == whole.rows
    assert gap(parts.engine.kept(0, 0), whole.engine.kept(0, 0)) == 0.0
    with open_run(tmp_path / "two") as left:  # needs no cluster
        assert left.world.engine_name == "vectorized"


class TestErrors:
    @pytest.mark.parametrize(
        ("asked", "text"),
        [
            (
                {"workers": 99},
                r"engine.workers = 99, each with one processor, but .* 2 processors and 0 GPUs: room for 2;",
            ),
            ({"gpus": 0.5}, r"each with one processor and 0.5 GPUs \(engine.gpus\).*room for 0"),
        ],
    )
    def test_no_room(self, cluster: Any, asked: dict[str, Any], text: str) -> None:
        engine = engine_of("fedavg", 1)
        engine.hire = partial(RayCrew, **asked)
        with pytest.raises(InputError, match=text):
            engine.open()

    def test_it_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(InputError, match=r'not installed: pip install "tierfed\[ray\]"'):
            tierfed.run({"engine": {"name": "ray"}}, folder=False)

    @pytest.mark.parametrize(
        ("address", "text"),
        [
            ("ray://10.0.0.1:10001", "client protocol is not supported; run tierfed on a machine of the cluster"),
            ("head", "wanted 'auto', or host:port"),
            ("head:x", "wanted 'auto', or host:port"),
            ("head:99999", "wanted 'auto', or host:port"),
        ],
    )
    def test_no_address(self, address: str, text: str) -> None:
        with pytest.raises(InputError, match=text):
            check_address(address)

    def test_an_address_for_another_engine(self) -> None:
        with pytest.raises(InputError, match=r"engine.address is of engine.name = 'ray', but engine.name = 'auto'"):
            tierfed.run({"engine": {"address": "auto"}}, folder=False)

    def test_nobody_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_cluster, "_REACH_SECONDS", 1)
        with pytest.raises(
            InputError, match=r"no Ray cluster can be reached there \(.*\); `ray start --head` begins one"
        ):
            ray_cluster._reach("127.0.0.1:9")

    def test_another_version(self, cluster: Any) -> None:
        out, err = script(OTHER_VERSION, cluster.address).communicate(timeout=250)
        assert "does not fit to this process" in out, err
        assert "Ray: 0.1" in out


OTHER_VERSION = """
import sys
import ray
from tierfed.engine.ray_cluster import Cluster
from tierfed.errors import InputError
ray.__version__ = "0.1"
try:
    Cluster(sys.argv[1], 0, 0)
except InputError as err:
    print(err)
"""

LOCAL = """
import json, os, signal, sys
from pathlib import Path
from unit.test_ray import on_ray, offspring, listening, engine_of, apart
alone, engine = engine_of("fedavg", 1), on_ray("fedavg", 1)
before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
try:
    for e in (alone, engine):
        e.step()
    pids = offspring(os.getpid())
    said = {"pids": pids, "gap": apart(alone, engine), "hears": sorted(listening([os.getpid(), *pids]))}
    print(json.dumps(said), flush=True)
    signal.pause()
except (KeyboardInterrupt, SystemExit):
    engine.close()
    same = before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    print("closed" if same else "other signals", offspring(os.getpid()), flush=True)
"""


def script(text: str, *arguments: str) -> zygote.Child:
    paths = os.pathsep.join([TESTS, *filter(None, sys.path)])
    return zygote.start("-c", text, *arguments, cwd=Path.cwd(), env={**os.environ, "PYTHONPATH": paths})


def offspring(pid: int) -> dict[int, str]:
    """All processes below one, with their names."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents.setdefault(int(parent), []).append(int(stat.parent.name))
    found, below = {}, parents.get(pid, [])
    while below:
        one = below.pop()
        below += parents.get(one, [])
        found[one] = Path(f"/proc/{one}/cmdline").read_text().replace("\0", " ").strip()
    return found


def listening(pids: list[int]) -> set[str]:
    """Addresses, as the system writes them, on which some processes listen."""
    sockets = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(fd))
            except OSError:
                continue
    lines = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    return {f[1].split(":")[0] for f in lines if f[3] == "0A" and f"socket:[{f[9]}]" in sockets}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cluster_of_this_machine_hears_itself_alone_and_ends_with_the_run(number: signal.Signals) -> None:
    """127.0.0.1 is 0100007F in the system's tables, ::ffff:127.0.0.1 ends with it."""
    with script(LOCAL) as parent:
        said = json.loads(parent.stdout.readline())
        said["pids"] = {int(pid): name for pid, name in said["pids"].items()}
        assert said["gap"] == 0.0
        assert len(said["pids"]) > 3
        assert said["hears"]
        assert all(address.endswith("0100007F") for address in said["hears"])
        os.killpg(parent.pid, number) if number == signal.SIGINT else parent.send_signal(number)
        if number == signal.SIGKILL:  # nobody ends Ray's two helpers then: they look around every minute
            assert wait_for([p for p, name in said["pids"].items() if not name.endswith("Agent")])
        else:
            assert parent.stdout.readline() == "closed {}\n"
            assert wait_for(list(said["pids"]))

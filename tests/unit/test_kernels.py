"""Every kernel does what `data.fold(task.step)` does, to rounding, whatever model, operands and data are."""

import copy
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

from tierfed.algorithm import Data
from tierfed.errors import InputError
from tierfed.kernels import BATCHED, KERNELS, call, compiled, equipped, fused, native, refusal
from tierfed.models import MODELS, build_model
from tierfed.offload import SplitTask
from tierfed.task import LOSSES, Task, cross_entropy
from tierfed.testing.toy import gap, toy_net, toy_plan, toy_task

CPU = torch.device("cpu")
CLOSE = 1e-12
FEATURES = 6


@st.composite
def chains(draw: st.DrawFn) -> nn.Sequential:
    """Up to three hidden layers with norms of all kinds, where they may be; samples come as [2, 3]."""
    layers: list[nn.Module] = [nn.Flatten()]
    width, seed = FEATURES, draw(st.integers(0, 10**6))
    if draw(st.booleans()):
        layers.append(nn.ReLU())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for _ in range(draw(st.integers(0, 3))):
            following = draw(st.integers(1, 5))
            layers.append(nn.Linear(width, following, bias=draw(st.booleans())))
            width = following
            for kind in draw(st.permutations(["norm", "relu"])):
                if draw(st.booleans()):
                    layers.append(nn.ReLU() if kind == "relu" else draw(norms(width)))
        if draw(st.booleans()):
            layers.append(draw(norms(width)))
        layers.append(nn.Linear(width, 3, bias=draw(st.booleans())))
    return nn.Sequential(*layers).double()


@st.composite
def pictured(draw: st.DrawFn) -> nn.Sequential:
    """Up to two convolutions with pools, norms and ReLU in any order, then dense layers; samples come as [2, 9, 7]."""
    layers: list[nn.Module] = []
    channels, size, seed = 2, (9, 7), draw(st.integers(0, 10**6))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for _ in range(draw(st.integers(1, 2))):
            following, window = draw(st.integers(1, 9)), tuple(draw(st.integers(1, min(3, n))) for n in size)
            padding = tuple(draw(st.integers(0, k - 1)) for k in window)
            layers.append(nn.Conv2d(channels, following, window, padding=padding, bias=draw(st.booleans())))
            channels = following
            size = tuple(n + 2 * p - k + 1 for n, p, k in zip(size, padding, window, strict=True))
            for kind in draw(st.permutations(["norm", "relu", "pool"])):
                if kind == "pool" and min(size) >= 3 and draw(st.booleans()):
                    k, stride = draw(st.integers(2, 3)), draw(st.integers(1, 3))
                    layers.append(nn.MaxPool2d(k, stride))
                    size = tuple((n - k) // stride + 1 for n in size)
                elif kind != "pool" and draw(st.booleans()):
                    layers.append(nn.ReLU() if kind == "relu" else nn.BatchNorm2d(channels, affine=draw(st.booleans())))
        width = channels * size[0] * size[1]
        layers.append(nn.Flatten())
        if draw(st.booleans()):
            layers += [nn.Linear(width, 5), nn.ReLU()]
            width = 5
        layers.append(nn.Linear(width, 3))
    return nn.Sequential(*layers).double()


@st.composite
def norms(draw: st.DrawFn, width: int) -> nn.BatchNorm1d:
    momentum, eps = draw(st.sampled_from([0.1, 0.7])), draw(st.sampled_from([1e-3, 0.1]))
    affine, tracked = draw(st.booleans()), draw(st.booleans())
    norm = nn.BatchNorm1d(width, eps=eps, momentum=momentum, affine=affine, track_running_stats=tracked)
    for p in norm.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return norm


class World:
    """A call of train for some devices: a function of (task, place of the operands of a device)."""

    def __init__(self, draw: Any, module: nn.Module, shape: tuple[int, ...] = (2, 3)) -> None:
        self.c = draw(st.integers(1, 4))
        rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
        self.task = Task(
            module, draw(st.sampled_from([cross_entropy, LOSSES["mse"]])), draw(st.sampled_from([0.0, 0.2]))
        )
        e, s, b = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(3, 4))

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        def row(n: int) -> Tensor:
            return torch.stack([torch.randperm(40, generator=rng)[:b] for _ in range(n)])

        self.x = noise(40, *shape)
        classes = self.task.loss is cross_entropy
        self.y = torch.randint(0, 3, (40,), generator=rng) if classes else noise(40, 3)
        self.rows = row(self.c * e * s).view(self.c, e, s, b)
        self.ragged = draw(st.booleans())
        self.live = torch.rand(self.c, e, s, generator=rng) < (0.6 if self.ragged else 2.0)
        self.seed = torch.zeros(self.c, e, s, dtype=torch.int64)
        start = self.task.init()
        trained = self.task.trainable
        self.keys = draw(st.none() | st.lists(st.sampled_from(trained), unique=True, min_size=1))

        def models(shared: bool, some: list[str], scale: float) -> tuple[int | None, dict[str, Tensor]]:
            sizes = {k: start[k].shape if shared else (self.c, *start[k].shape) for k in some}
            return None if shared else 0, {k: start[k] + scale * noise(*sizes[k]).abs() for k in some}

        def number(most: float) -> tuple[int | None, Any]:
            kind = draw(st.sampled_from(["float", "tensor", "each"]))
            values = most * torch.rand(self.c, generator=rng, dtype=torch.float64)
            return {"float": (None, float(values[0])), "tensor": (None, values[0]), "each": (0, values)}[kind]

        some = st.lists(st.sampled_from(trained), unique=True)
        self.operands: dict[str, tuple[int | None, Any]] = {
            "params": models(draw(st.booleans()), self.task.keys, 0.1),
            "lr": number(0.2),
            "drift": models(draw(st.booleans()), draw(some), 0.1) if draw(st.booleans()) else (None, None),
            "lam": number(0.5),
            "anchor": models(draw(st.booleans()), draw(some), 0.1) if draw(st.booleans()) else (None, None),
        }

    def one(self, task: Task, rows: Tensor, live: Tensor, seed: Tensor, **at: Any) -> Any:
        data = Data(self.x, self.y, rows, live, seed, rows[0, 0], live[0], ragged=self.ragged)
        pull = None if at["anchor"] is None else (at["lam"], at["anchor"])
        return task.train(at["params"], data, at["lr"], at["drift"], pull, self.keys)

    def serial(self, task: Task) -> Any:
        def of(i: int, dim: int | None, v: Any) -> Any:
            return v if dim is None else {k: t[i] for k, t in v.items()} if isinstance(v, dict) else v[i]

        rows = [
            self.one(task, self.rows[i], self.live[i], self.seed[i], **{k: of(i, *v) for k, v in self.operands.items()})
            for i in range(self.c)
        ]
        return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}

    def stacked(self, task: Task) -> Any:
        own = {k: v for k, (dim, v) in self.operands.items() if dim == 0}
        shared = {k: v for k, (dim, v) in self.operands.items() if dim is None}
        device = vmap(lambda rows, live, seed, mine: self.one(task, rows, live, seed, **mine, **shared))
        return device(self.rows, self.live, self.seed, own)


def _net(*layers: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        for layer in layers:
            for m in layer.modules():
                if hasattr(m, "reset_parameters"):
                    m.reset_parameters()
    return nn.Sequential(*layers).double()


def _data(x: Tensor, y: Tensor, devices: int = 3, batch: int = 4, **changes: Any) -> Data:
    """Two passes of two steps for each of some devices, stacked."""
    rng = torch.Generator().manual_seed(5)
    rows = torch.randint(0, len(x), (devices, 2, 2, batch), generator=rng)
    live = torch.ones(devices, 2, 2, dtype=torch.bool)
    seed = torch.randint(0, 10**9, live.shape, generator=rng)
    return Data(x, y, rows, live, seed, rows[:, 0, 0], live[:, 0], ragged=False)._replace(**changes)


def _samples(*shape: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(6)
    return torch.randn(20, *shape, generator=rng, dtype=torch.float64), torch.randint(0, classes, (20,), generator=rng)


def _mapped(task: Task, data: Data, **options: Any) -> Any:
    """train of all devices by vmap, all of which begin with the initial model."""
    pool, own = (data.x, data.y), data[2:-1]
    start = task.init()
    return vmap(lambda *d: task.train(start, Data(*pool, *d, ragged=data.ragged), 0.1, **options))(*own)


def _one(task: Task, data: Data, i: int = 0, **options: Any) -> Any:
    own = (t[i] for t in data[2:-1])
    return task.train(task.init(), Data(data.x, data.y, *own, ragged=data.ragged), 0.1, **options)


def _far(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest entry where that is above one."""
    return gap(a, b) / max(1.0, *(float(v.abs().max()) for v in b.values()))


@given(st.data())
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", ["fused", "loop", "native"])
def test_any_chain_as_its_definition(name: str, data: st.DataObject) -> None:
    world = World(data.draw, data.draw(chains()))
    wanted, task = world.serial(world.task), equipped(world.task, name)
    assert _far(world.serial(task), wanted) <= CLOSE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CACHE_BYTES", 0)
        patch.setattr(fused, "LEAST", data.draw(st.integers(1, 4)))
        assert _far(world.stacked(task), wanted) <= CLOSE


def _pictures_as_defined(data: st.DataObject) -> None:
    world = World(data.draw, data.draw(pictured()), (2, 9, 7))
    wanted, task = world.serial(world.task), equipped(world.task, "native", threads=data.draw(st.integers(1, 3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call, "by_definition", None)  # what C cannot do would go step by step
        assert _far(world.stacked(task), wanted) <= CLOSE


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_chain_of_pictures_as_its_definition(data: st.DataObject) -> None:
    _pictures_as_defined(data)


NARROWER = {
    "AVX2": (("-mno-avx512f",), "__AVX2__", "__AVX512F__"),
    "SSE2": (("-mno-avx",), "__SSE2__", "__AVX2__"),
}
"""Flags for vectors that are narrower than this processor's, the macro that tells of them, and the next wider one."""


@pytest.fixture(scope="module", params=NARROWER)
def narrower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library as an older processor has it; hardly optimized, which takes a third of the time."""
    flags, macro, wider = NARROWER[request.param]
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"needs a processor with {request.param}, this is {platform.machine()}")
    compiler = next(filter(None, map(shutil.which, native.COMPILERS)), None)
    if compiler is None:
        pytest.skip("needs a C compiler")
    command = [compiler, "-march=native", *flags, "-dM", "-E", "-x", "c", os.devnull]
    macros = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if macro not in macros:
        pytest.skip(f"needs a processor with {request.param}")
    assert wider not in macros
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("narrower")))
        patch.setattr(native, "_FLAGS", (*native._FLAGS, *flags, "-O1"))
        built = native._library.__wrapped__("double", "int64_t")
    assert not isinstance(built, str), built
    return built


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_narrower_vectors(narrower: Any, data: st.DataObject) -> None:
    """The same source for processors of users: tiles of other sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_library", lambda *_: narrower)
        _pictures_as_defined(data)


class TestNative:
    def test_a_device_is_trained_alike_whoever_is_beside_it(self) -> None:
        net = _net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
        task, data = Task(net.float()), _data(*_samples(3, 8, 8))
        data = data._replace(x=data.x.float())
        whole = _mapped(equipped(task, "native", threads=2), data)
        for i in range(3):
            alone = _one(equipped(task, "native"), data, i)
            assert all(torch.equal(alone[k], whole[k][i]) for k in whole)

    def test_batches_of_any_size(self) -> None:
        """More samples than are looked up at once."""
        task, data = Task(toy_net()), _data(*_samples(8, classes=4), batch=150)
        assert gap(_mapped(equipped(task, "native"), data), _mapped(task, data)) <= CLOSE

    def test_a_largest_value_that_is_there_twice_takes_the_gradient_once(self) -> None:
        """One window of four equal values: the first of them gets it, as in PyTorch."""
        net = _net(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 3))
        x, y = torch.ones(4, 1, 2, 2).double(), torch.tensor([0, 1, 2, 0])
        task, data = Task(net), _data(x, y)
        assert gap(_mapped(equipped(task, "native"), data), _mapped(task, data)) <= CLOSE

    @pytest.mark.parametrize(
        ("layers", "why"),
        [
            ([nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 3)], "found Conv2d '0'"),
            ([nn.Conv2d(3, 4, 3, padding="same"), nn.Flatten(), nn.Linear(256, 3)], "found Conv2d '0'"),
            ([nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)], "found AvgPool2d '1'"),
            ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(64, 3)], "'1' has padding"),
            ([nn.Conv2d(3, 4, 3), nn.Linear(6, 3)], "'1' is no Linear behind a Flatten"),
            ([nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 3)], "'2' is no Linear behind"),
        ],
    )
    def test_pictures_that_it_does_not_know(self, layers: list[nn.Module], why: str) -> None:
        with pytest.raises(InputError, match=why):
            equipped(Task(_net(*layers)), "native")

    def test_a_precision_that_it_does_not_know(self) -> None:
        assert "knows float32 and float64" in refusal("native", Task(nn.Linear(2, 3).half()), CPU)
        assert refusal("native", toy_task(), torch.device("cuda")) == "is for processors"

    def test_without_a_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """None on the path; one that fails; a cache folder that cannot be one."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        build = native._library.__wrapped__
        monkeypatch.setenv("PATH", "")
        assert build("float", "int32_t").startswith("needs a C compiler (none of cc, gcc, clang")
        (tmp_path / "cc").write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
        (tmp_path / "cc").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert build("float", "int32_t").endswith("failed: no such flag")
        assert list((tmp_path / "cache" / "tierfed" / "native").iterdir()) == []
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cc"))
        assert "could not be compiled in" in build("float", "int32_t")


class TestFused:
    def test_a_frozen_norm_of_one_feature_that_all_devices_share(self) -> None:
        net = _net(nn.Linear(6, 1, bias=False), nn.Linear(1, 1), nn.BatchNorm1d(1, affine=False), nn.Linear(1, 3))
        task, data = Task(net), _data(*_samples(6))
        keys = ["0.weight"]
        assert gap(_mapped(equipped(task, "fused"), data, keys=keys), _mapped(task, data, keys=keys)) <= CLOSE

    def test_what_does_not_train_comes_back_as_it_went_in(self) -> None:
        task, data = equipped(Task(toy_net()), "fused"), _data(*_samples(8, classes=4))
        start = task.init()
        after = _one(task, data, keys=["3.weight"])
        assert [k for k in start if not torch.equal(after[k], start[k])] == ["3.weight"]

    def test_the_operands_stay_as_they_were(self) -> None:
        task, data = equipped(Task(toy_net()), "fused"), _data(*_samples(8, classes=4))
        start = task.init()
        before = copy.deepcopy(start)
        rows = {k: v.expand(3, *v.shape).clone() for k, v in start.items()}
        run = vmap(lambda p, *d: task.train(p, Data(data.x, data.y, *d, ragged=False), 0.1, pull=(0.1, start)))
        run(rows, *data[2:-1])
        assert gap(start, before) == 0.0
        assert all(torch.equal(v[1], before[k]) for k, v in rows.items())

    def test_one_step_by_hand(self) -> None:
        """Least squares w x with x = 2, y = 1, w = 1, B = 2 equal samples: dL/dw = 2 (2 w - 1) 2 = 4, w = 1 - 0.1 4."""
        net = _net(nn.Linear(1, 1, bias=False))
        nn.init.ones_(net[0].weight)
        x, y = torch.full((2, 1), 2.0).double(), torch.ones(2, 1).double()
        at = torch.zeros(1, 1, dtype=torch.int64)
        data = Data(x, y, torch.tensor([[[0, 1]]]), at == 0, at, at[0], at[0] == 0, ragged=False)
        task = equipped(Task(net, LOSSES["mse"]), "fused")
        assert float(task.train(task.init(), data, 0.1)["0.weight"]) == pytest.approx(0.6, abs=1e-15)

    def test_more_steps_than_are_laid_out_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task, data = Task(toy_net()), _data(*_samples(8, classes=4))
        whole = _mapped(equipped(task, "fused"), data)
        monkeypatch.setattr(fused, "_SPAN", 3)
        assert gap(_mapped(equipped(task, "fused"), data), whole) == 0.0

    def test_devices_that_never_take_a_step(self) -> None:
        data = _data(*_samples(8, classes=4), ragged=True)
        live = data.live.clone()
        live[1] = False
        task = Task(toy_net())
        after = _mapped(equipped(task, "fused"), data._replace(live=live))
        assert gap({k: v[1] for k, v in after.items()}, task.init()) == 0.0
        assert gap(after, _mapped(task, data._replace(live=live))) <= CLOSE


class Functional(nn.Module):
    """A chain that a user wrote as a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.again = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, start_dim=1)
        return self.head(self.again(self.norm(self.body(x).relu())))  # type: ignore[no-any-return]


class Residual(Functional):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x))
        return self.head(x + self.norm(x))  # type: ignore[no-any-return]


class Halting(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) if x.sum() > 0 else self.head(self.norm(self.body(x)))  # type: ignore[no-any-return]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


def _hooked() -> nn.Sequential:
    net = _net(nn.Linear(3, 3))
    net[0].register_forward_hook(lambda *_: None)
    return net


def _idle() -> nn.Sequential:
    net = _net(nn.Linear(3, 3))
    net.register_parameter("idle", nn.Parameter(torch.ones(2)))
    return net


class TestRefusals:
    @pytest.mark.parametrize(
        ("net", "why"),
        [
            (build_model("har_cnn", (3, 20, 20), 10, {}, 0), "no chain of Linear, .* \\(found Conv2d 'conv1'\\)"),
            (toy_net(dropout=0.5), "found Dropout '3'"),
            (_net(nn.Linear(3, 3), nn.ReLU()), "does not end with a Linear layer"),
            (_net(nn.ReLU()), "does not end with a Linear layer"),
            (_net(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)), "found Tanh '1'"),
            (_net(nn.Flatten(0), nn.Linear(3, 3)), "found Flatten '0'"),
            (Residual(), "no chain"),
            (Halting(), "the forward of Halting is no plain chain"),
            (Tied(), "two layers of the model share"),
            (_hooked(), "the module '0' has hooks"),
            (_idle(), "the parameter 'idle' belongs to no layer"),
        ],
    )
    def test_models_that_are_no_chain(self, net: nn.Module, why: str) -> None:
        with pytest.raises(InputError, match=why):
            equipped(Task(net), "fused")
        assert refusal("loop", Task(net), CPU) == refusal("vmap", Task(net), CPU) == ""

    def test_a_loss_of_its_own(self) -> None:
        assert refusal("fused", Task(toy_net(), LOSSES["l1"]), CPU) == "the loss is no cross_entropy or mse"

    def test_a_cut_model_trains_one_device_after_the_other(self) -> None:
        cut = SplitTask(Task(toy_net()), "0")
        assert all("cut between device and edge" in refusal(name, cut, CPU) for name in BATCHED)
        assert equipped(cut, "loop") is cut

    def test_what_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert refusal("graphs", toy_task(), CPU) == "needs CUDA"
        monkeypatch.setenv("PATH", "")
        assert "needs a C++ compiler" in refusal("compile", toy_task(), CPU)

    def test_names(self) -> None:
        assert KERNELS == ("loop", "vmap", "fused", "native", "compile", "graphs")
        with pytest.raises(InputError, match="unknown kernel 'fuse'; did you mean 'fused'"):
            refusal("fuse", toy_task(), CPU)
        with pytest.raises(InputError, match="bf16 = true with the kernel 'fused'"):
            equipped(toy_task(), "fused", bf16=True)

    def test_models_of_the_package_that_are_chains(self) -> None:
        """Those of dense layers alone, by their descriptions: the rest have convolutions."""
        dense = {"mclr", "mlp", "epflu_mlp", "har_3nn", "permfl_dnn"}
        fit = {
            name
            for name, info in MODELS.items()
            if name in dense or "conv" not in info.about
            if not refusal("fused", Task(build_model(name, info.shape, 10, {}, 0)), CPU)
        }
        assert fit == dense


class TestEquipped:
    def test_a_forward_that_is_a_chain(self) -> None:
        task, data = Task(Functional().double()), _data(*_samples(2, 3))
        assert gap(_mapped(equipped(task, "fused"), data), _mapped(task, data)) <= CLOSE

    @pytest.mark.parametrize("name", ["loop", "fused", "native"])
    def test_what_a_kernel_cannot_do_goes_step_by_step(self, name: str) -> None:
        """Nothing to train; labels that the loss ignores; a model that is not whole; samples of each device's own."""
        task, data = Task(toy_net()), _data(*_samples(8, classes=4))
        fast = equipped(task, name)
        assert gap(_one(fast, data, keys=[]), _one(task, data, keys=[])) <= CLOSE
        ignored = data._replace(y=torch.where(data.y == 1, -100, data.y))
        assert gap(_mapped(fast, ignored), _mapped(task, ignored)) <= CLOSE
        more = {**task.init(), "other": torch.ones(2)}
        one = Data(data.x, data.y, *(t[0] for t in data[2:-1]), ragged=False)
        assert gap(fast.train(more, one, 0.1), task.train(more, one, 0.1)) <= CLOSE
        pools = torch.stack([data.x, data.x.flip(0), data.x])

        def own_pools(t: Task) -> Any:
            device = vmap(lambda x, *d: t.train(t.init(), Data(x, data.y, *d, ragged=False), 0.1))
            return device(pools, *data[2:-1])

        assert gap(own_pools(fast), own_pools(task)) <= CLOSE

    @pytest.mark.parametrize("name", ["loop", "fused", "native"])
    def test_a_batch_of_one_has_no_statistics(self, name: str) -> None:
        data = _data(*_samples(8, classes=4), batch=1)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            _one(equipped(Task(toy_net()), name), data)

    def test_vmap_of_vmap(self) -> None:
        task, data = Task(toy_net(norm=False)), _data(*_samples(8, classes=4), devices=2)
        fast = equipped(task, "fused")

        def pairs(t: Task) -> Any:
            inner = vmap(lambda lr, *d: t.train(t.init(), Data(data.x, data.y, *d, ragged=False), lr), (0, *[None] * 5))
            return vmap(lambda *d: inner(torch.tensor([0.1, 0.2]).double(), *d))(*data[2:-1])

        assert gap(pairs(fast), pairs(task)) <= CLOSE

    @pytest.mark.parametrize("name", ["loop", "fused", "native"])
    def test_nobody_differentiates_through_it(self, name: str) -> None:
        task, data = equipped(Task(toy_net()), name), _data(*_samples(8, classes=4))
        start = {k: v.requires_grad_() for k, v in task.init().items()}
        one = Data(data.x, data.y, *(t[0] for t in data[2:-1]), ragged=False)
        after = task.train(start, one, 0.1)
        with pytest.raises(InputError, match="differentiates through"):
            after["0.weight"].sum().backward()

    @pytest.mark.parametrize("name", ["loop", "vmap", "fused", "native"])
    def test_workers_get_it_by_pickle(self, name: str) -> None:
        task, data = Task(toy_net(), LOSSES["mse"]), _data(_samples(8)[0], _samples(4)[0])
        fast = equipped(task, name)
        before = _one(fast, data)
        there = cloudpickle.loads(cloudpickle.dumps(fast))
        assert type(there) is type(fast)
        assert gap(_one(there, data), before) == 0.0
        assert refusal("fused", there, CPU) == ""

    def test_the_given_task_is_unchanged_and_may_be_equipped(self) -> None:
        task = toy_task()
        before = dict(vars(task))
        twice = equipped(equipped(task, "fused"), "loop")
        assert type(twice) is type(equipped(task, "loop"))
        assert type(equipped(twice, "vmap")) is Task
        assert vars(task) == before

    def test_dropout_draws_the_same_masks(self) -> None:
        task, data = Task(toy_net(dropout=0.3)), _data(*_samples(8, classes=4))
        assert gap(_mapped(equipped(task, "loop"), data), _mapped(task, data)) <= CLOSE

    def test_pictures(self) -> None:
        net = _net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
        task, data = Task(net, weight_decay=0.1), _data(*_samples(3, 8, 8))
        fast = equipped(task, "loop")
        for keys in (None, ["5.weight"], ["0.bias", "5.bias"]):
            assert gap(_one(fast, data, keys=keys), _one(task, data, keys=keys)) <= CLOSE

    def test_bfloat16_stays_near_and_keeps_the_statistics(self) -> None:
        """Products have 8 bits: the models move in nearly the same direction, their own entries are float32."""
        net = build_model("har_cnn", (3, 20, 20), 3, {}, 0)
        task, (x, y) = Task(net), _samples(3, 20, 20)
        data, start = _data(x.float(), y), task.init()
        near, exact = (_one(equipped(task, "loop", bf16=b), data) for b in (True, False))
        moved = torch.cat([(exact[k] - start[k]).flatten() for k in start])
        off = torch.cat([(near[k] - exact[k]).flatten() for k in start])
        assert {v.dtype for v in near.values()} == {torch.float32}
        assert 0.0 < float(off.norm()) <= 0.1 * float(moved.norm())


@pytest.mark.parametrize("ragged", [False, True])
def test_the_step_that_is_compiled(ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and run by PyTorch without a compiler, which would take longer than a test may."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    task, data = Task(toy_net(dropout=0.3), weight_decay=0.1), _data(*_samples(8, classes=4), ragged=ragged)
    if ragged:
        data = data._replace(live=torch.arange(12).view(3, 2, 2) % 5 > 0)
    fast, options = (
        equipped(task, "compile"),
        {"pull": (torch.tensor(0.2), task.init()), "keys": ["3.weight", "4.bias"]},
    )
    options["keys"] = [k for k in task.trainable if not k.startswith("0.")]
    assert gap(_mapped(fast, data, **options), _mapped(task, data, **options)) <= CLOSE
    assert gap(_one(fast, data), _one(task, data)) <= CLOSE
    assert len(fast.compiled) == 2  # type: ignore[attr-defined]


def test_the_engines_batches() -> None:
    """A plan's own ragged data: dead steps at the end of every pass."""
    from tierfed.algorithms.fedavg import FedAvg

    task, plan = toy_task(), toy_plan(6)
    data = plan.data([i for i in range(6) if plan.width(i) == 8], FedAvg(epochs=2), 0, 0)
    assert data.ragged
    assert gap(_mapped(equipped(task, "fused"), data), _mapped(task, data)) <= CLOSE

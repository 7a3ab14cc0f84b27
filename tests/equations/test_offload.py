"""Offloading: split training against whole training, its traffic against the formula, a trusted edge against none."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from laws.cases import CASES
from tierfed import offload
from tierfed.algorithm import Algorithm, Batch
from tierfed.algorithms import make
from tierfed.config import load_config
from tierfed.cost import Edge
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.loop import run as train
from tierfed.offload import SplitTask
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.testing.toy import DEVICES, apart, gap, make_engine, run, toy_net, toy_plan, toy_task
from tierfed.testing.trees import small_plan, trees

CNN = ("conv1", "bn1", "pool", "relu1", "drop1", "conv2", "bn2", "relu2", "flat", "drop2", "fc1", "relu3", "fc2")
EDGE = Edge(shares=(0.5,), speed=10.0)


def picture_net() -> Task:
    """A small network for pictures 3x8x8 with all kinds of layers, with weight decay, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layers = (
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout2d(0.3),
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.4), nn.Linear(24, 10),
            nn.ReLU(), nn.Linear(10, 4),
        )  # fmt: skip
        net = nn.Sequential()
        for name, layer in zip(CNN, layers, strict=True):
            net.add_module(name, layer)
        return Task(net, weight_decay=0.01)


def pictures(n: int = 6) -> Batch:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(n, 3, 8, 8)).astype(np.float32))
    return Batch(x, torch.from_numpy(rng.integers(0, 4, n)), torch.tensor(True), torch.tensor(77))


def towards(out: Tensor, y: Tensor) -> Tensor:
    """Another loss: y holds what the outputs should be."""
    return (out - y).square().mean(1)


PLACES = [(cut, "") for cut in CNN[:-1]] + [("conv1", "conv2"), ("pool", "fc1"), ("drop1", "relu3"), ("flat", "drop2")]


class TestT58SplitIsWhole:
    """T-58: parameters, loss and statistics of split training are those of unsplit training."""

    @pytest.mark.parametrize(("cut", "tail"), PLACES)
    @pytest.mark.parametrize("some", ["all", "head", "body"])
    def test_every_gradient(self, cut: str, tail: str, some: str) -> None:
        """Also where a part is frozen, whose batch norms are in evaluation mode then."""
        task, batch = picture_net(), pictures()
        head = task.head_keys(2)
        keys = {"all": None, "head": head, "body": [k for k in task.trainable if k not in head]}[some]
        for target, loss in ((batch.y, None), (one_hot(batch.y, 4).float(), towards)):
            whole, split = (
                t.grad(task.init(), batch._replace(y=target), keys, loss) for t in (task, SplitTask(task, cut, tail))
            )
            assert whole[0].keys() == split[0].keys()
            assert max(gap(a, b) for a, b in zip(whole, split, strict=True)) <= 1e-6
            if some != "head":
                assert gap(whole[2], {k: task.init()[k] for k in task.buffers}) > 0

    @pytest.mark.parametrize(("cut", "tail"), PLACES)
    def test_losses_on_held_out_samples(self, cut: str, tail: str) -> None:
        task = picture_net()
        held = pictures()._replace(live=torch.tensor([True, True, False, True, False, True]))
        split = SplitTask(task, cut, tail)
        assert gap(task.measure(task.init(), held), split.measure(task.init(), held)) <= 1e-6
        assert split.exchanged() != (0, 0)

    @pytest.mark.parametrize(("tree", "cut", "tail"), [("flat", "2", ""), ("flat", "0", "2"), ("3 tiers", "0", "")])
    @pytest.mark.parametrize(
        "name",
        ["fedavg, two epochs", "scaffold", "ditto", "permfl", "jobfed", "fedrep", "per-fedavg, hf", "l2gd", "ifca"],
    )
    def test_every_method_that_trains_by_gradients(self, name: str, tree: str, cut: str, tail: str) -> None:
        """Everything that cloud, fogs and devices keep after two rounds, dropout included."""
        task = toy_task(dropout=0.3)
        whole = run(make_engine("serial", CASES[name], task, small_plan(), trees()[tree]), 2)
        split = make_engine("serial", CASES[name], SplitTask(task, cut, tail), small_plan(), trees()[tree])
        split.edge = EDGE
        assert apart(whole, run(split, 2)) <= 1e-12

    def test_a_part_holds_its_own_parameters_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The edge is given the parameters of its layers and no others, the device likewise."""
        task, seen = toy_task(), list[set[str]]()

        class Watched(offload.Part):
            def __init__(self, layers: nn.Sequential, *given: Any) -> None:
                super().__init__(layers, *given)
                seen.append(set(self.trained) | set(self.rest))

        monkeypatch.setattr(offload, "Part", Watched)
        batch = Batch(torch.ones(3, 8).double(), torch.tensor([0, 1, 2]), torch.tensor(True), torch.tensor(1))
        SplitTask(task, "2").grad(task.init(), batch)
        first = {k for k in task.keys if k[0] in "012"}
        assert seen == [first, set(task.keys) - first]

    def test_a_step_that_is_not_made_exchanges_nothing(self) -> None:
        task = SplitTask(toy_task(), "0")
        batch = Batch(torch.ones(3, 8).double(), torch.tensor([0, 1, 2]), torch.tensor(False), torch.tensor(1))
        g, loss, stats = task.grad(task.init(), batch)
        assert (task.exchanged(), float(loss)) == ((0, 0), 0.0)
        assert all(not v.any() for v in g.values())
        assert gap(stats, {k: task.init()[k] for k in task.buffers}) == 0


def engine_of(algorithm: Algorithm, plan: Plan, cut: str, tail: str = "", norm: bool = True) -> Engine:
    """Split training of the toy network 8 - 16 - 4 (layers 0 linear, 1 norm, 2 ReLU, 3 linear) on a flat tree."""
    engine = make_engine("serial", algorithm, SplitTask(Task(toy_net(norm=norm)), cut, tail), plan)
    engine.edge = EDGE
    return engine


class TestT59Traffic:
    """T-59: n_i s_c floats up and down per epoch, and the labels; of the model only the device's part."""

    PLAN = toy_plan(batch=4, smallest=8, largest=8, held=0.0)  # two batches of 4, all samples once a pass

    @pytest.mark.parametrize(("cut", "front"), [("0", 8 * 16 + 16), ("1", 8 * 16 + 16 + 64), ("2", 8 * 16 + 16 + 64)])
    def test_bytes_of_a_round(self, cut: str, front: int) -> None:
        """16 float64 and an int64 label up, 16 float64 down; 64 numbers of the batch norm."""
        engine = engine_of(make("fedavg", {"epochs": 3}), self.PLAN, cut)
        engine.step()
        n, links = 3 * 8 * DEVICES, engine.log.link_bytes()
        assert links[0, "up"] == n * (16 * 8 + 8) + DEVICES * front * 8
        assert links[0, "down"] == n * 16 * 8 + DEVICES * front * 8
        away = [v.offloaded for v in engine.log.visits]
        assert sum(int(v.up_bytes.sum()) for v in away if v is not None) == n * 136

    def test_label_private(self) -> None:
        """h 16 and dL/d(out) 16 up, out 16 and dL/dh 16 down, no labels; front 144 and tail 68 stay on the device."""
        engine = engine_of(make("fedavg"), self.PLAN, "0", "1")
        engine.step()
        n, device = 8 * DEVICES, DEVICES * (144 + 68) * 8
        assert engine.log.link_bytes() == {(0, "up"): n * 32 * 8 + device, (0, "down"): n * 32 * 8 + device}

    def test_batches_are_counted_as_they_are(self) -> None:
        """5 samples in batches of 4: two full ones, so 8 samples."""
        plan = toy_plan(batch=4, smallest=5, largest=5, held=0.0)
        engine = engine_of(make("local"), plan, "2")
        engine.step()
        assert engine.log.link_bytes()[0, "up"] == 8 * DEVICES * 136

    def test_nothing_comes_back_for_a_front_that_is_frozen(self) -> None:
        """FedRep: one pass on the head without gradients for the body, one on the body with them."""
        engine = engine_of(make("fedrep", {"head_epochs": 1}), self.PLAN, "0")
        engine.step()
        up, down = (engine.log.link_bytes()[0, way] for way in ("up", "down"))
        assert (up, down) == (2 * 8 * DEVICES * 136 + DEVICES * 144 * 8, 8 * DEVICES * 128 + DEVICES * 144 * 8)

    def test_between_fog_and_cloud_the_whole_model(self) -> None:
        task = SplitTask(toy_task(), "0")
        engine = make_engine("serial", make("hierfavg"), task, self.PLAN, trees(team_rounds=1)["3 tiers"])
        engine.edge = EDGE
        engine.step()
        links, whole = engine.log.link_bytes(), 8 * (144 + 64 + 68)
        assert (links[0, "up"], links[0, "down"]) == (4 * whole, 4 * whole)
        assert links[1, "down"] == DEVICES * (8 * 128 + 144 * 8)

    def test_evaluation_is_not_counted(self) -> None:
        algorithm = make("finetune", {"tune_epochs": 2})
        plain, watched = engine_of(algorithm, self.PLAN, "0"), engine_of(algorithm, self.PLAN, "0")
        assert len(list(models(watched, np.arange(DEVICES)))) == DEVICES
        assert plain.step().link_bytes() == watched.step().link_bytes()
        assert plain.log.link_bytes()[0, "down"] == 8 * DEVICES * 128 + DEVICES * 144 * 8


SMALL = {"data.devices": 5, "run.rounds": 2, "eval.every": 1, "topology.fogs": 2, "topology.teams": "sequential"}


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("name", ["fedavg", "local"])
def test_t60_a_trusted_edge_changes_no_number(name: str, engine: str) -> None:
    """T-60: bit for bit the run without offloading; raw data go up once, models come down once, nothing between."""
    own = {"algorithm.name": name, "engine.name": engine, "model.name": "mlp", **SMALL}
    plain, edge = (
        train(load_config("quickstart", {**own, "offload.mode": mode}), folder=False) for mode in ("none", "edge")
    )
    assert apart(plain.engine, edge.engine) == 0.0
    assert [r for r in plain.rows if r.model] == [r for r in edge.rows if r.model]
    found = {(r.round, r.metric): r.value for r in edge.rows if r.node == "fog-device"}
    samples, model = int(edge.world.plan.samples.sum()), sum(v.numel() for v in edge.world.task.init().values())
    assert found[0, "up_bytes"] == samples * edge.world.federation.bits_per_sample / 8
    assert [found[r, "down_bytes"] for r in range(3)] == [0, 0, 5 * 4 * model]
    assert [found[r, "up_bytes"] for r in (1, 2)] == [0, 0]
    assert [e["what"] for e in edge.events if e["event"] == "transfer"] == ["raw data", "final models"]
    spent = {r.metric: r.value for r in edge.rows if r.round == 1 and r.tier == "device" and not r.model}
    own_seconds = next(r.value for r in plain.rows if r.round == 1 and r.metric == "compute_seconds")
    assert spent["compute_seconds"] == spent["compute_joules"] == 0
    assert spent["edge_seconds"] == pytest.approx(own_seconds / 10)

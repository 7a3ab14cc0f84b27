"""Offloading in a run: which cuts there are, what they need, what is refused, how the clock counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tierfed.algorithms import make
from tierfed.config import load_config
from tierfed.cost import Burst, CostSettings, Edge, Offloaded, Visit, clock
from tierfed.data import Columns
from tierfed.errors import InputError
from tierfed.faults import Faults
from tierfed.frames import dataset
from tierfed.loop import resume
from tierfed.loop import run as train
from tierfed.models import build_model
from tierfed.offload import SplitTask, bounds, layers_of
from tierfed.placement import (
    TRUSTED,
    exchanged_bytes,
    measure_layers,
    share_of_device,
)
from tierfed.preview import placement_rows, preview, readable
from tierfed.report import write_report
from tierfed.setup import World, prepare
from tierfed.store import MemoryStore
from tierfed.task import Task
from tierfed.testing.toy import apart, make_engine, toy_net, toy_plan, toy_settings, toy_task
from tierfed.topology import TopologySettings, build_topology
from tierfed.transfers import Transfer, awaited, bursts, roads

QUICK: dict[str, Any] = {
    "data.devices": 5, "run.rounds": 2, "algorithm.name": "fedavg", "model.name": "mlp", "topology.fogs": 2,
    "topology.teams": "sequential", "eval.post": False,
}  # fmt: skip


def world(**changes: Any) -> World:
    return prepare(load_config("quickstart", {**QUICK, **changes}))


@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("har_cnn", (3, 20, 20), {"pool1": 3200, "pool2": 400, "conv3": 200, "fc1": 128}),
        ("har_3nn", (1200,), {"flat": 1200, "fc1": 400, "fc2": 100}),
        ("lenet16", (3, 32, 32), {"pool1": 3136, "pool2": 800, "fc1": 120, "fc2": 84}),
    ],
)
def test_sizes_of_cuts(name: str, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    layers = measure_layers(Task(build_model(name, shape, 10, {}, 0)), torch.zeros(4, *shape))
    found = {layer.name: layer.floats for layer in layers}
    assert {k: found[k] for k in sizes} == sizes
    assert {layer.out_bytes for layer in layers} == {4 * layer.floats for layer in layers}


class TestShare:
    def test_by_hand(self) -> None:
        """A product of [B, i] and [i, o] has 2 B i o operations: the first layer 8 - 16 has one forward and one for its
        weight, the last one 16 - 4 one more for its input. 512 and 384 per sample."""
        task = Task(toy_net(norm=False))
        layers = measure_layers(task, torch.ones(4, 8).double())
        assert [layer.flops for layer in layers] == [512, 0, 384]
        assert share_of_device(layers, (1, 3)) == pytest.approx(512 / 896)
        assert share_of_device(layers, (2, 3)) == pytest.approx(512 / 896)

    def test_a_frozen_first_layer_learns_nothing(self) -> None:
        """Forward only: 256. The layer behind needs no gradient of its input: 256."""
        net = toy_net(norm=False)
        net[0].requires_grad_(False)
        layers = measure_layers(Task(net), torch.ones(4, 8).double())
        assert [(layer.flops, layer.trainable) for layer in layers] == [(256, False), (0, False), (256, True)]


class Two(nn.Module):
    """Its output is a pair."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


class Sum(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] + pair[1]


class Backwards(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x)


class TestRefused:
    NAMES = ("conv1", "relu1", "fc1", "fc2")

    @pytest.mark.parametrize(
        ("cut", "tail", "says"),
        [
            ("conv", "", r"no such layer; did you mean 'conv1'\? \(in this order: conv1, relu1, fc1, fc2\)"),
            ("", "", "offload.cut = ''"),
            ("fc2", "", "is the last layer: nothing would be left for the edge; cut after one of conv1, relu1, fc1"),
            ("relu1", "fc9", "offload.tail = 'fc9': the model has no such layer"),
            ("relu1", "conv1", r"not behind the cut \(offload.cut = 'relu1'\); take one of fc1"),
            ("relu1", "relu1", "not behind the cut"),
            ("relu1", "fc2", "nothing would be left for the device after it"),
            ("fc1", "fc1", "not behind the cut .*; cut earlier"),
        ],
    )
    def test_places(self, cut: str, tail: str, says: str) -> None:
        with pytest.raises(InputError, match=says):
            bounds(list(self.NAMES), cut, tail)

    def test_models_that_are_no_chain(self) -> None:
        shared = nn.Linear(3, 3)
        for net in (nn.Linear(3, 2), Backwards(nn.Linear(3, 3), nn.ReLU()), nn.Sequential(nn.Linear(3, 2))):
            with pytest.raises(InputError, match=r"cannot be cut: wanted an nn.Sequential of two layers or more"):
                layers_of(net)
        with pytest.raises(InputError, match="the layers '0' and '2' of the model share a parameter"):
            layers_of(nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared)))

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"offload.cut": "fc7"}, "offload.cut = 'fc7': the model has no such layer; did you mean"),
            ({"engine.name": "vectorized"}, "which the vectorized engine trains many of at once; set engine.name"),
            ({"algorithm.name": "epflu", "model.name": "epflu_mlp"}, "devices hand a sum on to each other"),
            ({"algorithm.name": "ppt", "offload.mode": "edge"}, "devices hand a sum on to each other"),
            ({"algorithm.name": "mocha", "model.name": "mclr"}, "mocha trains without gradients of the model"),
            ({"algorithm.name": "per-fedavg", "algorithm.order": "exact"}, "order 'fo' or 'hf'"),
            (
                {"algorithm.name": "jobfed", "model.name": "epflu_mlp", "offload.mode": "edge", "run.rounds": 9},
                "jobfed moves devices to other teams",
            ),
            ({"offload.edge_speed": 0}, "offload.edge_speed = 0"),
            ({"offload.mode": "both"}, "offload.mode = 'both'"),
        ],
    )
    def test_runs(self, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(InputError, match=says):
            world(**{"offload.mode": "split", **changes})

    def test_outputs_that_are_no_tensor(self) -> None:
        """A cut between the two is refused, "auto" does not take it, nor the flat input, which is the smallest."""
        net = nn.Sequential(nn.Flatten(), nn.Linear(6, 12), Two(), Sum(), nn.Linear(12, 2))
        rng = np.random.default_rng(0)
        table = {f"x{i}": rng.normal(size=40) for i in range(6)}
        table |= {"label": np.arange(40) % 2, "device": np.arange(40) // 10}
        own = {"run.rounds": 1, "topology.fogs": 0, "offload.mode": "split", "offload.minimize": "bytes"}
        config, data = load_config({}, own), dataset(table, Columns())
        cut = prepare(config, data, net)
        assert cut.placement is not None
        assert cut.placement["cut"] == "1"
        assert [layer.floats for layer in measure_layers(cut.task, torch.zeros(4, 6))] == [6, 12, 0, 12, 2]
        with pytest.raises(InputError, match=r"layer '2' is no tensor \[batch, ...\] of floats.*one of 0, 1, 3"):
            prepare(load_config({}, {**own, "offload.cut": "2"}), data, net)


# one second per MB on a link at distance 50 and per sample of 1000 bit, 3 J for it; half a joule per MB
UNIT = CostSettings(
    bandwidth_hz=8e6, noise_w=1e-10, min_gain_cloud=2e-10, cloud_multiplier=2.5, cycles_per_bit=1e6, capacitance=3e-27
)
MB = 1_000_000


def ids(*values: int) -> Any:
    return np.array(values, np.int64)


def test_the_clock_adds_device_edge_and_messages() -> None:
    """Device 0: 20 samples, a quarter on the device, twice as slow: 10 s; the rest at speed 5: 3 s; 1 + 2 MB: 3 s;
    the model 1 MB down, 1 MB up. Device 1: everything on the device: 4 s, 2 s for the model. The fog's link: 1 MB each.
    """
    there = Offloaded(share=np.array([0.25, 1.0]), speed=5.0, down_bytes=ids(MB, 0), up_bytes=ids(2 * MB, 0))
    visit = Visit(tick=0, devices=ids(0, 1), samples=ids(20, 4), slowdown=np.array([2.0, 1.0]), offloaded=there)
    low = Burst(depth=1, tick=0, parents=ids(0, 0), kids=ids(0, 1), down_bytes=ids(MB, MB), up_bytes=ids(MB, MB))
    high = Burst(depth=0, tick=0, parents=ids(0), kids=ids(0), down_bytes=ids(MB), up_bytes=ids(MB))
    tree = (2, (1, 1), UNIT, (np.array([20.0]), np.array([50.0, 50.0])), 1e3, (False, False))
    cost = clock([high, low], [visit], *tree)
    assert (cost.down_bytes, cost.up_bytes) == ((MB, 3 * MB), (MB, 4 * MB))
    assert (cost.offload_down_bytes, cost.offload_up_bytes) == (MB, 2 * MB)
    assert cost.link_seconds == pytest.approx((2, 7))
    assert cost.link_joules == pytest.approx((1, 3.5))
    assert (cost.compute_seconds, cost.compute_joules) == pytest.approx((14, 27))
    assert cost.edge_seconds == pytest.approx(3)
    assert cost.round_seconds == pytest.approx(1 + 18 + 1)
    late = clock([high, low], [visit], *tree, deadline_seconds=12.0)
    assert late.round_seconds == pytest.approx(1 + 12 + 1)
    inside = clock([high, low], [visit], *tree[:-1], (False, True))
    assert (inside.up_bytes, inside.offload_up_bytes) == ((MB, 0), 0)
    assert inside.round_seconds == pytest.approx(1 + 13 + 1)


def test_a_deadline_knows_the_longer_time() -> None:
    """Local training, so that nothing but the messages across the cut is added (the edge is as slow as a device): a
    deadline that all visits just keep without a cut is one that longer visits miss with it."""
    own = {"algorithm.name": "local", "engine.name": "serial"}
    cut = {**own, "offload.mode": "split", "offload.cut": "fc1", "offload.edge_speed": 1}
    times = []
    for changes in (own, cut):
        there = world(**changes)
        log = there.engine(MemoryStore()).step()
        assert log.lost == {}
        none = np.zeros(1, np.int64)
        given = [(there.topology, v.devices, none, none, v.samples, v.factor, v.offloaded) for v in log.visits]
        times.append(np.concatenate([there.clock.visit_seconds(*g) for g in given]))
    assert (times[0] < times[1]).all()
    limit = {"faults.deadline_seconds": float(times[0].max())}
    lost = [world(**changes, **limit).engine(MemoryStore()).step().lost for changes in (own, cut)]
    assert lost == [{}, {1: int((times[1] > times[0].max()).sum())}]


class TestPlacements:
    def test_formula_is_what_messages_have(self) -> None:
        """T-59 in a run: the formula of `show` and the bytes that were sent."""
        for changes in ({}, {"offload.cut": "relu1", "offload.tail": "fc2"}, {"algorithm.name": "ditto"}):
            there = world(**{"offload.mode": "split", "algorithm.epochs": 2, "model.options": {}, **changes})
            assert isinstance(there.task, SplitTask)
            down, up = exchanged_bytes(there.task, there.plan, there.algorithm)
            log = there.engine(MemoryStore()).step()
            sent = {int(i): (d, u) for v in log.visits if (o := v.offloaded) is not None
                    for i, d, u in zip(v.devices, o.down_bytes, o.up_bytes, strict=True)}  # fmt: skip
            assert sent == {i: (down[i], up[i]) for i in range(5)}
            facts = preview(there)
            assert facts["exchanged_bytes_per_visit"] == {"down": round(down.mean()), "up": round(up.mean())}
            assert facts["device_link_bytes_per_round"] == pytest.approx(
                5 * sum(facts["bytes_per_visit"].values()) + down.sum() + up.sum(), abs=10
            )

    def test_rows_by_hand(self) -> None:
        """Five devices of 4 samples in one batch on a flat tree with links of one second a megabyte."""
        rng = np.random.default_rng(0)
        table = {f"x{i}": rng.normal(size=40) for i in range(4)}
        table |= {"label": np.arange(40) % 2, "device": np.arange(40) // 8}
        net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        own = {
            "topology.fogs": 0, "data.split.test": 0.5, "data.split.val": 0.0, "data.batch": "all",
            "algorithm.name": "fedavg", "run.rounds": 10, "offload.minimize": "bytes", "data.min_samples": 1,
        }  # fmt: skip
        there = prepare(load_config({}, own), dataset(table, Columns()), net)
        rows = {row.placement: row for row in placement_rows(there)}
        n, bits = 4, there.federation.bits_per_sample
        assert there.plan.samples.tolist() == [n] * 5
        # parameters: 4 * 3 + 3 = 15 and 3 * 2 + 2 = 8; operations per sample: 2 * 24, 3 * 12
        assert list(rows) == ["no offloading", "cut after 0", "cut after 1", TRUSTED]
        assert [(r.up_bytes, r.down_bytes) for r in rows.values()] == [
            (4 * 23, 4 * 23),
            (4 * 15 + n * (12 + 8), 4 * 15 + n * 12),
            (4 * 15 + n * (12 + 8), 4 * 15 + n * 12),
            (round(n * bits / 8 / 10), round(4 * 23 / 10)),
        ]
        assert [r.device_share for r in rows.values()] == pytest.approx([1, 48 / 84, 48 / 84, 0])
        assert [r.recommended for r in rows.values()] == [False, True, False, False]
        whole, cut, _, trusted = rows.values()
        joules = 10_800 * bits * n * 2e-28 * 1e18
        per_byte = whole.seconds - joules / 2e-28 / 1e18 / 1e9
        assert whole.seconds == pytest.approx(joules / 2e-28 / 1e27 + per_byte)
        assert cut.seconds == pytest.approx(
            joules / 2e-28 / 1e27 * (48 / 84 + 36 / 84 / 10) + per_byte * (cut.up_bytes + cut.down_bytes) / (8 * 23)
        )
        assert whole.joules - cut.joules == pytest.approx(
            joules * 36 / 84 - 0.5 * per_byte * (cut.up_bytes - whole.up_bytes) / (8 * 23)
        )
        assert trusted.seconds == pytest.approx(
            joules / 2e-28 / 1e27 / 10 + per_byte * (n * bits / 8 + 92) / 10 / (8 * 23)
        )

    @pytest.mark.parametrize("minimize", ["seconds", "joules", "bytes"])
    def test_auto_takes_the_recommended_cut(self, minimize: str) -> None:
        own = {"offload.minimize": minimize, "model.name": "cnn1d"}
        rows = placement_rows(world(**own))
        (best,) = [r for r in rows if r.recommended]
        cuts = [r for r in rows if r.cut]
        assert best.need(minimize) == min(r.need(minimize) for r in cuts)
        taken = world(**{"offload.mode": "split"}, **own)
        assert taken.placement is not None
        assert (taken.placement["cut"], taken.placement["chosen_by"]) == (best.cut, minimize)
        assert taken.placement["device_share"] == round(best.device_share, 4)
        assert taken.edge is not None
        assert (taken.edge.shares, taken.engine_name) == ((best.device_share,), "serial")
        again = placement_rows(taken)
        assert again == rows  # whatever the config itself asks for
        assert placement_rows(world(**{"offload.mode": "edge"}, **own)) == rows
        assert sum("recommended" in r["placement"] for r in readable(rows)) == 1

    def test_with_a_tail_only_cuts_before_it(self) -> None:
        rows = placement_rows(world(**{"offload.tail": "fc2"}))
        assert [r.cut for r in rows if r.cut] == ["flat", "fc1", "relu1"]
        with pytest.raises(InputError, match=r"offload.tail = 'flat' is not behind the cut"):
            placement_rows(world(**{"offload.tail": "flat"}))


class TestRuns:
    def test_the_log_says_where_and_resumed_runs_have_the_same_bits(self, tmp_path: Path) -> None:
        own = {**QUICK, "offload.mode": "split", "offload.minimize": "bytes", "run.rounds": 3, "eval.every": 1}
        whole = train(load_config("quickstart", own), folder=False)
        train(load_config("quickstart", {**own, "run.rounds": 1, "run.out": str(tmp_path / "r")}))
        parts = resume(tmp_path / "r", rounds=3)
        assert parts.rows == whole.rows
        page = write_report(tmp_path / "r").read_text()
        assert "of it while training, with the edges" in page
        assert "computing on edges" in page
        (said,) = [e for e in whole.events if e["event"] == "offload"]
        assert said.keys() == {"round", "event", "mode", "cut", "chosen_by", "device_share", "edge_speed"}
        link = {(r.round, r.metric): r.value for r in whole.rows if r.node == "fog-device"}
        assert link[1, "up_bytes"] > link[1, "offload_up_bytes"] > link[1, "offload_down_bytes"] > 0
        alone = {**QUICK, "run.rounds": 3, "eval.every": 1, "engine.name": "serial"}
        plain = train(load_config("quickstart", alone), folder=False)
        assert apart(plain.engine, whole.engine) <= 1e-6
        assert not any(r.metric.startswith(("offload", "edge")) for r in plain.rows)

    def test_teams_that_are_formed(self) -> None:
        """A trusted edge is known when the teams are: raw data go up after the formation, in which devices train."""
        own = {**QUICK, "topology.teams": "ifca", "topology.formation_rounds": 1, "run.rounds": 1}
        plain, edge = (
            train(load_config("quickstart", {**own, "offload.mode": m}), folder=False) for m in ("none", "edge")
        )
        assert apart(plain.engine, edge.engine) == 0.0
        assert [e["event"] for e in edge.events][:4] == ["start", "formation", "offload", "transfer"]
        assert edge.world.topology.colocated == (False, True)
        assert edge.world.topology.levels == ("cloud", "fog", "device")

    def test_what_everybody_lost_is_lost_with_a_cut(self) -> None:
        """The same replies are lost and the same devices away: the same numbers as without a cut."""
        faults, settings = Faults(loss=0.3, dropout=0.2), toy_settings(0.7)["3 tiers"]
        logs = []
        engines = [
            make_engine("serial", make("scaffold"), task, toy_plan(), settings, faults)
            for task in (toy_task(), SplitTask(toy_task(), "1"))
        ]
        engines[1].edge = Edge(shares=(0.5,), speed=2.0)
        for engine in engines:
            logs.append([engine.step() for _ in range(3)])
        assert apart(*engines) <= 1e-12
        assert [(log.lost, log.silent) for log in logs[0]] == [(log.lost, log.silent) for log in logs[1]]


class TestTransfers:
    EACH = np.array([MB, 2 * MB, 4 * MB, 8 * MB], np.int64)

    def test_a_parents_link_takes_its_time(self) -> None:
        """Device 3 needs 8 seconds for its 8 MB; the cloud's links are idle."""
        settings = TopologySettings(fogs=(1, 2), teams="sequential")
        topology = build_topology(settings, np.full(4, 10, np.int64), 0, None)
        found = awaited(
            bursts(Transfer(what="", down_bytes=0 * self.EACH, up_bytes=self.EACH, end="parent"), topology), topology
        )
        distances = (np.array([20.0]), np.array([50.0, 50.0]), np.full(4, 50.0))
        cost = clock(found, [], 3, (1, 1, 1), UNIT, distances, 1e3, (False,) * 3)
        assert (cost.up_bytes, cost.down_bytes) == ((0, 0, 15 * MB), (0, 0, 0))
        assert cost.round_seconds == pytest.approx(8)

    def test_the_own_link_of_a_device_though_rounds_do_not_use_it(self) -> None:
        there = world(**{"offload.mode": "edge"})
        inside = Transfer(what="", down_bytes=np.ones(5, np.int64), up_bytes=np.ones(5, np.int64))
        outside = there.transfers[0]
        assert roads(inside, there.topology).colocated == (False, True)
        assert roads(outside, there.topology).colocated == (False, False)
        assert {b.depth for b in bursts(inside, there.topology)} == {0}
        assert {b.depth for b in bursts(outside, roads(outside, there.topology))} == {1}
        assert world().topology.colocated == (False, False)

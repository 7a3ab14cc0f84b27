"""What is asked before a run: needs of an algorithm, and whether its servers fit into memory; and the catalog."""

from typing import Any

import numpy as np
import pytest

from tierfed import checks
from tierfed.algorithm import Algorithm
from tierfed.algorithms import REGISTRY, make
from tierfed.catalog import catalog
from tierfed.checks import check_memory, check_participation, server_bytes
from tierfed.errors import InputError
from tierfed.testing.toy import ENGINES, make_engine, toy_plan, toy_settings, toy_task
from tierfed.topology import Topology, TopologySettings, build_topology
from tierfed.tree import nbytes, take

DEVICES = 6


def tree(fogs: int = 2, participation: Any = 1.0) -> Topology:
    settings = TopologySettings(fogs=fogs, participation=participation)
    return build_topology(settings, np.full(DEVICES, 10))


def counted(name: str, settings: dict[str, Any], topology: Topology) -> int:
    task, algorithm = toy_task(), make(name, settings)
    shared = take(task.init(), algorithm.shared(task))
    return server_bytes(algorithm.tiers(task, topology.shape), topology, shared)


class TestMemory:
    def test_an_average_keeps_one_model_per_node(self) -> None:
        """Cloud and fogs of FedAvg: one model at the cloud, relays keep nothing; HierFAVG: one at each of three."""
        model = nbytes(toy_task().init())
        assert counted("fedavg", {}, tree()) == model
        assert counted("hierfavg", {}, tree()) == 3 * model

    @pytest.mark.parametrize(("where", "fogs", "seen"), [("cloud", 2, 6), ("fog", 2, 3), ("cloud", 0, 6)])
    def test_rows_are_counted_where_they_are_seen(self, where: str, fogs: int, seen: int) -> None:
        """FedAMP remembers one model per device; the node that works holds those of its members twice more."""
        model = nbytes(toy_task().init())
        plain = counted("fedamp", {"server_at": where}, tree(fogs))
        row = plain // (DEVICES + 2 * seen)
        assert plain == row * (DEVICES + 2 * seen)
        assert model <= row <= 3 * model

    def test_a_hypernetwork_is_sized_without_being_made(self) -> None:
        """phi: a head of d x width and a bias of d, and the momentum of both: of a terabyte nothing is allocated."""
        task, width = toy_task(), 10**9
        algorithm = make("pfedhn", {"hidden": 1, "width": width, "dim": 1})
        shared = take(task.init(), algorithm.shared(task))
        d, size = sum(t.numel() for t in shared.values()), 8
        tiers = algorithm.tiers(task, tree().shape)
        small = [type(t)(**{**vars(t), "width": 1000}) for t in tiers[:1]]
        body, head = 2 * 1000, 1000 * d + d
        rows = 2 * (DEVICES + 2 * DEVICES)
        assert server_bytes([*small, *tiers[1:]], tree(), shared) == size * (2 * (body + head) + rows)

    def test_too_large_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task, algorithm = toy_task(), make("hierfavg")
        args = ("hierfavg", algorithm.tiers(task, tree().shape), tree(), task.init())
        needed = 3 * nbytes(task.init())
        for there in (needed, None):
            monkeypatch.setattr(checks, "machine_bytes", lambda there=there: there)
            check_memory(*args)
        monkeypatch.setattr(checks, "machine_bytes", lambda: needed - 1)
        with pytest.raises(InputError, match=r"would need 0\.0 GB for hierfavg \(6 devices"):
            check_memory(*args)

    def test_a_machine_says_how_much_it_has(self) -> None:
        there = checks.machine_bytes()
        assert there is None or there > 1 << 28


class TestParticipation:
    class All(Algorithm):
        needs_full = True

    @pytest.mark.parametrize("participation", [0.5, 2, (0.5, 1.0), (1.0, 0.5)])
    def test_some_are_not_polled(self, participation: Any) -> None:
        check_participation("x", Algorithm(), tree(2, participation))
        with pytest.raises(InputError, match="x needs every device in every round"):
            check_participation("x", self.All(), tree(2, participation))

    def test_all_are_polled(self) -> None:
        check_participation("x", self.All(), tree())


class TestClock:
    @pytest.mark.parametrize(
        ("name", "settings", "factor"),
        [
            ("fedavg", {"epochs": 2}, 2),
            ("apfl", {}, 2),
            ("pfedme", {"inner": 3}, 3),
            ("ditto", {"personal_epochs": 2}, 3),
            ("per-fedavg", {}, 2),  # two batches a step, one gradient on each
            ("per-fedavg", {"order": "exact"}, 4),  # a gradient on each of three, the Hessian counts as two
            ("finetune", {"tune_epochs": 5}, 1),  # a visit does not tune
        ],
    )
    @pytest.mark.parametrize("engine", ENGINES)
    def test_every_gradient_is_charged(self, name: str, settings: dict[str, Any], factor: int, engine: str) -> None:
        plan = toy_plan(4, batch=8)
        log = make_engine(engine, make(name, settings), toy_task(), plan, toy_settings()["flat"]).step()
        (visit,) = log.visits if engine == "vectorized" else [log.visits[0]]
        one_pass = [plan.steps(int(i), Algorithm()) * plan.width(int(i)) for i in visit.devices]
        assert visit.samples.tolist() == [factor * n for n in one_pass]


class TestCatalog:
    def test_every_algorithm_has_a_row(self) -> None:
        rows = {row["name"]: row for row in catalog()}
        assert sorted(rows) == sorted(REGISTRY)
        links = {name: rows[name]["fog to cloud"] for name in ("local", "fedavg", "permfl", "pfedla", "epflu")}
        assert links == {
            "local": "-",
            "fedavg": "one mean",
            "permfl": "the team's model",
            "pfedla": "every message",
            "epflu": "one sum along a path",
        }
        assert rows["jobfed"]["needs"] == "batch norms, held-out local data"
        assert rows["mocha"]["needs"] == "a linear model"
        assert (rows["cfl"]["all devices"], rows["fedavg"]["all devices"]) == ("yes", "no")
        assert all(all(row.values()) for row in rows.values())

"""Who listens to whom: the weights of the algorithms by hand, what is recorded of a run, and after a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tierfed
from tierfed import ties
from tierfed.algorithm import Tier
from tierfed.algorithms import make
from tierfed.algorithms.fedfomo import FedFomo
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import message_to
from tierfed.engine.evaluate import ties as ties_of
from tierfed.metrics import TIES
from tierfed.testing.toy import ENGINES, gap, make_engine, quad, records, run, toy_plan, toy_task
from tierfed.topology import TopologySettings
from tierfed.tree import stack

kinds = pytest.mark.parametrize("kind", ENGINES)
MIXERS: dict[str, dict[str, Any]] = {
    "pfedla": {"lr_hn": 0.5, "dim": 4, "width": 6},
    "heurpfedla": {"lr_hn": 0.5, "dim": 4, "width": 6, "retain": 1, "top_m": 5},
    "fedamp": {},
    "fedfomo": {"models": 3},
}
ALL = np.arange(12)


def trained(kind: str, name: str, where: str = "cloud") -> Engine:
    settings = TopologySettings(fogs=3, teams="random") if where == "fog" else TopologySettings(fogs=0)
    algorithm = make(name, {**MIXERS[name], "server_at": where})
    return run(make_engine(kind, algorithm, toy_task(), toy_plan(), settings), 2)


class TestContract:
    @pytest.mark.parametrize("name", MIXERS)
    def test_rows_are_weights(self, name: str) -> None:
        engine = trained("vectorized", name)
        found = ties_of(engine, 0, 0, ALL)
        assert found.keys() == ({"model"} if name.startswith("fed") else set(engine.task(0).layers))
        for weights in found.values():
            assert weights.shape == (12, 12)
            assert float(weights.min()) >= 0.0
            assert gap(weights.sum(1), torch.ones(12, dtype=torch.float64)) < 1e-12

    @kinds
    @pytest.mark.parametrize("name", ["pfedla", "fedamp"])
    def test_they_are_what_is_sent(self, kind: str, name: str) -> None:
        """Device i gets sum_j weight_ij theta_j, each tensor with the weights of its layer."""
        engine = trained(kind, name)
        found, theta = ties_of(engine, 0, 0, ALL), stack(engine.rows(0, ALL))["theta"]
        for i in (0, 5, 11):
            for k, sent in message_to(engine, i)["params"].items():
                weights = found.get("model", found.get(k.rpartition(".")[0]))
                assert weights is not None
                assert gap(sent, torch.tensordot(weights[i], theta[k], dims=1)) < 1e-12

    def test_a_server_at_a_fog_knows_its_own_devices(self) -> None:
        engine = trained("vectorized", "pfedla", "fog")
        layer = engine.task(0).layers[0]
        for fog in range(3):
            members = engine.topology.below(1, fog, 2)
            for i, weights in enumerate(ties_of(engine, 1, fog, members)[layer]):
                assert gap(weights.sum(), torch.tensor(1.0, dtype=torch.float64)) < 1e-12
                sent = message_to(engine, int(members[i]))["params"][f"{layer}.weight"]
                theta = stack(engine.rows(1, members))["theta"][f"{layer}.weight"]
                assert gap(sent, torch.tensordot(weights, theta, dims=1)) < 1e-12

    def test_asking_changes_nothing(self) -> None:
        engine = trained("vectorized", "pfedla")
        before = dict(records(engine))
        ties_of(engine, 0, 0, ALL)
        assert records(engine) == before

    def test_fedfomo_by_hand(self) -> None:
        """P = (0, 3, -1, 1), then only negative ones, then nothing: [P]+ / sum [P]+ = (0, 3/4, 0, 1/4), else itself.

        The members have the ids 4, 2, 7, 5: P is by id.
        """
        task, _ = quad([0.0])
        (tier,) = FedFomo().tiers(task, (1, 8))
        affinity = torch.zeros(4, 8, dtype=torch.float64)
        ids = torch.tensor([4, 2, 7, 5])
        affinity[0, ids] = torch.tensor([0.0, 3.0, -1.0, 1.0], dtype=torch.float64)
        affinity[1, ids] = torch.tensor([-1.0, 0.0, -2.0, -1.0], dtype=torch.float64)
        affinity[3, ids] = torch.tensor([2.0, 0.0, 2.0, 0.0], dtype=torch.float64)
        got = tier.ties({"rows": {"affinity": affinity}, "ids": ids})["model"]
        assert got.tolist() == [[0, 0.75, 0, 0.25], [0, 1, 0, 0], [0, 0, 1, 0], [0.5, 0, 0.5, 0]]

    def test_first_weights_of_pfedla(self) -> None:
        """Outputs lean to the device itself by 2: e^2 / (e^2 + 11) of twelve devices."""
        algorithm = make("pfedla", {"first": "self"})
        engine = make_engine("vectorized", algorithm, toy_task(), toy_plan(), TopologySettings(fogs=0))
        own = np.exp(2) / (np.exp(2) + 11)
        for weights in ties_of(engine, 0, 0, ALL).values():
            assert weights.diagonal().tolist() == pytest.approx([own] * 12, abs=1e-12)
            assert float(weights[0, 1]) == pytest.approx((1 - own) / 11, abs=1e-12)

    def test_others_have_none(self) -> None:
        assert Tier().ties({}) == {}


NAMES = tuple(f"d{i}" for i in range(6))


def table() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3))
    device = np.arange(120) % 6
    y = (x[:, 0] > 0) ^ (device > 2)
    return {**dict(zip("abc", x.T, strict=True)), "label": y.astype(int), "device": np.array(NAMES)[device]}


def config(out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "run": {"rounds": 5, "threads": 1, "out": str(out), **changes.get("run", {})},
        "data": {"batch": 4},
        "model": {"name": "mlp", "options": {"hidden": [4]}},
        "algorithm": changes.get("algorithm", {"name": "pfedla", "lr_hn": 0.5, "dim": 3, "width": 4}),
        "topology": changes.get("topology", {"fogs": 0}),
        "eval": {"every": 2, "post": False},
    }


def stop_after(number: int) -> Any:
    def watch(progress: tierfed.Progress) -> None:
        if progress.round == number:
            raise KeyboardInterrupt

    return watch


class TestRecord:
    def test_every_evaluation_is_recorded(self, tmp_path: Path) -> None:
        result = tierfed.run(config(tmp_path / "r"), data=table())
        found = pq.read_table(tmp_path / "r" / "ties.parquet")
        assert found.schema.equals(TIES)
        assert found.equals(result.ties)
        layers = result.world.task.layers
        assert found.num_rows == 4 * len(layers) * 36  # rounds 0, 2, 4 and the last one
        assert [sorted(set(found[c].to_pylist())) for c in ("round", "node", "layer")] == [
            [0, 2, 4, 5],
            ["cloud"],
            sorted(layers),
        ]
        now = ties_of(result.engine, 0, 0, np.arange(6))[layers[0]]
        last = [r for r in found.to_pylist() if (r["round"], r["layer"]) == (5, layers[0])]
        assert {(r["device"], r["other"]): r["weight"] for r in last} == {
            (a, b): float(now[i, j]) for i, a in enumerate(NAMES) for j, b in enumerate(NAMES)
        }

    @pytest.mark.parametrize(("every", "stopped"), [(1, 3), (2, 3), (3, 4)])
    def test_resumed_is_uninterrupted(self, tmp_path: Path, every: int, stopped: int) -> None:
        run_ = {"checkpoint_every": every}
        whole = tierfed.run(config(tmp_path / "whole", run=run_), data=table())
        half = tierfed.run(config(tmp_path / "half", run=run_), data=table(), watch=stop_after(stopped))
        assert half.interrupted
        assert max(half.ties["round"].to_pylist()) <= stopped // every * every
        assert pq.read_table(tmp_path / "half" / "ties.parquet").equals(half.ties)
        done = tierfed.resume(tmp_path / "half", data=table())
        assert done.ties.equals(whole.ties)
        files = [pq.read_table(tmp_path / r / "ties.parquet") for r in ("whole", "half")]
        assert files[0].equals(files[1])

    def test_a_lost_file_comes_back(self, tmp_path: Path) -> None:
        before = tierfed.run(config(tmp_path / "r"), data=table()).ties
        (tmp_path / "r" / "ties.parquet").unlink()
        tierfed.resume(tmp_path / "r", data=table())
        assert pq.read_table(tmp_path / "r" / "ties.parquet").equals(before)

    def test_more_rounds(self, tmp_path: Path) -> None:
        tierfed.run(config(tmp_path / "r"), data=table())
        done = tierfed.resume(tmp_path / "r", rounds=6, data=table())
        assert sorted(set(done.ties["round"].to_pylist())) == [0, 2, 4, 5, 6]

    def test_servers_at_fogs(self, tmp_path: Path) -> None:
        changes = {
            "algorithm": {"name": "fedamp", "server_at": "fog"},
            "topology": {"fogs": 2, "teams": "sequential"},
        }
        found = tierfed.run(config(tmp_path / "r", **changes), data=table()).ties.to_pylist()
        pairs = {(r["node"], r["device"], r["other"]) for r in found}
        assert pairs == {
            (fog, a, b) for fog, some in (("fog 0", NAMES[:3]), ("fog 1", NAMES[3:])) for a in some for b in some
        }

    def test_none_without_a_mixer(self, tmp_path: Path) -> None:
        result = tierfed.run(config(tmp_path / "r", algorithm={"name": "fedavg"}), data=table())
        assert not (tmp_path / "r" / "ties.parquet").exists()
        assert result.ties.equals(pa.table({n: [] for n in TIES.names}, schema=TIES))

    def test_too_many_children_are_told_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ties, "MOST", 5)
        half = tierfed.run(config(tmp_path / "r"), data=table(), watch=stop_after(3))
        done = tierfed.resume(tmp_path / "r", data=table())
        wanted = {"round": 0, "event": "ties_skipped", "node": "cloud", "children": 6, "most": 5}
        for result in (half, done):
            assert [e for e in result.events if e["event"] == "ties_skipped"] == [wanted]
        assert not (tmp_path / "r" / "ties.parquet").exists()

    def test_the_row_of_one_device_is_its_own(self, tmp_path: Path) -> None:
        """Rows and columns are not mixed up: with `first = self` and no training of weights the diagonal leads."""
        algorithm = {"name": "pfedla", "first": "self", "lr_hn": 0.0}
        found = tierfed.run(config(tmp_path / "r", algorithm=algorithm), data=table()).ties.to_pylist()
        own = np.exp(2) / (np.exp(2) + 5)
        for r in found:
            assert r["weight"] == pytest.approx(own if r["device"] == r["other"] else (1 - own) / 5, abs=1e-6)

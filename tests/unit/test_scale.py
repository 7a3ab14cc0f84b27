"""Many devices: what a round reads and writes, and what a page shows, does not grow with their number."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tierfed
from tierfed.algorithms import make
from tierfed.checkpoint import identity
from tierfed.config import load_config
from tierfed.data import heatmap
from tierfed.engine.ahead import coming
from tierfed.errors import InputError
from tierfed.preview import preview
from tierfed.record import device_table
from tierfed.report.holdings import devices_of
from tierfed.report.labels import holdings_of
from tierfed.report.load import MAX_DEVICES, _devices
from tierfed.setup import World, prepare
from tierfed.store import DiskStore, MemoryStore
from tierfed.testing.toy import gap, make_engine, run, toy_plan, toy_settings, toy_task
from tierfed.topology import TopologySettings

FEW, MANY = 1_000, 100_000


def noise() -> tierfed.Dataset:
    """2,000 random samples of four classes."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(2000, 6))).float(), torch.from_numpy(rng.integers(0, 4, 2000))
    return tierfed.Dataset(name="noise", x=x, y=y, classes=("a", "b", "c", "d"), bits_per_sample=192)


def tables(devices: int, **changes: Any) -> dict[str, Any]:
    """FedBN over two regions and ten fogs, two devices of each of which are polled."""
    partition = {"kind": "drawn", "devices": devices, "size": 20, "sizes": "uniform"}
    return {
        "run": {"rounds": 4, "dtype": "float64"},
        "data": {"partition": partition, "batch": 5},
        "model": {"name": "epflu_mlp"},
        "algorithm": {"name": "fedbn", "steps": 1},
        "topology": {"fogs": [2, 10], "participation": 2},
        **changes,
    }


def world(devices: int, **changes: Any) -> World:
    return prepare(load_config(tables(devices, **changes)), noise())


def written(path: Path) -> list[int]:
    """Bytes of keys and values that every commit of three rounds has added or changed; first that of round 0."""
    before: dict[bytes, bytes] = {}
    out = []
    there = world(int(path.name))
    store = DiskStore(path / "state")
    engine = there.engine(store)
    store.put("start_all", 0, there.task.init())
    for round_ in range(4):
        if round_:
            engine.step()
        store.commit({**engine.meta(), "data": identity(there)}, [{"round": round_}])
        with store._env.begin() as txn:
            now = {bytes(k): bytes(v) for k, v in txn.cursor()}
        out.append(sum(len(k) + len(v) for k, v in now.items() if before.get(k) != v))
        before = now
    store.close()
    return out


def test_a_commit_does_not_grow_with_the_devices(tmp_path: Path) -> None:
    """The same bytes for a thousand devices and for a hundred thousand, up to the digits of a checksum."""
    few, many = written(tmp_path / str(FEW)), written(tmp_path / str(MANY))
    assert all(n > 1000 for n in few)
    np.testing.assert_allclose(many, few, atol=16)


def test_only_levels_that_changed_are_written() -> None:
    store = MemoryStore()
    tree = toy_settings(fogs=4)["4 tiers"]
    engine = make_engine("vectorized", make("fedavg"), toy_task(), toy_plan(), tree, store=store)
    assert (store.ids("parents"), engine.meta()) == ([], {"round": 0})
    moved = engine.topology.parents[-1][::-1].copy()
    engine.set_topology(engine.topology.regrouped(moved))
    assert store.ids("parents") == [2]
    assert engine.meta() == {"round": 0}
    fresh = make_engine("vectorized", make("fedavg"), toy_task(), toy_plan(), tree, store=store)
    fresh.restore({"round": 3})
    assert fresh.round == 3
    assert [p.tolist() for p in fresh.topology.parents] == [p.tolist() for p in engine.topology.parents]
    old = make_engine("vectorized", make("fedavg"), toy_task(), toy_plan(), tree)
    old.restore({"round": 3, "parents": [p.tolist() for p in engine.topology.parents]})
    assert old.topology.parents[-1].tolist() == moved.tolist()
    assert old.store.ids("parents") == [2]


@pytest.mark.parametrize("tree", ["flat", "3 tiers", "4 tiers", "clusters"])
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "permfl", "fedamp"])
def test_who_comes_is_known_before(algorithm: str, tree: str) -> None:
    """Those that rounds 1 and 2 visit, over several bursts and through relays, are those that were foretold."""
    settings = toy_settings(0.5, 1 if tree == "flat" else 2)[tree]
    engine = make_engine("serial", make(algorithm), toy_task(), toy_plan(), settings)
    foretold = [coming(engine, r).tolist() for r in range(3)]
    assert len(foretold[0]) < engine.topology.devices
    for expected in foretold:
        log = engine.step()
        assert sorted({int(i) for v in log.visits for i in v.devices}) == expected


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_a_run_on_drawn_devices_goes_on_with_the_same_bits(engine: str, tmp_path: Path) -> None:
    """Read ahead or not, killed or not: the same rows, and the same private state on every device."""
    few = {"eval": {"every": 2, "post": False}, "engine": {"name": engine}}
    whole = tierfed.run(tables(60, **few), data=noise(), folder=False)
    half = tables(60, **few, run={"rounds": 2, "dtype": "float64", "out": str(tmp_path / "run")})
    tierfed.run(half, data=noise())
    rest = tierfed.resume(tmp_path / "run", rounds=4, data=noise())
    final = [r for r in whole.rows if r.round in (3, 4)]
    assert [r for r in rest.rows if r.round in (3, 4)] == final
    assert len(final) > 60
    store = DiskStore(tmp_path / "run" / "state")
    ids = whole.engine.store.ids("own")
    assert store.ids("own") == ids
    assert 20 < len(ids) < 60
    assert all(gap(store.get("own", i), whole.engine.store.get("own", i)) == 0.0 for i in ids)
    store.close()


def test_other_drawn_devices_are_other_data(tmp_path: Path) -> None:
    given = tables(20, run={"rounds": 1, "out": str(tmp_path / "run")}, eval={"post": False})
    tierfed.run(given, data=noise())
    other = dataclasses.replace(noise(), y=torch.zeros(2000, dtype=torch.int64))
    with pytest.raises(InputError, match="are not those that it began with"):
        tierfed.resume(tmp_path / "run", rounds=2, data=other)


def test_a_preview_looks_at_some() -> None:
    there = world(MANY)
    facts = preview(there)
    assert facts["tree"] == "1 cloud - 2 region - 10 fog - 100000 device"
    assert facts["device_visits_per_round"] == 20
    assert facts["private_bytes_of_all_devices"] == MANY * facts["private_bytes_per_device"] > 0
    heatmap(there.federation)
    assert sum(1 for _ in there.federation.train.draw._known) < 100


def test_tables_and_charts_of_many_devices(tmp_path: Path) -> None:
    """All devices have a row, some have counts of labels; a chart draws a few of them."""
    there = world(MANY)
    table = device_table(there)
    assert table.num_rows == MANY
    assert table["device"][MANY - 1].as_py() == "device-99999"
    assert table["team"][7].as_py() == f"fog {there.topology.parents[-1][7]}"
    assert table["train"].to_numpy().tolist() == there.plan.samples.tolist()
    known = np.flatnonzero(table["counts"].is_valid().to_numpy(zero_copy_only=False))
    assert len(known) == 1000
    for i in known[:3]:
        assert sum(table["counts"][int(i)].as_py()) == there.plan.samples[i]
    pq.write_table(table, tmp_path / "devices.parquet")
    for devices in (_devices(tmp_path / "devices.parquet"), devices_of(there.federation)):
        assert len(devices.names) == MANY
        chart = holdings_of(devices)
        assert len(chart.figure["data"][0]["x"]) == MAX_DEVICES
        assert f"{MAX_DEVICES} devices of {MANY} are drawn" in chart.note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"kind": "share"}}, "augment.kind = 'share' gives every device rows of its own"),
        ({"topology": {"fogs": 4, "teams": "worst"}}, "counts the labels of all 100001 devices"),
    ],
)
def test_what_would_visit_everybody_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        world(MANY + 1, **changes)


def test_label_ranges_of_some_drawn_devices() -> None:
    """PerMFL's worst case on devices with one label each: the teams are the labels."""
    partition = {"kind": "drawn", "devices": 40, "size": 20, "classes": 1}
    there = world(40, data={"partition": partition}, topology={"fogs": 4, "teams": "worst"})
    held = there.federation.label_counts().argmax(1)
    assert there.topology.parents[-1].tolist() == held.tolist()


def test_engines_agree_on_drawn_devices() -> None:
    there = world(30)
    settings = TopologySettings(fogs=3, participation=0.5)
    one, two = (
        run(make_engine(kind, there.algorithm, there.task, there.plan, settings), 2)
        for kind in ("serial", "vectorized")
    )
    for table in ("own", "kept0"):
        for i in one.store.ids(table):
            assert gap(one.store.get(table, i), two.store.get(table, i)) < 1e-10

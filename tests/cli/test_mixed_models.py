"""[[model.kinds]] from a config to a report: different networks on the data that come along, stopped and resumed."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tierfed
from cli.shell import TOY, Shell, records

WATCH = """
[run]
rounds = 2
threads = 1

[data]
source = "watch"
train_fraction = 0.1
public = 0.2

[[model.kinds]]
name = "har_3nn"
options = { hidden = [20, 10] }
devices = 6

[[model.kinds]]
name = "cnn1d"
options = { width = 4 }

[algorithm]
name = "perfit-fd"
subset = 20

[eval]
every = 1
"""


@pytest.fixture
def watch(shell: Shell) -> Shell:
    (shell.folder / "watch.toml").write_text(WATCH)
    return shell


def test_a_run_with_two_networks(watch: Shell) -> None:
    shown = json.loads(watch.good("show", "watch.toml", "--json"))["runs"]
    (facts,) = shown.values()
    assert (facts["model har_3nn"]["devices"], facts["model cnn1d"]["devices"]) == (6, 14)
    assert facts["model har_3nn"]["trainable"] == 300 * 20 + 20 + 20 * 10 + 10 + 10 * 7 + 7
    assert facts["bytes_per_visit"] == {"down": 20 * 7 * 4 + 8, "up": 20 * 7 * 4}
    watch.good("run", "watch.toml", "--out", "r")
    devices = pq.read_table(watch.folder / "r" / "devices.parquet").to_pydict()
    assert sorted(devices["model"]) == ["cnn1d"] * 14 + ["har_3nn"] * 6
    with tierfed.open_run(watch.folder / "r") as result:
        for name, model in zip(devices["device"], devices["model"], strict=True):
            net = result.personal_model(name)
            assert any(isinstance(m, torch.nn.Conv1d) for m in net.modules()) == (model == "cnn1d")
        with pytest.raises(tierfed.InputError, match="has no complete global model"):
            result.global_model()
        metrics = pq.read_table(watch.folder / "r" / "metrics.parquet").to_pylist()
        ups = {
            m["value"] for m in metrics if m["metric"] == "up_bytes" and m["node"] == "fog-device" and m["round"] > 0
        }
        assert ups == {20 * 20 * 7 * 4}
        once = {e["what"]: e for e in result.events if e["event"] == "transfer"}
        assert result.world.task.public is not None
        assert once["public samples"]["down_bytes"] == 20 * len(result.world.task.public.x) * 6 * 50 * 2
    assert (watch.folder / "r" / "report.html").exists()


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_resumed_is_uninterrupted(watch: Shell, engine: str) -> None:
    settings = ("--engine", engine, "--set", "topology.participation=0.5", "--no-report")
    watch.good("run", "watch.toml", *settings, "--out", "whole")
    watch.good("run", "watch.toml", *settings, "--rounds", "1", "--out", "half")
    watch.good("resume", "half", "--rounds", "2", "--no-report")
    whole, half = records(watch.folder / "whole"), records(watch.folder / "half")
    own = [k for k in whole if k.startswith(b"own")]
    assert len(own) > 10
    assert [k for k in own if whole[k] != half[k]] == []
    tables = [pq.read_table(watch.folder / r / "metrics.parquet") for r in ("whole", "half")]
    assert tables[0].equals(tables[1])


def test_public_samples_from_a_file(shell: Shell) -> None:
    """Another file of the same length: a run does not go on with it."""
    rng = np.random.default_rng(1)
    x, public = rng.normal(size=(30, 5)).astype(np.float32), shell.folder / "public.npz"
    np.savez(public, x=x, y=np.arange(30) % 2)
    (shell.folder / "toy.toml").write_text(
        TOY.replace('path = "toy.npz"', f'path = "toy.npz"\npublic_path = "{public}"')
    )
    options = ("--set", "algorithm.subset=30", "--no-report", "--rounds", "1")
    shell.good("run", "toy.toml", "-a", "fedmd", *options, "--out", "r")
    shell.good("resume", "r", "--rounds", "2", "--no-report")
    np.savez(public, x=x * 1.01, y=np.arange(30) % 2)
    assert "are not those that it began with" in shell.bad("resume", "r", "--rounds", "3")


KINDS = "model.kinds=[{name='mlp', devices=3}, {name='mclr'}]"
PLAIN = ("--set", "model.name=auto", "--set", "model.options={}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("-a", "fedavg", *PLAIN, "--set", KINDS),
            "take an algorithm that sends none: fd, fedmd, ftl, local, perfit-fd",
        ),
        (("-a", "local", "--set", KINDS), "[[model.kinds]] and model.name = 'mlp'"),
        (
            ("-a", "local", *PLAIN, "--set", "model.kinds=[{name='mlp', devices=['x']}, {name='mclr'}]"),
            "model.kinds.0 (mlp) names the device 'x'",
        ),
        (("-a", "fedmd"), "fedmd needs public samples, and there are none; set data.public"),
        (("-a", "fedmd", "--set", "data.public=0.5"), "subset = 500 public samples per round, but there are"),
        (("-a", "fd", "--set", "data.public_path=no.npz"), "data.public_path = 'no.npz': there is no such file"),
    ],
)
def test_bad_input(shell: Shell, settings: tuple[str, ...], message: str) -> None:
    assert message in shell.bad("run", "toy.toml", *settings)


def test_the_catalog_says_who_can(shell: Shell) -> None:
    rows = {r["name"]: r for r in json.loads(shell.good("algorithms", "--json"))}
    assert {n for n, r in rows.items() if r["different models"] == "yes"} == {
        *("fd", "fedmd", "ftl", "local", "perfit-fd")
    }
    assert (rows["fedmd"]["needs"], rows["fd"]["needs"]) == ("public samples", "-")
    assert (rows["fedmd"]["fog to cloud"], rows["fd"]["fog to cloud"]) == ("one mean", "every message")


def test_a_grid_of_them(watch: Shell) -> None:
    watch.good("run", "watch.toml", "-a", "fd", "-a", "local", "--rounds", "1", "--out", "g", "--set", "run.jobs=1")
    found = [p for p in Path(watch.folder / "g").iterdir() if (p / "devices.parquet").exists()]
    kinds = [pq.read_table(p / "devices.parquet")["model"].to_pylist() for p in found]
    assert len(kinds) == 2
    assert kinds[0] == kinds[1]

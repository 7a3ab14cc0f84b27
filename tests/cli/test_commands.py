"""What every command does when nothing is wrong: files, tables, JSON, plain lines in a pipe."""

import itertools
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cli.shell import Shell, interpreter, process, records

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
SHORT = ("--set", "run.rounds=2", "--no-report")


def told(text: str) -> Any:
    """The one JSON value of an output."""
    return json.loads(text)


def test_run_leaves_a_self_contained_folder(shell: Shell) -> None:
    out = shell.good("run", "toy.toml", "--out", "r")
    folder = shell.folder / "r"
    assert {p.name for p in folder.iterdir()} == {
        "config.toml", "devices.parquet", "events.jsonl", "labels.parquet", "metrics.parquet", "report.html", "state",
    }  # fmt: skip
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == [f"r: round {i}/3" for i in range(4)]
    assert "folder: r" in lines
    assert "report: r/report.html" in lines
    config = tomllib.loads((folder / "config.toml").read_text())
    assert config["run"]["out"] == "r"
    assert config["topology"]["participation"] == 1.0
    assert config["grid"] == {"algorithms": [], "seeds": []}
    assert pq.read_table(folder / "devices.parquet").num_rows == 8
    assert not list(folder.rglob("*.tmp"))


def test_report_needs_nothing_from_elsewhere(shell: Shell) -> None:
    shell.good("run", "toy.toml", "--out", "r", *SHORT)
    assert not (shell.folder / "r" / "report.html").exists()
    shell.good("report", "r", "--out", "page.html")
    page = (shell.folder / "page.html").read_text()
    assert "fedavg on toy" in page
    assert not re.search(r"""<(script|img|iframe)[^>]+src=|<link[^>]+href=|@import|url\(["']?http""", page)


def test_resolved_config_repeats_the_run(shell: Shell) -> None:
    shell.good("run", "toy.toml", "--out", "a", *SHORT)
    shell.good("run", "a/config.toml", "--out", "b", "--no-report")
    assert records(shell.folder / "a") == records(shell.folder / "b")


def test_run_json(shell: Shell) -> None:
    found = told(shell.good("run", "toy.toml", "--out", "r", "--json", *SHORT))
    assert found["kind"] == "run"
    assert (found["algorithm"], found["devices"], found["rounds"], found["seed"]) == ("fedavg", 8, 2, 0)
    assert set(found["models"]) == {"global", "personal_pre"}
    assert (found["folder"], found["report"]) == ("r", None)
    again = told(shell.good("resume", "r", "--json"))
    assert again == {**found, "report": "r/report.html"}
    assert told(shell.good("report", "r", "--json"))["report"] == "r/report.html"


def test_options_win_over_the_file(shell: Shell) -> None:
    shell.good("run", "toy.toml", "--set", "run.rounds=9", "--rounds", "1", "--set", "algorithm.lr=0.03",
               "--seeds", "5", "--engine", "serial", "--out", "r", "--no-report")  # fmt: skip
    config = tomllib.loads((shell.folder / "r" / "config.toml").read_text())
    assert (config["run"]["rounds"], config["run"]["seed"], config["engine"]["name"]) == (1, 5, "serial")
    assert config["algorithm"] == {"name": "fedavg", "lr": 0.03}


def test_run_out_of_the_config_and_default_folder(shell: Shell) -> None:
    shell.good("run", "toy.toml", "--set", "run.out=deep/er/r", *SHORT)
    assert (shell.folder / "deep" / "er" / "r" / "metrics.parquet").exists()
    shell.good("run", "toy.toml", "-a", "local", "--seeds", "3", *SHORT)
    assert (shell.folder / "runs" / "npz-local-s3" / "metrics.parquet").exists()


def test_another_algorithm_keeps_the_local_training(shell: Shell) -> None:
    text = (shell.folder / "toy.toml").read_text()
    (shell.folder / "prox.toml").write_text(text.replace('name = "fedavg"', 'name = "fedprox"\nmu = 0.5\nlr = 0.03'))
    shell.good("run", "prox.toml", "-a", "scaffold", "--out", "r", *SHORT)
    config = tomllib.loads((shell.folder / "r" / "config.toml").read_text())
    assert config["algorithm"] == {"name": "scaffold", "lr": 0.03}


def test_grid(shell: Shell) -> None:
    grid = ("-a", "fedavg", "-a", "local", "--seeds", "0,1", "--set", "run.jobs=1", "--rounds", "1")
    found = told(shell.good("run", "toy.toml", *grid, "--out", "g", "--json"))
    assert found["kind"] == "grid"
    assert found["seeds"] == [0, 1]
    assert set(found["runs"]) == {"fedavg-s0", "fedavg-s1", "local-s0", "local-s1"}
    assert (shell.folder / "g" / "report.html").exists()
    member = tomllib.loads((shell.folder / "g" / "local-s1" / "config.toml").read_text())
    assert (member["run"]["seed"], member["algorithm"]["name"]) == (1, "local")
    assert member["grid"] == {"algorithms": [], "seeds": []}
    table = shell.good("report", "g")
    assert "local" in table
    assert "seeds 0, 1" in table
    single = ("-a", "local", "--seeds", "1", "--rounds", "1", "--no-report")
    shell.good("run", "toy.toml", *single, "--out", "alone")
    assert records(shell.folder / "alone") == records(shell.folder / "g" / "local-s1")


def test_grid_of_labels_in_the_file(shell: Shell) -> None:
    text = (
        shell.config.read_text()
        + """
[grid]
algorithms = [{ name = "fedavg", lr = 0.5, label = "fast" }, { name = "fedavg" }, { name = "local" }]
"""
    )
    (shell.folder / "grid.toml").write_text(text)
    shell.good("run", "grid.toml", "--set", "run.jobs=1", "--rounds", "1", "--no-report")
    names = {p.name for p in (shell.folder / "runs" / "grid").iterdir() if p.is_dir()}
    assert names == {"fast-s0", "fedavg-s0", "local-s0"}


def test_resume_with_more_rounds_is_a_longer_run(shell: Shell) -> None:
    jobfed = ("-a", "jobfed", "--set", "topology.participation=0.6", "--no-report")
    shell.good("run", "toy.toml", *jobfed, "--rounds", "5", "--out", "whole")
    shell.good("run", "toy.toml", *jobfed, "--rounds", "2", "--out", "r")
    shell.good("resume", "r", "--rounds", "5", "--no-report")
    assert records(shell.folder / "r") == records(shell.folder / "whole")
    metrics = [pq.read_table(shell.folder / run / "metrics.parquet") for run in ("whole", "r")]
    assert metrics[0].equals(metrics[1])
    assert tomllib.loads((shell.folder / "r" / "config.toml").read_text())["run"]["rounds"] == 5
    assert "all rounds done" in shell.good("resume", "r", "--no-report")


def test_show(shell: Shell) -> None:
    found = told(shell.good("show", "toy.toml", "--plot", "plot.html", "--json"))
    assert found["plot"] == "plot.html"
    (facts,) = found["runs"].values()
    # 5 inputs: (5 + 1) * 8 + 2 * 8 of the batch norm + (8 + 1) * 2
    assert facts["model"] == {"trainable": 82, "statistics": 16}
    assert facts["tree"] == "1 cloud - 2 fog - 8 device"
    assert facts["bytes_per_visit"] == {"down": 4 * 98, "up": 4 * 98}
    page = (shell.folder / "plot.html").read_text()
    assert "Who holds what" in page
    assert not re.search(r"<(script|img|link)[^>]+(src|href)=", page)
    assert not (shell.folder / "runs").exists()
    text = shell.good("show", "toy.toml", "-a", "fedavg,local", "--plot", "plot.html")
    assert "fedavg-s0" in text
    assert "local-s0" in text
    assert "plot: plot.html" in text


def test_show_needs_no_plotly_but_a_plot_does(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plotly", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "8 devices" in shell.good("show", "toy.toml")
    message = shell.bad("show", "toy.toml", "--plot", "plot.html")
    assert "is not installed; pip install 'tierfed[report]'" in message


def test_show_offload(shell: Shell) -> None:
    """An edge needs 8 floats and a label a sample behind the first layer, 5 and a label before it."""
    (rows,) = told(shell.good("show", "toy.toml", "--offload", "--json"))["runs"].values()
    assert [r["cut"] for r in rows] == ["", "flat", "fc1", "bn1", "relu1", ""]
    assert [r["floats"] for r in rows] == [0, 5, 8, 8, 8, 0]
    assert [r["recommended"] for r in rows] == [False, False, True, False, False, False]
    text = shell.good("show", "toy.toml", "-a", "fedavg,scaffold", "--offload")
    assert text.count("cut after fc1 (recommended cut)") == text.count("trusted edge") == 2
    assert "the last layer: nothing would be left" in shell.bad(
        "run", "toy.toml", "--set", "offload.mode=split", "--set", "offload.cut=fc2"
    )
    assert not (shell.folder / "runs").exists()


def test_algorithms_and_datasets(shell: Shell) -> None:
    rows = told(shell.good("algorithms", "--json"))
    assert {"name", "paper", "up", "down", "fog to cloud", "models", "needs", "all devices", "different models"} == set(
        rows[0]
    )
    assert {"jobfed", "fedavg", "local"} <= {r["name"] for r in rows}
    sets = told(shell.good("datasets", "--json"))
    assert {s["name"]: s["here"] for s in sets}["watch"] is True
    assert {"name", "about", "devices", "license", "origin", "here"} == set(sets[0])
    assert "jobfed" in shell.good("algorithms")
    assert "watch" in shell.good("datasets")


def test_version(shell: Shell) -> None:
    import tierfed

    assert shell.good("--version") == f"tierfed {tierfed.__version__}\n"


@pytest.mark.parametrize("preset", ["quickstart"])
def test_preset(shell: Shell, preset: str) -> None:
    facts = told(shell.good("show", preset, "--seeds", "0", "--json"))["runs"]
    assert list(facts) == ["jobfed-s0", "fedavg-s0", "local-s0"]
    assert facts["jobfed-s0"]["tree"] == "1 cloud - 10 fog - 20 device"


def test_piped_output_is_plain(shell: Shell) -> None:
    """A real pipe, with the strongest wish for colors that an environment can have short of forcing them."""
    done = interpreter(shell.folder, "run", "toy.toml", "--out", "r", *SHORT)
    assert done.returncode == 0
    assert done.stderr == ""
    assert not CONTROL.search(done.stdout)
    assert done.stdout.startswith("r: round 0/2  global 0.")
    assert "weighted mean" in done.stdout  # a pipe has no width that would break a heading


OWN = """
from dataclasses import dataclass

from torch import nn

from tierfed import Algorithm


class Net(nn.Module):
    def __init__(self, shape, outputs, width=4):
        super().__init__()
        self.a, self.b = nn.Linear(shape[0], width), nn.Linear(width, outputs)

    def forward(self, x):
        return self.b(self.a(x).tanh())


@dataclass(frozen=True, kw_only=True)
class Mine(Algorithm):
    momentum: float = 0.5

    def device(self, task, msg, state, data):
        return {"params": task.train(msg["params"], data, self.lr)}, state


def loss(out, y):
    return -out.log_softmax(1).gather(1, y[:, None])[:, 0]
"""


def test_own_model_algorithm_and_loss_from_the_working_folder(shell: Shell) -> None:
    (shell.folder / "my_parts.py").write_text(OWN)
    text = shell.config.read_text().replace('"mlp"', '"my_parts:Net"\nloss = "my_parts:loss"')
    text = text.replace("hidden = [8]\nbatch_norm = true", "width = 3").replace(
        '"fedavg"', '"my_parts:Mine"\nmomentum = 0.9'
    )
    (shell.folder / "own.toml").write_text(text)
    done = process(shell.folder, "run", "own.toml", "--out", "own", "--json", *SHORT)
    assert done.returncode == 0, done.stderr
    assert told(done.stdout)["algorithm"] == "my_parts:Mine"
    plain = text.replace('name = "my_parts:Mine"\nmomentum = 0.9', 'name = "fedavg"').replace(
        'loss = "my_parts:loss"', ""
    )
    (shell.folder / "plain.toml").write_text(plain)
    shell.good("run", "plain.toml", "--out", "plain", *SHORT)
    scores = [pq.read_table(shell.folder / r / "metrics.parquet").filter(_accuracy()) for r in ("own", "plain")]
    assert scores[0].equals(scores[1])
    assert "momentumm" in shell.bad("run", "own.toml", "--set", "algorithm.momentumm=1")


def _accuracy() -> Any:
    import pyarrow.compute as pc

    return pc.field("metric") == "accuracy"


def test_grid_of_own_algorithms_in_processes(shell: Shell) -> None:
    (shell.folder / "my_grid.py").write_text(OWN)
    grid = ("-a", "my_grid:Mine,fedavg", "--set", "run.jobs=2", "--out", "g", "--json", *SHORT)
    done = process(shell.folder, "run", "toy.toml", *grid)
    assert done.returncode == 0, done.stderr
    assert set(told(done.stdout)["runs"]) == {"my_grid.Mine-s0", "fedavg-s0"}


def _write(folder: Path, kind: str) -> str:
    """The toy data as a file with columns, for a regression as csv."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    from cli.shell import toy_arrays

    arrays = toy_arrays(regression=kind == "csv")
    columns = {f"f{i}": arrays["x"][:, i] for i in range(5)}
    label = arrays["y"] if kind == "csv" else np.where(arrays["y"] == 1, "up", "down")
    table = pa.table({**columns, "target": label, "owner": [f"dev {i}" for i in arrays["device"]]})
    if kind == "csv":
        pyarrow.csv.write_csv(table, folder / "own.csv")
    else:
        pq.write_table(table, folder / "own.parquet")
    return f"own.{kind}"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_own_tables(shell: Shell, kind: str) -> None:
    """csv: a regression with the loss mse, in float64; parquet: labels by name."""
    path = _write(shell.folder, kind)
    number = kind == "csv"
    (shell.folder / "own.toml").write_text(f"""
[run]
rounds = 4
dtype = "{"float64" if number else "float32"}"
[data]
source = "{kind}"
path = "{path}"
batch = "all"
[data.columns]
label = "target"
device = "owner"
target = "{"number" if number else "class"}"
[model]
loss = "{"mse" if number else "auto"}"
options = {{ hidden = [8] }}
[algorithm]
name = "finetune"
lr = 0.1
epochs = 5
""")
    found = told(shell.good("run", "own.toml", "--out", "r", "--json"))
    assert found["metric"] == ("abs_error" if number else "accuracy")
    assert found["devices"] == 8
    assert found["teams"] == 0
    devices = pq.read_table(shell.folder / "r" / "devices.parquet").to_pydict()
    assert devices["device"] == [f"dev {i}" for i in range(8)]
    personal = found["models"]["personal_post"]["weighted"]
    everybody = found["models"]["global"]["weighted"]
    assert (personal < everybody) if number else (personal > everybody)


@pytest.mark.parametrize(
    ("settings", "tree"),
    [
        (("topology.fogs=0", "topology.teams=random"), "1 cloud - 8 device"),
        (("topology.fogs=[1, 2]",), "1 cloud - 1 region - 2 fog - 8 device"),
        (("topology.clusters=2",), "1 cloud - 2 fog - 4 cluster - 8 device"),
    ],
)
def test_trees(shell: Shell, settings: tuple[str, ...], tree: str) -> None:
    changes = [part for s in settings for part in ("--set", s)]
    (facts,) = told(shell.good("show", "toy.toml", *changes, "--json"))["runs"].values()
    assert facts["tree"] == tree
    found = told(shell.good("run", "toy.toml", *changes, "-a", "jobfed", "--out", "r", "--json", *SHORT))
    assert found["rounds"] == 2
    links = set(pq.read_table(shell.folder / "r" / "metrics.parquet").filter(_links())["node"].to_pylist())
    levels = [part.split()[1] for part in tree.split(" - ")]
    assert links == {f"{a}-{b}" for a, b in itertools.pairwise(levels)}


def _links() -> Any:
    import pyarrow.compute as pc

    return pc.field("tier") == "link"


def test_gain_over_a_baseline(shell: Shell) -> None:
    shell.good("run", "toy.toml", "-a", "local", "--set", "eval.post=true", "--out", "base", *SHORT)
    found = told(shell.good("run", "toy.toml", "--set", "eval.baseline=base", "--out", "r", "--json", *SHORT))
    gains = _accuracies(shell.folder / "r", "global") - _accuracies(shell.folder / "base", "personal_post")
    assert found["models"]["global"]["gain"] == pytest.approx(gains.mean(), abs=1e-12)
    assert np.abs(gains).max() > 0.0


def _accuracies(run: Path, model: str) -> Any:
    """Of every device after the last round, [8]"""
    rows = pq.read_table(run / "metrics.parquet").to_pylist()
    last = max(r["round"] for r in rows)
    wanted = (last, "device", model, "accuracy")
    return np.array([r["value"] for r in rows if (r["round"], r["tier"], r["model"], r["metric"]) == wanted])

"""The Python API: what it exports, and what it takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import tierfed
from tierfed.data import Columns, DataSettings, open_source
from tierfed.frames import dataset, to_arrow


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).tanh())  # type: ignore[no-any-return]


def columns(rows: int = 60) -> dict[str, Any]:
    """Three people with numbers a, b, c; the label says whether a + b is positive, for cid the other way round."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(rows, 3))
    device = np.array(["ann", "bob", "cid"])[np.arange(rows) % 3]
    up = (numbers[:, 0] + numbers[:, 1] > 0) ^ (device == "cid")
    return {
        **dict(zip("abc", numbers.T, strict=True)),
        "label": np.where(up, "up", "down"),
        "device": device,
    }


SMALL: dict[str, Any] = {"run": {"rounds": 2, "threads": 1}, "data": {"batch": 4}, "algorithm": {"name": "finetune"}}


def test_exports() -> None:
    assert tierfed.__all__ == [
        "Algorithm", "Average", "Batch", "Config", "Data", "Dataset", "Federation", "Idle", "Info", "InputError",
        "Progress", "Relay", "Result", "Task", "Tier", "__version__", "export", "from_table", "load_config",
        "load_model", "open_run", "personalize", "resume", "run", "watching",
    ]  # fmt: skip
    assert all(hasattr(tierfed, name) for name in tierfed.__all__)


def test_import_is_light() -> None:
    """Beyond PyTorch nothing that takes long: charts, clustering and data frames wait until they are needed."""
    code = (
        "import sys, tierfed; "
        "heavy = {'plotly', 'jinja2', 'sklearn', 'scipy', 'pandas', 'polars', 'onnx', 'onnxruntime', 'onnxscript'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=250)
    assert done.stdout.strip() == ""


def test_ten_lines_for_an_own_model_and_table(tmp_path: Path) -> None:
    frame = pa.table(columns())
    result = tierfed.run(
        {"algorithm": {"name": "ditto"}, "run": {"rounds": 2, "out": str(tmp_path / "r")}, "data": {"batch": 4}},
        data=frame,
        module=Net(),
    )
    assert set(result.scores) == {"global", "personal_pre", "personal_post"}
    assert result.personal_model("cid")(torch.zeros(5, 3)).shape == (5, 2)
    assert result.global_model()(torch.zeros(5, 3)).shape == (5, 2)
    assert result.world.federation.devices == ("ann", "bob", "cid")
    assert (tmp_path / "r" / "metrics.parquet").exists()


def test_a_run_is_opened_again_with_its_models_and_scores(tmp_path: Path) -> None:
    config = {"algorithm": {"name": "ditto"}, "run": {"rounds": 1, "out": str(tmp_path / "r")}, "data": {"batch": 4}}
    frame, module, x = pa.table(columns()), Net(), torch.ones(5, 3)
    result = tierfed.run(config, data=frame, module=module)
    with pytest.raises(tierfed.InputError, match="begun in Python with data="), tierfed.open_run(tmp_path / "r"):
        pass
    with tierfed.open_run(tmp_path / "r", data=frame, module=module) as run:
        assert (run.scores, run.trained) == (result.scores, 0)
        assert torch.equal(run.personal_model("bob")(x), result.personal_model("bob")(x))
        assert torch.equal(run.global_model()(x), result.global_model()(x))


def test_a_folder_without_a_committed_round_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[run]\nrounds = 1\n")
    with pytest.raises(tierfed.InputError, match="no committed round; go on"), tierfed.open_run(tmp_path):
        pass


def test_metrics_as_a_frame() -> None:
    result = tierfed.run(SMALL, data=columns(), folder=False)
    for library in ("pandas", "polars"):
        pytest.importorskip(library)
        frame = result.frame(library)  # type: ignore[arg-type]
        assert type(frame).__module__.startswith(library)
        assert list(frame.columns) == ["round", "tier", "node", "model", "split", "metric", "value"]
        assert frame["value"].to_list() == result.metrics["value"].to_pylist()
    with pytest.raises(tierfed.InputError, match="did you mean 'polars'"):
        result.frame("poolars")  # type: ignore[arg-type]
    page = result._repr_html_()
    assert "<th>personal_pre</th><td>" in page
    assert f"{result.scores['global']:.4f}" in page


def test_progress_of_a_notebook() -> None:
    from tierfed.progress import as_html

    page = as_html(
        [
            tierfed.Progress(name="a<b", round=1, rounds=4, scores={"global": 0.5}, evaluated=True, bytes=2_000_000),
            tierfed.Progress(name="c", round=0, rounds=4, scores={}, evaluated=False, bytes=0, doing="reading"),
        ]
    )
    assert page.count("<tr>") == 2
    assert '<th>a&lt;b</th><td><progress value="1" max="4"></progress> 1/4</td><td>global 0.500</td>' in page
    assert "reading" in page


def same_data(a: tierfed.Dataset, b: tierfed.Dataset) -> bool:
    assert a.device is not None
    assert b.device is not None
    same = torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and np.array_equal(a.device, b.device)
    return same and (a.devices, a.classes, a.features) == (b.devices, b.classes, b.features)


class OnlyArrow:
    """Any data frame that speaks Arrow, and nothing else."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def test_a_table_is_what_the_same_rows_in_a_file_are(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pq.write_table(pa.table(columns()), tmp_path / "table.parquet")
    expected = open_source(DataSettings(source="parquet", path=str(tmp_path / "table.parquet")))
    assert expected.features == ("a", "b", "c")
    polars = pytest.importorskip("polars")
    frames = (pa.table(columns()), OnlyArrow(pa.table(columns())), pandas.DataFrame(columns()))
    for frame in (columns(), *frames, polars.DataFrame(columns())):
        assert same_data(tierfed.from_table(frame), expected)


def test_the_index_of_a_frame_is_no_feature() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(columns())
    assert tierfed.from_table(frame[frame.a > 0]).features == ("a", "b", "c")
    assert tierfed.from_table(frame.rename_axis("row")).features == ("a", "b", "c")
    assert tierfed.from_table(frame.set_index("device")).devices == ("ann", "bob", "cid")
    by_name = frame.rename(columns={"device": "who"}).set_index("who")
    assert tierfed.from_table(by_name, device="who").devices == ("ann", "bob", "cid")


def test_from_table_takes_the_columns_by_name() -> None:
    own = {"who": ["x", "x", "y"], "a": [1, 2, 3], "b": [0.5, 0.25, 0.125], "c": [9, 9, 9], "out": [1.5, 2.5, 3.5]}
    data = tierfed.from_table(own, label="out", device="who", features=["b", "a"], target="number", name="meters")
    assert data.x.tolist() == [[0.5, 1], [0.25, 2], [0.125, 3]]
    assert data.y.tolist() == [1.5, 2.5, 3.5]
    assert (data.name, data.devices, data.classes) == ("meters", ("x", "y"), ())


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ([1, 2], r"data is builtins\.list; wanted a tierfed\.Dataset, or a table"),
        (3, "wanted a tierfed"),
        ({"a": [1.0], "label": [1], "device": [[1], [2]]}, "the table cannot be read"),
        ({"a": [1.0, 2.0], "labl": [1, 0]}, "the table has no column 'label' .*did you mean 'labl'"),
        ({"label": [1, 0], "device": [1, 2]}, "the table has no numeric column besides 'label'"),
        ({"a": [1.0, None], "label": [None, 1]}, "the table: column 'label' has 1 empty entries, the first in row 0"),
        ({"a": [[1], [2]], "label": [0, 1]}, "the table has no numeric column"),
    ],
)
def test_tables_that_cannot_be_used(frame: Any, message: str) -> None:
    with pytest.raises(tierfed.InputError, match=message):
        tierfed.from_table(frame)


def test_a_data_set_is_taken_as_it_is() -> None:
    data = tierfed.from_table(columns())
    assert dataset(data, Columns()) is data
    assert to_arrow(columns()).column_names == ["a", "b", "c", "label", "device"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"roundz": 1}}, "did you mean 'rounds'"),
        ({"algorithm": {"name": "nope"}}, "unknown algorithm 'nope'"),
        ({"data": {"batch": 0}}, "data.batch = 0"),
        ({"data": {"columns": {"label": "lable"}}}, "no column 'lable'.*did you mean 'label'"),
        ({"topology": {"participation": 9}}, "asks for 9 participants"),
        (
            {"algorithm": {"name": "jobfed", "private_set": "none"}, "data": {"split": {"val": 0}}},
            "held-out local data",
        ),
        ({"algorithm": {"name": "jobfed"}}, "the model 'mlp' has no batch norm; set model.options.batch_norm = true"),
    ],
)
def test_bad_input_raises(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tierfed.InputError, match=message):
        tierfed.run({**SMALL, **changes}, data=columns(), folder=False)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(4, 2), "does not fit the data.*shape \\[3\\]"),
        (nn.Linear(3, 5), "does not fit the data"),
        (Net, "wanted an nn.Module, for example module=Net\\(\\)"),
        (nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), "does not fit the data"),
    ],
)
def test_modules_that_do_not_fit(module: Any, message: str) -> None:
    with pytest.raises(tierfed.InputError, match=message):
        tierfed.run(SMALL, data=columns(), module=module, folder=False)


def test_nan_and_presets() -> None:
    frame = columns()
    frame["b"][4] = np.nan
    with pytest.raises(tierfed.InputError, match=r"NaN or infinite, the first in row 4 .*column b"):
        tierfed.run(SMALL, data=frame, folder=False)
    with pytest.raises(tierfed.InputError, match="did you mean 'har'"):
        tierfed.run("harr")


def test_a_preset_by_name_trains_its_own_algorithm() -> None:
    config = tierfed.load_config("quickstart", {"run.rounds": 1, "eval.post": False, "data.train_fraction": 0.1})
    result = tierfed.run(config, folder=False)
    assert result.folder is None
    assert type(result.world.algorithm).__name__ == "JobFed"
    assert result.trained == 1


def test_models_by_name_say_what_is_wrong() -> None:
    result = tierfed.run({**SMALL, "algorithm": {"name": "local"}}, data=columns(), folder=False)
    with pytest.raises(tierfed.InputError, match="no complete global model"):
        result.global_model()
    with pytest.raises(tierfed.InputError, match="no device 'ana'; did you mean 'ann'"):
        result.personal_model("ana")


def begun(folder: Path, module: nn.Module) -> None:
    """A run in Python that is stopped after one of its two rounds."""

    def interrupt(progress: tierfed.Progress) -> None:
        if progress.round == 1:
            raise KeyboardInterrupt

    config = tierfed.load_config(SMALL, {"run.out": str(folder)})
    result = tierfed.run(config, data=columns(), module=module, watch=interrupt)
    assert (result.interrupted, result.trained) == (True, 1)


def test_resume_with_what_was_given(tmp_path: Path) -> None:
    """The initial values of a module are the run's: an instance with others goes on as the first one would have."""
    module = Net()
    begun(tmp_path / "r", module)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    result = tierfed.resume(tmp_path / "r", data=columns(), module=module)
    assert (result.interrupted, result.trained) == (False, 1)
    assert all(not p.any() for p in module.parameters())
    fresh = Net()
    begun(tmp_path / "s", fresh)
    whole = tierfed.run(tierfed.load_config(SMALL), data=columns(), module=fresh, folder=False)
    again = tierfed.resume(tmp_path / "s", data=columns(), module=Net())
    assert again.metrics.equals(whole.metrics)


def test_resume_without_what_was_given(tmp_path: Path) -> None:
    begun(tmp_path / "r", Net())
    with pytest.raises(tierfed.InputError, match=r"begun in Python with data= \(table\).*tierfed\.resume"):
        tierfed.resume(tmp_path / "r", module=Net())
    with pytest.raises(tierfed.InputError, match=r"begun in Python with module= \(Net\)"):
        tierfed.resume(tmp_path / "r", data=columns())
    other = columns()
    other["a"] = other["a"] * np.linspace(1, 2, 60)
    with pytest.raises(tierfed.InputError, match=r"data of the run .* are not those"):
        tierfed.resume(tmp_path / "r", data=other, module=Net())
    with pytest.raises(tierfed.InputError, match="not the one that the run was begun with"):
        tierfed.resume(tmp_path / "r", data=columns(), module=nn.Sequential(nn.Linear(3, 2)))


def test_watching(tmp_path: Path) -> None:
    seen: list[tierfed.Progress] = []
    result = tierfed.run(SMALL, data=columns(), watch=seen.append, folder=False)
    assert [p.round for p in seen] == [0, 1, 2]
    assert [p.evaluated for p in seen] == [True, False, True]
    assert seen[0].bytes == 0
    # flat: the model goes to 3 devices and comes back in each round
    size = sum(p.numel() for p in result.global_model().parameters()) * 4
    assert [p.bytes for p in seen[1:]] == [6 * size, 12 * size]
    assert seen[-1].scores == result.scores

"""Exported files: what they hold, that ONNX Runtime and a loaded module predict what PyTorch does, what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tierfed
from tierfed.algorithm import Algorithm
from tierfed.data.dataset import Scaling
from tierfed.data.settings import DataSettings
from tierfed.data.sources import open_source
from tierfed.errors import InputError
from tierfed.export import Export, ModelCard
from tierfed.export import onnx as graphs
from tierfed.export.card import from_json
from tierfed.export.check import Variant, losses
from tierfed.export.prune import keep_largest, masked, tuned, weights
from tierfed.models import MODELS, build_model
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.testing.toy import half_square

INT8 = onnx.TensorProto.INT8


def card(**changes: Any) -> ModelCard:
    facts: dict[str, Any] = {
        "model": "mlp", "options": {}, "shape": (3,), "outputs": 2, "classes": ("a", "b"), "dtype": "float32",
        "raw_dtype": "float32", "divisor": 1.0, "mean": None, "std": None, "device": "ann", "kind": "personal",
        "data": "toy", "algorithm": "local", "run": "r", "round": 3, "sparsity": None, "int8": False, "tierfed": "0",
    }  # fmt: skip
    return ModelCard(**{**facts, **changes})


def infer(content: bytes | Path, raw: Tensor) -> dict[str, Any]:
    """All outputs by name, from ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(
        content if isinstance(content, bytes) else str(content), providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {"sample": raw.numpy()}), strict=True))


def operators(content: bytes) -> list[str]:
    return [n.op_type for n in onnx.load_from_string(content).graph.node]


def clouds(x: Tensor, y: np.ndarray, devices: int = 2) -> tierfed.Dataset:
    names = tuple(f"d{i}" for i in range(devices))
    return tierfed.Dataset(
        name="clouds",
        x=x,
        y=torch.from_numpy(y),
        classes=tuple(f"class {c}" for c in range(int(y.max()) + 1)),
        bits_per_sample=32,
        devices=names,
        device=np.arange(len(y)) % devices,
    )


def numbers(rows: int = 1200) -> tierfed.Dataset:
    """Three overlapping clouds of six numbers far from 0, for two devices."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, rows)
    centers = rng.normal(size=(3, 6))
    x = 1000 + 50 * (1.5 * centers[y] + rng.normal(size=(rows, 6)))
    return clouds(torch.from_numpy(x.astype(np.float32)), y)


def pictures(rows: int = 160) -> tierfed.Dataset:
    """Bytes [3, 20, 20] with a bright half, upper or lower."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, rows)
    x = rng.integers(0, 120, (rows, 3, 20, 20))
    for half in (0, 1):
        x[y == half, :, 10 * half : 10 * half + 10] += 100
    return clouds(torch.from_numpy(x.astype(np.uint8)), y)


def trained(data: tierfed.Dataset, model: str, rounds: int = 3, algorithm: str = "local", **changes: Any) -> Any:
    config = {
        "run": {"rounds": rounds, "threads": 1},
        "data": {"batch": 20},
        "model": {"name": model},
        "algorithm": {"name": algorithm, "lr": 0.1},
        "eval": {"post": False},
    }
    return tierfed.run(tierfed.load_config(config, changes), data=data, folder=False)


@pytest.fixture(scope="module")
def table_run() -> tierfed.Result:
    return trained(numbers(), "mlp", **{"model.options.hidden": [32], "model.options.batch_norm": True})  # type: ignore[no-any-return]


def test_watch_data_personal_model(tmp_path: Path) -> None:
    """The windows as the source gives them are fed; the labels are those of the personal model in PyTorch."""
    config = tierfed.load_config("quickstart", {"run.rounds": 1, "eval.post": False, "data.train_fraction": 0.1})
    result = tierfed.run(config, folder=False)
    done = tierfed.export(result, "subject-03-left", tmp_path / "done.onnx")
    federation = result.world.federation
    rows = torch.from_numpy(federation.test[federation.devices.index("subject-03-left")])
    raw = open_source(config.data).x[rows]
    expected = result.personal_model("subject-03-left")(federation.x[rows])
    got = infer(done.file, raw)
    assert (got["label"] == expected.argmax(1).numpy()).mean() >= 0.999
    assert np.abs(got["logits"] - expected.detach().numpy()).max() < 1e-4
    assert (done.samples, done.variants[0].bytes) == (len(rows), done.file.stat().st_size)
    assert done.variants[0].score == pytest.approx(float((expected.argmax(1) == federation.y[rows]).float().mean()))
    # cnn1d: each batch norm follows its convolution and is folded into it
    assert "BatchNormalization" not in operators(done.file.read_bytes())


def test_cnn_on_bytes(tmp_path: Path) -> None:
    result = trained(pictures(), "har_cnn", rounds=5)
    done = tierfed.export(result, "d1", tmp_path / "d1.onnx", int8=True)
    assert (done.card.raw_dtype, done.card.divisor, done.card.shape) == ("uint8", 255.0, (3, 20, 20))
    federation = result.world.federation
    rows = torch.from_numpy(federation.test[1])
    got = infer(done.file, pictures().x[rows])
    assert got["probabilities"].sum(1) == pytest.approx(1.0, abs=1e-5)
    assert (got["label"] == got["logits"].argmax(1)).all()
    assert done.variants[0].same == 1.0
    assert done.variants[0].largest_difference < 1e-4
    assert min(v.score for v in done.variants) > 0.9
    # 32,666 numbers: 4 bytes each, or 1 byte and the nodes that scale them
    assert done.variants[0].bytes > 4 * 32_666 > 2 * done.variants[1].bytes
    one = infer(done.file, pictures().x[rows[:1]])  # the batch axis has any length
    assert one["logits"].shape == (1, 2)


def test_int8_is_within_a_point_and_the_same_every_time(table_run: tierfed.Result, tmp_path: Path) -> None:
    done = tierfed.export(table_run, "d0", tmp_path / "a.onnx", int8=True)
    again = tierfed.export(table_run, "d0", tmp_path / "b.onnx", int8=True)
    assert done.file.read_bytes() == again.file.read_bytes()
    before, after = done.variants
    assert done.samples >= 100
    assert before.score > 0.7
    assert abs(before.score - after.score) <= 0.01
    assert done.warnings == ()
    held = {t.name: t for t in onnx.load(str(done.file)).graph.initializer}
    ints = [t for t in held.values() if t.data_type == INT8 and len(t.dims) == 2]
    assert sorted(list(t.dims) for t in ints) == [[3, 32], [32, 6]]
    scales = [list(t.dims) for name, t in held.items() if name.endswith("weight_scale")]
    assert sorted(scales) == [[3], [32]]  # one for each output channel


def test_pruned_and_in_8_bits(table_run: tierfed.Result, tmp_path: Path) -> None:
    """6 * 32 + 32 * 3 = 288 weights; round(0.75 * 288) = 216 go, and 72 are left in every later stage."""
    done = tierfed.export(table_run, "d0", tmp_path / "a.onnx", prune=0.75, tune_epochs=3, int8=True)
    assert [(v.name, v.weights, v.nonzeros) for v in done.variants] == [
        ("float", 288, 288), ("pruned", 288, 72), ("tuned", 288, 72), ("int8", 288, 72),
    ]  # fmt: skip
    graph = onnx.load(str(done.file)).graph
    ints = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == INT8 and len(t.dims) == 2]
    assert sum(np.count_nonzero(w) for w in ints) <= 72
    pruned, tuned_ = done.variants[1:3]
    assert tuned_.score >= pruned.score
    assert tuned_.zipped_bytes < done.variants[0].zipped_bytes
    assert (done.card.sparsity, done.card.int8) == (0.75, True)


def test_metadata_of_onnx(table_run: tierfed.Result, tmp_path: Path) -> None:
    done = tierfed.export(table_run, "d1", tmp_path / "a.onnx", model="personal_post")
    proto = onnx.load(str(done.file))
    facts = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(facts["labels"]) == ["class 0", "class 1", "class 2"]
    assert from_json(facts["tierfed"], "a.onnx") == done.card
    assert (done.card.device, done.card.kind, done.card.round) == ("d1", "personal_post", 3)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", graphs.OPSET)]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b".py" not in done.file.read_bytes()  # nothing of the machine that wrote it


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_safetensors_are_loaded_again(dtype: str, tmp_path: Path) -> None:
    result = trained(numbers(200), "mlp", rounds=1, **{"model.options.hidden": [4], "run.dtype": dtype})
    done = tierfed.export(result, "d1", tmp_path / "d1.safetensors", format="safetensors")
    module, found = tierfed.load_model(done.file)
    assert found == done.card
    federation = result.world.federation
    rows = torch.from_numpy(federation.test[1])
    x = found.prepare(numbers(200).x[rows])
    assert torch.equal(x, federation.x[rows])
    assert torch.equal(module(x), result.personal_model("d1")(federation.x[rows]))
    assert next(module.parameters()).dtype is getattr(torch, dtype)
    assert not module.training


def test_float64_becomes_float32_in_onnx(tmp_path: Path) -> None:
    result = trained(numbers(200), "mlp", rounds=1, **{"model.options.hidden": [4], "run.dtype": "float64"})
    done = tierfed.export(result, "d1", tmp_path / "d1.onnx")
    assert infer(done.file, numbers(200).x[:3])["logits"].dtype == np.float32
    assert done.card.dtype == "float32"
    assert done.variants[0].same == 1.0


class Own(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).tanh())  # type: ignore[no-any-return]


class Branches(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


class TwoFaced(Own):
    """Stands for an exporter that does something else than PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return -out if torch.compiler.is_exporting() else out


def own_run(module: nn.Module, folder: Path | None = None) -> tierfed.Result:
    run: dict[str, Any] = {"rounds": 1, "threads": 1}
    config = {"run": run, "algorithm": {"name": "fedavg"}, "eval": {"post": False}, "engine": {"name": "serial"}}
    if folder is not None:
        run["out"] = str(folder)
    return tierfed.run(config, data=numbers(120), module=module, folder=folder is not None)


def test_own_class(tmp_path: Path) -> None:
    """Its code is not imported by a name in a file: the user gives an instance, which stays as it was."""
    module = Own()
    own_run(module, tmp_path / "r")
    done = tierfed.export(tmp_path / "r", "d0", format="safetensors", model="global", data=numbers(120), module=module)
    assert done.file == tmp_path / "r" / "export" / "d0-global.safetensors"
    assert done.card.model.endswith(":Own")
    assert done.card.run == "r"
    with pytest.raises(InputError, match=r"not one of tierfed's; give an instance.*module="):
        tierfed.load_model(done.file)
    with pytest.raises(InputError, match=r"does not fit the module Own: for 'head.weight' the file has \[3, 5\]"):
        tierfed.load_model(done.file, Own(7))
    fresh = Own()
    before = fresh.head.weight.clone()
    loaded, _ = tierfed.load_model(done.file, fresh)
    assert torch.equal(fresh.head.weight, before)
    with tierfed.open_run(tmp_path / "r", data=numbers(120), module=module) as run:
        x = torch.ones(2, 6)
        assert torch.equal(loaded(x), run.global_model()(x))


def test_what_onnx_cannot_express(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"Branches cannot be expressed as ONNX: .*control flow"):
        tierfed.export(own_run(Branches()), "d0", tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")  # the message says it all


def test_a_file_that_predicts_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"float model predicts as PyTorch does on 0.00% of \d+ test samples"):
        tierfed.export(own_run(TwoFaced()), "d0", tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MODELS)
def test_every_network_agrees_with_pytorch(name: str) -> None:
    shape = (3, 8, 8) if name == "fedbn_cnn" else MODELS[name].shape
    module = build_model(name, shape, 7, {"batch_norm": True, "dropout": 0.5} if name == "mlp" else {}, seed=0)
    draw = torch.Generator().manual_seed(3)
    raw = torch.randint(0, 256, (8, *shape), dtype=torch.uint8, generator=draw)
    facts = card(model=name, shape=shape, classes=tuple("abcdefg"), outputs=7, raw_dtype="uint8", divisor=255.0)
    module.train()(facts.prepare(raw))  # statistics of batch norms
    expected = module.eval()(facts.prepare(raw)).detach()
    content = graphs.to_bytes(module, facts)
    got = graphs.outputs(content, raw)
    assert np.abs(got - expected.numpy()).max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert (infer(content, raw)["label"] == expected.argmax(1).numpy()).all()


def test_a_regression_has_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(300, 4)).astype(np.float32))
    data = tierfed.Dataset(
        name="line", x=x, y=x @ torch.tensor([1.0, -2, 0, 3]), classes=(), bits_per_sample=128,
        devices=("a", "b"), device=np.arange(300) % 2,
    )  # fmt: skip
    done = tierfed.export(trained(data, "mclr", rounds=8), "a", tmp_path / "a.onnx", int8=True)
    assert done.metric == "abs_error"
    assert list(infer(done.file, x[:3])) == ["prediction"]
    assert done.variants[0].same == 1.0
    assert done.variants[0].score < 0.1


def test_standardizing_far_from_zero_keeps_its_digits() -> None:
    """A mean of 2^24 / 10 has an error of up to 1/16 in one float32, with a standard deviation of 1; in two it has
    none."""
    mean = 2.0**24 / 10
    facts = card(shape=(1,), mean=(mean,), std=(1.0,), classes=())
    raw = torch.tensor([[mean], [mean + 3], [mean - 2]], dtype=torch.float32)
    exact = raw.double() - mean
    assert (graphs.Deployed(nn.Identity(), facts)(raw) - exact).abs().max() < 1e-6
    assert (raw - torch.tensor(mean, dtype=torch.float32) - exact).abs().max() > 0.01


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.floats(0, 1), st.floats(0.01, 2))
def test_bytes_come_back_exactly(values: list[int], mean: float, std: float) -> None:
    scaling = Scaling(
        divisor=255.0,
        mean=torch.tensor([[mean]], dtype=torch.float64),
        std=torch.tensor([[std]], dtype=torch.float64),
    )
    raw = torch.tensor(values, dtype=torch.uint8).view(-1, 1)
    assert torch.equal(scaling.raw(scaling(raw, torch.float32)), raw)


def test_a_card_is_the_same_after_json() -> None:
    first = card(mean=(0.1, 1 / 3), std=(1.0, 2.0), shape=(2, 5), options={"hidden": [3]})
    assert from_json(first.to_json(), "x") == first
    assert first.scaling.mean is not None
    assert list(first.scaling.mean.shape) == [1, 2, 1]
    with pytest.raises(InputError, match="x has metadata of tierfed that cannot be read"):
        from_json('{"model": "mlp"}', "x")


def test_a_picture_whose_rows_are_different_sensors() -> None:
    """Two channels of two rows: each has a mean and a deviation of its own."""
    facts = card(mean=(1.0, 2.0, 3.0, 4.0), std=(1.0, 2.0, 1.0, 2.0), shape=(2, 2, 1))
    got = facts.prepare(torch.full((1, 2, 2, 1), 4.0))
    assert got.flatten().tolist() == [3.0, 1.0, 1.0, 0.0]
    whole = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    out = infer(graphs.to_bytes(whole, facts), torch.full((1, 2, 2, 1), 4.0))["logits"]
    with torch.no_grad():
        assert np.allclose(out, whole(got).numpy(), atol=1e-6)


class TestPruning:
    @pytest.fixture
    def net(self) -> nn.Sequential:
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[3.0, -1.0], [0.5, 2.0]]))
            net[2].weight.copy_(torch.tensor([[4.0, -0.1]]))
            net[0].bias.fill_(0.01)
        return net

    def test_the_smallest_of_all_layers_go(self, net: nn.Sequential) -> None:
        """Magnitudes 3, 1, 0.5, 2 and 4, 0.1: half of them is 0.1, 0.5, 1. Bias and norm stay."""
        params = dict(net.state_dict())
        assert weights(net, params) == ["0.weight", "2.weight"]
        out = masked(params, keep_largest(net, params, 0.5))
        assert out["0.weight"].tolist() == [[3, 0], [0, 2]]
        assert out["2.weight"].tolist() == [[4, 0]]
        assert all(torch.equal(out[k], params[k]) for k in params if k not in ("0.weight", "2.weight"))

    @settings(max_examples=25, deadline=None)
    @given(st.floats(0, 1, exclude_max=True), st.integers(0, 99))
    def test_as_many_go_as_were_asked_for(self, sparsity: float, seed: int) -> None:
        net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(6, 4))
        draw = torch.Generator().manual_seed(seed)
        params = {k: torch.randn(v.shape, generator=draw) for k, v in net.state_dict().items()}
        masks = keep_largest(net, params, sparsity)
        size = torch.cat([params[k].abs().flatten() for k in masks])
        kept = torch.cat([m.flatten() for m in masks.values()])
        assert int((~kept).sum()) == round(sparsity * 42)
        if kept.any() and not kept.all():
            assert float(size[kept].min()) >= float(size[~kept].max())

    def test_fine_tuning_leaves_zeros_alone(self) -> None:
        """w = (2, 1) without its second half. On x = (1, 1), y = 0 the gradient of 1/2 (w x)^2 is w x in both places:
        a step of 0.1 takes w to (1.8, 0) and then to (1.62, 0)."""
        net = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
        with torch.no_grad():
            net[0].weight.copy_(torch.tensor([[2.0, 1.0]]))
        task = Task(net, half_square)
        x, y = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        plan = Plan(x=x, y=y, train=[np.array([0])], held=[np.array([0])], dtype=torch.float64)
        masks = keep_largest(task.module, task.init(), 0.5)
        out = tuned(task, task.init(), masks, plan.one(0, Algorithm(epochs=2), 0, 0), 0.1)
        assert out["0.weight"][0].tolist() == pytest.approx([1.62, 0.0], abs=1e-12)

    def test_nothing_to_prune(self) -> None:
        with pytest.raises(InputError, match="no weights of linear layers or convolutions"):
            keep_largest(nn.BatchNorm1d(2), dict(nn.BatchNorm1d(2).state_dict()), 0.5)


def variant(name: str, score: float) -> Variant:
    return Variant(
        name=name, score=score, same=1.0, largest_difference=0.0, weights=1, nonzeros=1, bytes=1, zipped_bytes=1
    )


def test_what_costs_more_than_a_point_is_told() -> None:
    """Pruning is judged after its fine-tuning, and int8 against that."""
    stages = [variant("float", 0.9), variant("pruned", 0.4), variant("tuned", 0.87), variant("int8", 0.85)]
    assert losses(tuple(stages), "classification", 50) == (
        "pruning costs 3.0 points of accuracy (90.0% -> 87.0% on 50 test samples)",
        "int8 costs 2.0 points of accuracy (87.0% -> 85.0% on 50 test samples)",
    )
    assert losses((variant("float", 0.9), variant("int8", 0.895)), "classification", 50) == ()
    (text,) = losses((variant("float", 2.0), variant("int8", 2.5)), "regression", 9)
    assert text == "int8 makes the error larger by 25.0% (2 -> 2.5 on 9 test samples)"


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"device": "d9"}, "no device 'd9'; did you mean 'd"),
            ({"model": "persnal"}, "model = 'persnal' is unknown; did you mean 'personal'"),
            ({"model": "team"}, "has no complete team model for the device 'd0'; choose personal or personal_post"),
            ({"model": "global"}, "has no complete global model"),
            ({"format": "onxx"}, "format = 'onxx' is unknown; did you mean 'onnx'"),
            ({"format": "safetensors", "int8": True}, "int8 is for ONNX"),
            ({"prune": 1.0}, r"prune = 1\.0: wanted .* at least 0 and less than 1"),
            ({"prune": -0.1}, r"prune = -0\.1: wanted"),
            ({"prune": float("nan")}, "prune = nan: wanted"),
            ({"prune": 0.5, "tune_epochs": -1}, "tune_epochs = -1: wanted"),
            ({"out": "there/is/none.onnx"}, "there is no folder there/is for none.onnx"),
        ],
    )
    def test_options(
        self,
        table_run: tierfed.Result,
        options: dict[str, Any],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=message):
            tierfed.export(table_run, **{"device": "d0", **options})
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_file(self, table_run: tierfed.Result, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_text("mine")
        with pytest.raises(InputError, match=r"a\.onnx exists; delete it, or choose another file with --out"):
            tierfed.export(table_run, "d0", tmp_path / "a.onnx")
        assert (tmp_path / "a.onnx").read_text() == "mine"

    def test_a_missing_package(
        self, table_run: tierfed.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(InputError, match=r"'onnxscript', which is not installed; pip install 'tierfed\[export\]'"):
            tierfed.export(table_run, "d0", tmp_path / "a.onnx")
        done: Export = tierfed.export(table_run, "d0", tmp_path / "a.safetensors", format="safetensors")
        assert done.file.exists()

    def test_a_device_without_test_rows(self, tmp_path: Path) -> None:
        run = trained(numbers(100), "mclr", rounds=1, **{"data.split.test": 0.0})
        with pytest.raises(InputError, match=r"'d0' has no test samples, so its model cannot be checked"):
            tierfed.export(run, "d0", tmp_path / "a.onnx")

    def test_an_unfinished_run(self, tmp_path: Path) -> None:
        def interrupt(progress: tierfed.Progress) -> None:
            if progress.round == 1:
                raise KeyboardInterrupt

        config = {"run": {"rounds": 2, "threads": 1}, "model": {"name": "mclr"}, "algorithm": {"name": "local"}}
        run = tierfed.run(config, data=numbers(100), folder=False, watch=interrupt)
        assert run.interrupted
        with pytest.raises(InputError, match="the run has trained 1 of its 2 rounds"):
            tierfed.export(run, "d0", tmp_path / "a.onnx")

    @pytest.mark.parametrize("content", [b"", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"nonsense that is no header"])
    def test_a_file_of_somebody_else(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"is no safetensors file|has no metadata of tierfed"):
            tierfed.load_model(tmp_path / "a.safetensors")
        with pytest.raises(InputError, match="cannot read the model"):
            tierfed.load_model(tmp_path / "b.safetensors")


def test_settings_of_the_source_are_not_needed() -> None:
    """The windows of `watch` come back from their standardized values, up to the last digit."""
    data = open_source(DataSettings(source="watch"))
    axes = [0, 2]
    mean, std = data.x.double().mean(axes, keepdim=True), data.x.double().std(axes, correction=0, keepdim=True)
    scaling = Scaling(mean=mean, std=std)
    back = scaling.raw(scaling(data.x, torch.float32))
    assert (back - data.x).abs().max() <= 1e-6 * data.x.abs().max()


def test_a_result_in_hand_knows_devices_that_were_never_asked(tmp_path: Path) -> None:
    """One of two devices is polled; the other's private state was never written, and the run's store is closed."""
    config = {
        "run": {"rounds": 1, "threads": 1, "out": str(tmp_path / "r")},
        "model": {"name": "mclr"},
        "algorithm": {"name": "ditto"},
        "topology": {"participation": 1},
        "eval": {"post": False},
    }
    result = tierfed.run(config, data=numbers(100))
    done = [tierfed.export(result, d, format="safetensors") for d in ("d0", "d1")]
    polled = {i for v in result.engine.log.visits for i in v.devices}
    assert len(polled) == 1
    start = result.world.task.init()["fc1.weight"]
    for i, found in enumerate(done):
        module, _ = tierfed.load_model(found.file)
        assert torch.equal(module.get_parameter("fc1.weight"), start) == (i not in polled)
    tierfed.resume(tmp_path / "r", rounds=2, data=numbers(100))
    with pytest.raises(InputError, match=r"went on since; open it again with tierfed\.open_run"):
        result.engine.store.get("own", 77)

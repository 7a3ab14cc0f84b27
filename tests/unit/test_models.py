"""The networks' exact sizes, their initialization, and the errors that a user can cause."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tierfed.errors import InputError
from tierfed.models import MODELS, build_model, check_fit, fitting
from tierfed.models.networks import Shape

# name, shape, outputs, options, (trainable parameters, batch-norm buffers)
SIZES = [
    ("epflu_mlp", (1, 28, 28), 10, {}, (784 * 200 + 200 + 2 * 200 + 200 * 200 + 200 + 2010, 400)),
    ("epflu_mlp", (784,), 10, {}, (199_610, 400)),
    ("mtfl_cnn", (3, 32, 32), 10, {}, (1_204_874, 192)),
    ("mtfl_cnn", (3, 32, 32), 100, {}, (1_204_874 + 90 * 513, 192)),
    ("epflu_cnn", (3, 32, 32), 10, {}, (2_122_378, 192)),
    ("har_3nn", (1200,), 10, {}, (521_510, 0)),
    ("har_3nn", (3, 20, 20), 10, {}, (521_510, 0)),
    ("har_cnn", (3, 20, 20), 10, {}, (896 + 4624 + 1160 + 25_728 + 1290, 0)),
    ("har_cnn", (3, 20, 20), 10, {}, (33_698, 0)),
    # a picture of 10 x 10 is one of 2 x 2 after two poolings: 32 x 128 + 128, and 128 x 6 + 6
    ("har_cnn", (3, 10, 10), 6, {}, (896 + 4624 + 1160 + 4224 + 774, 0)),
    ("har_3nn", (3, 20, 20), 10, {}, (521_510, 0)),
    ("lenet16", (3, 32, 32), 10, {}, (121_182, 0)),
    ("lenet16", (3, 32, 32), 100, {}, (128_832, 0)),
    ("lenet16_bn", (3, 32, 32), 10, {}, (121_278, 96)),
    ("lenet16_bn", (3, 32, 32), 100, {}, (128_928, 96)),
    ("lenet16_28", (1, 28, 28), 10, {}, (85_822, 0)),
    ("lenet16_28", (1, 28, 28), 47, {}, (88_967, 0)),
    ("lenet16_28", (1, 28, 28), 62, {}, (90_242, 0)),
    ("fedbn_cnn", (3, 32, 32), 10, {}, (18_146_250, 512)),
    ("mclr", (1, 28, 28), 10, {}, (7_850, 0)),
    ("mclr", (1, 28, 28), 62, {}, (48_670, 0)),
    ("mclr", (60,), 10, {}, (610, 0)),
    ("mclr", (3, 32, 32), 100, {}, (307_300, 0)),
    ("permfl_dnn", (60,), 10, {}, (1_430, 0)),
    ("permfl_dnn", (1, 28, 28), 10, {"hidden": [100]}, (79_510, 0)),
    ("permfl_dnn", (60,), 10, {"hidden": [20, 20]}, (1220 + 420 + 210, 0)),
    ("permfl_cnn_mnist", (1, 28, 28), 10, {}, (2_362_874, 0)),
    ("permfl_cnn_fmnist", (1, 28, 28), 10, {}, (421_642, 0)),
    ("permfl_cnn_cifar100", (3, 32, 32), 100, {}, (2_519_780, 0)),
    # conv 6*5*32+32 and 32*5*64+64, norms 2*32 and 2*64, head 64*6+6
    ("cnn1d", (6, 50), 6, {}, (992 + 64 + 10_304 + 128 + 390, 2 * 96)),
    ("cnn1d", (6, 50), 6, {"width": 8, "kernel": 3}, (152 + 16 + 400 + 32 + 102, 2 * 24)),
    ("mlp", (6, 50), 6, {"hidden": [16, 8]}, (300 * 16 + 16 + 16 * 8 + 8 + 8 * 6 + 6, 0)),
    ("mlp", (5,), 3, {"hidden": [4], "batch_norm": True, "dropout": 0.5}, (24 + 8 + 15, 8)),
    ("mlp", (5,), 3, {"hidden": []}, (18, 0)),
]


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def buffers(module: nn.Module) -> int:
    return sum(b.numel() for b in module.buffers() if b.is_floating_point())


@pytest.mark.parametrize(("name", "shape", "outputs", "options", "sizes"), SIZES)
def test_sizes_are_exact_and_the_model_fits(
    name: str, shape: Shape, outputs: int, options: dict[str, object], sizes: tuple[int, int]
) -> None:
    module = build_model(name, shape, outputs, options, seed=0)
    assert (trainable(module), buffers(module)) == sizes
    check_fit(module, shape, outputs, name=name)


def test_every_registered_model_has_an_exact_size_in_this_file() -> None:
    assert {row[0] for row in SIZES} == set(MODELS)
    assert all(info.name == key and info.name in fitting(info.shape) for key, info in MODELS.items())


def test_traffic_of_the_source_is_the_models_float_count() -> None:
    mlp = build_model("epflu_mlp", (1, 28, 28), 10, {}, seed=0)
    assert 32 * (trainable(mlp) + buffers(mlp)) == 6_400_320
    cnn = build_model("epflu_cnn", (3, 32, 32), 10, {}, seed=0)
    head = sum(p.numel() for p in cnn.get_submodule("fc2").parameters())
    assert 32 * (trainable(cnn) + buffers(cnn) - head) == 67_758_080


@pytest.mark.parametrize(
    ("name", "shape", "layers"),
    [
        ("epflu_mlp", (784,), "flat fc1 relu_fc1 bn1 fc2 relu_fc2 fc3"),
        ("mtfl_cnn", (3, 32, 32), "conv1 pool1 relu1 bn1 conv2 pool2 relu2 bn2 flat fc1 relu_fc1 fc2"),
        ("lenet16_bn", (3, 32, 32), "conv1 bn1 pool1 relu1 conv2 bn2 pool2 relu2 flat fc1 relu_fc1 fc2 relu_fc2 fc3"),
        ("har_cnn", (3, 20, 20), "conv1 pool1 relu1 conv2 pool2 relu2 conv3 relu3 flat fc1 relu_fc1 fc2"),
        ("cnn1d", (6, 50), "conv1 bn1 pool1 relu1 conv2 bn2 pool2 relu2 mean flat fc1"),
    ],
)
def test_layers_come_in_the_order_of_the_source_but_relu_after_pooling(name: str, shape: Shape, layers: str) -> None:
    module = build_model(name, shape, 10, {}, seed=0)
    assert " ".join(key for key, _ in module.named_children()) == layers


def test_relu_after_pooling_is_relu_before_it() -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for layers in ((nn.ReLU(), nn.MaxPool2d(2)), (nn.MaxPool2d(2), nn.ReLU())):
        leaf = x.clone().requires_grad_()
        out = nn.Sequential(*layers)(leaf)
        out.square().sum().backward()
        assert leaf.grad is not None
        results.append((out.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_mlp_orders_norm_relu_dropout() -> None:
    module = build_model("mlp", (5,), 3, {"hidden": [4], "batch_norm": True, "dropout": 0.25}, seed=0)
    assert [key for key, _ in module.named_children()] == ["flat", "fc1", "bn1", "relu1", "drop1", "fc2"]
    assert [m.p for m in module.modules() if isinstance(m, nn.Dropout)] == [0.25]


def test_cnn1d_averages_over_time_so_any_length_gives_the_same_weights() -> None:
    short, long = (build_model("cnn1d", (6, n), 4, {}, seed=3).state_dict() for n in (4, 200))
    assert all(torch.equal(short[key], long[key]) for key in short)


def test_models_map_under_vmap_in_training_mode() -> None:
    module = build_model("cnn1d", (6, 50), 4, {"width": 4}, seed=0)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.num_batches_tracked = None
    rows = {key: torch.stack([value, value * 2]) for key, value in module.state_dict().items()}
    x = torch.linspace(-1, 1, 2 * 3 * 300).reshape(2, 3, 6, 50)

    def logits(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        own = {key: value.clone() for key, value in params.items()}
        out: Tensor = torch.func.functional_call(module, own, (batch,))
        return out

    both = torch.func.vmap(logits)(rows, x)
    for i in range(2):
        one = logits({key: value[i] for key, value in rows.items()}, x[i])
        torch.testing.assert_close(both[i], one, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63), before=st.integers(0, 2**31))
def test_parameters_depend_on_the_seed_alone_and_the_global_state_stays(seed: int, before: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(before)
        state = torch.get_rng_state()
        first = build_model("mlp", (3,), 2, {"hidden": [4]}, seed).state_dict()
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(7)
        second = build_model("mlp", (3,), 2, {"hidden": [4]}, seed).state_dict()
        other = build_model("mlp", (3,), 2, {"hidden": [4]}, seed ^ 1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


FIXED = ["mtfl_cnn", "epflu_cnn", "lenet16", "lenet16_bn", "lenet16_28"]
FIXED += ["permfl_cnn_mnist", "permfl_cnn_fmnist", "permfl_cnn_cifar100"]


@pytest.mark.parametrize(("name", "shape"), list(itertools.product(FIXED, [(6, 50), (1, 32, 32)])))
def test_a_fixed_geometry_names_shape_wish_and_alternatives(name: str, shape: Shape) -> None:
    with pytest.raises(InputError) as err:
        MODELS[name].build(shape, 10)
    message = str(err.value)
    assert f"{name!r} does not fit samples of shape {list(shape)}" in message
    assert f"it wants exactly {list(MODELS[name].shape)}" in message
    assert "mlp" in message.split("models that fit: ")[1]


HAR_LIMITS = [("har_cnn", (3, 3, 20)), ("har_cnn", (1, 20, 20)), ("har_cnn", (6, 50))]


@pytest.mark.parametrize(
    ("name", "shape"), [("cnn1d", (6, 3)), ("cnn1d", (300,)), ("fedbn_cnn", (3, 2, 32)), ("mlp", ()), *HAR_LIMITS]
)
def test_an_adaptable_model_still_has_limits(name: str, shape: Shape) -> None:
    with pytest.raises(InputError, match=f"'{name}' does not fit samples of shape"):
        build_model(name, shape, 10, {}, seed=0)


def test_models_that_fit_are_named_by_shape() -> None:
    dense = ["epflu_mlp", "har_3nn", "mclr", "mlp", "permfl_dnn"]
    assert fitting((60,)) == dense
    assert fitting((6, 50)) == sorted([*dense, "cnn1d"])
    assert fitting((3, 20, 20)) == sorted([*dense, "har_cnn", "fedbn_cnn"])
    assert fitting(()) == fitting((0, 5)) == []


@pytest.mark.parametrize(
    ("name", "outputs", "options", "message"),
    [
        ("mlpp", 2, {}, "unknown model 'mlpp'; did you mean 'mlp'"),
        ("mlp", 0, {}, "wanted positive sizes"),
        ("mlp", 2, {"hiden": [3]}, "'mlp' has no option 'hiden'; did you mean 'hidden'"),
        ("mlp", 2, {"shape": [3]}, "'shape' comes from the data; remove it"),
        ("mlp", 2, {"hidden": [3, 0]}, r"'mlp': hidden.1 = 0: input should be greater than or equal to 1"),
        ("mlp", 2, {"dropout": 1.0}, r"'mlp': dropout = 1.0: input should be less than 1"),
        ("mclr", 2, {"hidden": [3]}, "'mclr' has no option 'hidden'"),
    ],
)
def test_wrong_names_and_options_say_what_to_do(
    name: str, outputs: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name, (3,), outputs, options, seed=0)


USER = """
import torch
from torch import nn

class Bare(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc = nn.Linear(3, width)
    def forward(self, x):
        return self.fc(x)

class Told(Bare):
    def __init__(self, *, outputs, shape, deep):
        nn.Module.__init__(self)
        self.fc = nn.Linear(shape[0] * deep, outputs)

class Half(Bare):
    def __init__(self, outputs):
        super().__init__(outputs)

class Open(Bare):
    def __init__(self, **options):
        super().__init__(options["width"])

class Lazy(Bare):
    def __init__(self):
        nn.Module.__init__(self)
        self.fc = nn.LazyLinear(2)

class Tuple(Bare):
    def forward(self, x):
        return self.fc(x), x

class Broken(Bare):
    def __init__(self):
        raise RuntimeError("no weights")

class Plain:
    pass

def factory(outputs, width=4):
    return nn.Sequential(nn.Linear(3, width), nn.Dropout(), nn.Linear(width, outputs))

def nothing():
    return 3

number = 3
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_models.py").write_text(USER)
    (tmp_path / "own_broken.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_models", "own_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "own_models"


def test_a_users_class_gets_its_options_and_the_data_sizes_that_it_asks_for(user: str) -> None:
    def fc(name: str, options: dict[str, object]) -> tuple[int, int]:
        layer = build_model(f"{user}:{name}", (3,), 2, options, seed=0).get_submodule("fc")
        assert isinstance(layer, nn.Linear)
        return layer.in_features, layer.out_features

    assert fc("Bare", {}) == (3, 4)
    assert fc("Bare", {"width": 7}) == (3, 7)
    assert fc("Told", {"deep": 5}) == (15, 2)
    assert fc("Half", {}) == (3, 2)
    assert fc("Open", {"width": 6}) == (3, 6)


def test_a_users_function_may_return_the_module_and_its_initialization_is_seeded(user: str) -> None:
    first, second, other = (build_model(f"{user}:factory", (3,), 2, {"width": 5}, seed) for seed in (1, 1, 2))
    assert trainable(first) == 20 + 12
    assert torch.equal(first.state_dict()["0.weight"], second.state_dict()["0.weight"])
    assert not torch.equal(first.state_dict()["0.weight"], other.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own_models:Bear", {}, "'own_models' has no 'Bear'; did you mean 'Bare'"),
        ("own_models:Plain", {}, "class 'Plain' is not an nn.Module"),
        ("own_models:number", {}, "'number' is an object of int, wanted an nn.Module class"),
        ("own_models:nothing", {}, "gave an object of int, wanted an nn.Module"),
        ("own_models:Bare", {"widht": 3}, "has no option 'widht'; did you mean 'width'"),
        ("own_models:Told", {}, "needs the option 'deep'"),
        ("own_models:Told", {"deep": 1, "outputs": 5}, "'outputs' comes from the data"),
        ("own_models:Broken", {}, "failed with RuntimeError: no weights"),
        ("own_models:Bare", {"width": "x"}, "building it with width='x' failed with TypeError"),
        ("own_models:Lazy", {}, "fc.weight has no size before the first batch"),
        ("own_broken:Net", {}, "importing 'own_broken' failed with ModuleNotFoundError: .*not_there_at_all"),
        ("own_absent:Net", {}, "importing 'own_absent' failed with ModuleNotFoundError.*PYTHONPATH"),
        ("own_models:", {}, "not of the form 'package.module:Class'"),
        (":Bare", {}, "not of the form 'package.module:Class'"),
    ],
)
@pytest.mark.usefixtures("user")
def test_a_users_mistakes_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name, (3,), 2, options, seed=0)


def test_check_fit_names_model_shapes_and_cause(user: str) -> None:
    bare = build_model(f"{user}:Bare", (3,), 2, {}, seed=0)
    with pytest.raises(InputError, match=r"'Bare' .* shape \[3\] got an output of shape \[2, 4\], wanted .* \[2, 2\]"):
        check_fit(bare, (3,), 2)
    with pytest.raises(
        InputError, match=r"'mine' .* shape \[5\] got RuntimeError: .*, wanted an output of shape \[2, 4\]"
    ):
        check_fit(bare, (5,), 4, name="mine")
    with pytest.raises(InputError, match="got an output of type tuple"):
        check_fit(build_model(f"{user}:Tuple", (3,), 4, {}, seed=0), (3,), 4)


def test_check_fit_leaves_modes_and_buffers_and_takes_the_models_dtype() -> None:
    module = build_model("mlp", (3,), 2, {"hidden": [4, 4], "batch_norm": True}, seed=0).double()
    module.get_submodule("bn1").eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    check_fit(module, (3,), 2)
    assert module.training
    assert not module.get_submodule("bn1").training
    assert module.get_submodule("bn2").training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_check_fit_can_send_tokens() -> None:
    module = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 9))
    check_fit(module, (5,), 9, dtype=torch.int64)
    with pytest.raises(InputError, match="got RuntimeError"):
        check_fit(module, (5,), 9)


def test_the_nearest_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_model.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="No module named 'mymodel'; did you mean 'my_model'"):
        build_model("mymodel:Net", (3,), 2, {}, 0)

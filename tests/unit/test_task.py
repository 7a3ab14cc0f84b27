"""A task's parts, its gradients by hand, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tierfed.algorithm import Batch, Data
from tierfed.errors import InputError
from tierfed.task import LOSSES, Task, cross_entropy, loss_by_name
from tierfed.testing.toy import Point, gap, half_square, numbers, toy_net


def batch(x: Tensor, y: Tensor) -> Batch:
    return Batch(x, y, torch.tensor(True), torch.tensor(7))


def toy_batch(n: int = 6) -> Batch:
    g = torch.Generator().manual_seed(1)
    return batch(torch.randn(n, 8, generator=g, dtype=torch.float64), torch.randint(0, 4, (n,), generator=g))


class Misnamed(nn.Module):
    """A linear layer called bn, a batch norm called lin."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.lin, self.out = nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lin(self.bn(x)))  # type: ignore[no-any-return]


class TestKeys:
    def test_batch_norms_are_found_by_type(self) -> None:
        task = Task(Misnamed())
        assert task.norm_keys() == ["lin.weight", "lin.bias", "lin.running_mean", "lin.running_var"]
        assert task.norm_keys("yb") == ["lin.weight", "lin.bias"]
        assert task.norm_keys("us") == ["lin.running_mean", "lin.running_var"]
        assert task.norm_keys("") == []

    def test_trainable_before_buffers_and_no_counter(self) -> None:
        task = Task(Misnamed())
        assert task.trainable == ["bn.weight", "bn.bias", "lin.weight", "lin.bias", "out.weight", "out.bias"]
        assert task.keys == [*task.trainable, "lin.running_mean", "lin.running_var"]
        assert list(task.init()) == task.keys

    @pytest.mark.parametrize(
        ("norm", "letters"),
        [
            (nn.BatchNorm1d(5, affine=False), "us"),
            (nn.BatchNorm1d(5, track_running_stats=False), "yb"),
            (nn.LayerNorm(5), ""),
        ],
    )
    def test_norms_that_lack_parts(self, norm: nn.Module, letters: str) -> None:
        task = Task(nn.Sequential(nn.Linear(8, 5), norm))
        names = {"y": "1.weight", "b": "1.bias", "u": "1.running_mean", "s": "1.running_var"}
        assert sorted(task.norm_keys()) == sorted(names[c] for c in letters)

    def test_heads_are_layers_with_their_bias(self) -> None:
        task = Task(Misnamed())
        assert task.layers == ["bn", "lin", "out"]
        assert task.head_keys(1) == ["out.weight", "out.bias"]
        assert set(task.head_keys(2)) == {
            "lin.weight",
            "lin.bias",
            "lin.running_mean",
            "lin.running_var",
            *task.head_keys(1),
        }
        assert task.head_keys(0) == []

    def test_frozen_parameters_and_other_buffers_are_constants(self) -> None:
        net = Misnamed()
        net.bn.weight.requires_grad_(False)
        net.register_buffer("table", torch.ones(3))
        task = Task(net)
        assert task.constants == ["bn.weight"]
        assert "bn.weight" not in task.keys
        assert "table" not in task.keys
        out = task.outputs(task.init(), torch.ones(2, 8))
        assert torch.equal(out, net.eval()(torch.ones(2, 8)))

    def test_tied_weights_are_one_entry(self) -> None:
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        task = Task(nn.Sequential(first, second))
        assert task.trainable == ["0.weight", "0.bias", "1.bias"]
        other = {**task.init(), "0.weight": torch.zeros(4, 4)}
        assert torch.equal(task.outputs(other, torch.ones(1, 4))[0], second.bias)

    def test_the_module_of_the_user_is_left_alone(self) -> None:
        net = toy_net(dropout=0.5).eval()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        task = Task(net)
        task.grad(task.init(), toy_batch())
        assert not net.training
        assert isinstance(net[3], nn.Dropout)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

    def test_a_batch_norm_that_counts_is_refused(self) -> None:
        with pytest.raises(InputError, match="'1' has momentum=None"):
            Task(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=None)))


class TestGrad:
    def test_batch_norm_by_hand(self) -> None:
        """Unit batch norm on x = 0, 2, 4: mean 2, biased variance 8/3 normalizes, unbiased 4 is remembered."""
        task = Task(nn.BatchNorm1d(1, eps=1e-9, dtype=torch.float64), half_square)
        x = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)
        _, loss, stats = task.grad(task.init(), batch(x, torch.zeros(3, 1)))
        assert float(loss) == pytest.approx(0.5)
        assert (
            gap(
                stats, {"running_mean": torch.tensor([0.2]).double(), "running_var": torch.tensor([0.9 + 0.4]).double()}
            )
            < 1e-7
        )

    def test_against_autograd(self) -> None:
        net, b = toy_net(), toy_batch()
        g, loss, stats = Task(net).grad(Task(net).init(), b)
        want = functional.cross_entropy(net.train()(b.x), b.y)
        want.backward()
        assert gap(loss, want.detach()) < 1e-12
        assert gap(g, {k: p.grad for k, p in net.named_parameters()}) < 1e-12
        assert gap(stats, {k: v for k, v in net.named_buffers() if "running" in k}) < 1e-12

    def test_weight_decay(self) -> None:
        b, plain, decayed = toy_batch(), Task(toy_net()), Task(toy_net(), weight_decay=0.3)
        w = plain.init()
        assert gap(decayed.grad(w, b)[0], {k: v + 0.3 * w[k] for k, v in plain.grad(w, b)[0].items()}) < 1e-12

    def test_another_loss(self) -> None:
        """f(w) = <y, w> has the gradient mean(y), whatever the task's own loss is."""
        task, params = Task(Point(torch.tensor([1.0, 2.0])), half_square), {"w": torch.tensor([1.0, 2.0])}
        data = batch(torch.ones(2, 1), torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
        g, value, _ = task.grad(params, data, loss=lambda out, y: (out * y).sum(-1))
        assert (g["w"].tolist(), float(value)) == ([2.0, 1.0], 4.0)
        stepped = task.step(params, data, 0.5, loss=lambda out, y: (out * y).sum(-1))
        assert stepped["w"].tolist() == [0.0, 1.5]

    def test_only_some_keys(self) -> None:
        task, b = Task(toy_net()), toy_batch()
        w = task.init()
        g, _, _ = task.grad(w, b, keys=task.norm_keys("y"))
        assert list(g) == ["1.weight"]
        assert gap(g["1.weight"], task.grad(w, b)[0]["1.weight"]) < 1e-12

    def test_a_frozen_batch_norm_is_untouched(self) -> None:
        """None of its parameters train: running statistics normalize, and stay bit-identical."""
        net, b = toy_net(), toy_batch()
        task = Task(net)
        w = {
            **task.init(),
            "1.running_mean": torch.full((16,), 0.3).double(),
            "1.running_var": torch.full((16,), 2.0).double(),
        }
        head = task.head_keys()
        new = task.step(w, b, 0.1, keys=head)
        assert all(torch.equal(new[k], w[k]) for k in task.keys if k not in head)
        assert all(not torch.equal(new[k], w[k]) for k in head)
        want = cross_entropy(task.outputs(w, b.x), b.y).mean()
        assert float(task.grad(w, b, keys=head)[1]) == pytest.approx(float(want), abs=1e-12)

    @pytest.mark.parametrize("letter", ["y", "b"])
    def test_a_batch_norm_that_trains_a_part_is_not_frozen(self, letter: str) -> None:
        task, b = Task(toy_net()), toy_batch()
        w = task.init()
        new = task.step(w, b, 0.1, keys=task.norm_keys(letter))
        assert {k for k in task.keys if not torch.equal(new[k], w[k])} == {
            *task.norm_keys(letter),
            *task.norm_keys("us"),
        }

    def test_nothing_of_the_caller_is_changed(self) -> None:
        task, b = Task(toy_net()), toy_batch()
        w = task.init()
        before = {k: v.clone() for k, v in w.items()}
        task.step(w, b, 0.1)
        assert gap(w, before) == 0.0


def point_data(visits: int, target: float) -> Data:
    """One device with one sample, in `visits` passes of one step."""
    one = torch.ones(1, 1, dtype=torch.float64)
    rows, live = torch.zeros(visits, 1, 1, dtype=torch.int64), torch.ones(visits, 1, dtype=torch.bool)
    return Data(one, one * target, rows, live, torch.zeros(visits, 1, dtype=torch.int64), rows[0, 0], live[0])


class TestTrain:
    def test_drift_and_pull_by_hand(self) -> None:
        """w <- w - lr (w - a + d + lam (w - c)) from w = 1 with a = 3, d = 0.5, lam = 2, c = 4, lr = 0.1:
        1 - 0.1 (-2 + 0.5 - 6) = 1.75, then 1.75 - 0.1 (-1.25 + 0.5 - 4.5) = 2.275."""
        task = Task(Point(torch.ones(1).double()), half_square)
        (drift,), (anchor,) = numbers(0.5), numbers(4.0)
        got = [
            float(task.train(task.init(), point_data(n, 3.0), 0.1, {"w": drift[None]}, (2.0, {"w": anchor[None]}))["w"])
            for n in (1, 2)
        ]
        assert got == pytest.approx([1.75, 2.275], abs=1e-12)

    def test_terms_may_cover_some_keys(self) -> None:
        task, b = Task(toy_net()), toy_batch()
        w = task.init()
        plain = task.step(w, b, 0.1)
        bias = {"3.bias": torch.ones(4).double()}
        moved = task.step(w, b, 0.1, drift=bias, pull=(2.0, {"3.bias": w["3.bias"] - 1}))
        assert gap(moved, {**plain, "3.bias": plain["3.bias"] - 0.1 * (1 + 2)}) < 1e-12

    def test_a_dead_step_changes_nothing(self) -> None:
        task = Task(Point(torch.ones(1).double()), half_square)
        data = point_data(3, 3.0)
        live = torch.tensor([[True], [False], [True]])
        assert (
            gap(
                task.train(task.init(), data._replace(live=live), 0.1), task.train(task.init(), point_data(2, 3.0), 0.1)
            )
            == 0
        )


class TestLosses:
    def test_cross_entropy(self) -> None:
        """-log(e^1 / (e^1 + e^1 + e^2)) and -log(1/3)"""
        out = torch.tensor([[1.0, 1.0, 2.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
        want = [float(torch.tensor(2 + torch.e).log()), float(torch.tensor(3.0).log())]
        assert LOSSES["cross_entropy"](out, torch.tensor([0, 2])).tolist() == pytest.approx(want, abs=1e-6)

    @pytest.mark.parametrize(
        ("name", "want"),
        [("mse", [(1 + 9) / 2, 0.0]), ("l1", [(1 + 3) / 2, 0.0]), ("huber", [(0.5 + 2.5) / 2, 0.0])],
    )
    def test_regression(self, name: str, want: list[float]) -> None:
        out, y = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[2.0, 0.0], [2.0, 2.0]])
        assert LOSSES[name](out, y).tolist() == pytest.approx(want)

    def test_binary(self) -> None:
        """Logit 0: log 2, whatever the label."""
        assert LOSSES["bce"](torch.zeros(2, 1), torch.tensor([0, 1])).tolist() == pytest.approx([0.6931472] * 2)

    def test_numbers_of_other_shapes_and_types_fit(self) -> None:
        """Outputs [B, 1], integer targets [B]: no broadcasting to [B, B]."""
        assert LOSSES["mse"](torch.tensor([[1.0], [4.0]]), torch.tensor([0, 2])).tolist() == [1.0, 4.0]

    def test_by_name(self) -> None:
        assert loss_by_name("mse") is LOSSES["mse"]
        assert loss_by_name("tierfed.testing.toy:half_square") is half_square

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("mss", "unknown loss 'mss'; did you mean 'mse'"),
            ("no_such_module:f", "cannot be imported"),
            ("tierfed.testing.toy:nothing", "cannot be imported"),
        ],
    )
    def test_unknown_names(self, name: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            loss_by_name(name)

    def test_measure_counts_live_samples(self) -> None:
        task = Task(Point(torch.zeros(1).double()), half_square)
        x, y = torch.ones(3, 1).double(), torch.tensor([[2.0], [4.0], [100.0]]).double()
        live = torch.tensor([True, True, False])
        assert float(task.measure(task.init(), Batch(x, y, live, torch.tensor(0)))) == (2 + 8) / 2
        assert float(task.measure(task.init(), Batch(x, y, live & False, torch.tensor(0)))) == 0.0


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.dropout(x, 0.5, self.training))  # type: ignore[no-any-return]


X, Y = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])


class TestVerify:
    @pytest.mark.parametrize("net", [toy_net(dtype=torch.float32, dropout=0.5), Misnamed()])
    def test_what_can_be_trained_passes(self, net: nn.Module) -> None:
        Task(net).verify(X, Y)

    def test_functional_dropout(self) -> None:
        with pytest.raises(InputError, match="draws random numbers itself"):
            Task(FunctionalDropout()).verify(X, Y)

    def test_the_random_state_of_the_caller_stays(self) -> None:
        before = torch.get_rng_state()
        Task(toy_net(dtype=torch.float32)).verify(X, Y)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("loss", "x", "y"),
        [
            (cross_entropy, X, Y + 1),
            (cross_entropy, X, Y[:5]),
            (cross_entropy, X[:, :7], Y),
            (cross_entropy, X, Y.float()),
            (LOSSES["mse"], X, Y),
        ],
    )
    def test_what_does_not_fit(self, loss: Any, x: Tensor, y: Tensor) -> None:
        with pytest.raises(InputError, match=r"a training step on a batch with x \[6, \d\] .* fails"):
            Task(toy_net(dtype=torch.float32), loss).verify(x, y)

    @pytest.mark.parametrize(
        "loss", [functional.cross_entropy, lambda out, y: functional.cross_entropy(out, y, reduction="sum")]
    )
    def test_a_loss_that_is_not_per_sample(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Held-out samples are masked one by one: a loss that is summed up already cannot be."""
        with pytest.raises(InputError):
            Task(toy_net(dtype=torch.float32), loss).verify(X, Y)


class TestOneGradient:
    """Plain autograd outside of torch.func's transforms, torch.func inside: nobody may notice which."""

    @staticmethod
    def both(task: Task, one: Batch) -> list[tuple[Any, ...]]:
        params = task.init()
        plain = task.grad(params, one)
        rows = {k: v[None] for k, v in params.items()}
        g, loss, stats = torch.func.vmap(lambda p, *b: task.grad(p, Batch(*b)))(rows, *(t[None] for t in one))
        return [plain, ({k: v[0] for k, v in g.items()}, loss[0], {k: v[0] for k, v in stats.items()})]

    def test_dense(self) -> None:
        (g, loss, stats), (g2, loss2, stats2) = self.both(Task(toy_net()), toy_batch())
        assert gap(g, g2) < 1e-12
        assert gap(stats, stats2) < 1e-12
        assert abs(float(loss - loss2)) < 1e-12
        assert not loss.requires_grad

    @pytest.mark.parametrize("channels", [1, 3])
    def test_pictures(self, channels: int) -> None:
        net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        rng = torch.Generator().manual_seed(3)
        x = torch.randn(6, channels, 8, 8, generator=rng, dtype=torch.float64)
        (g, _, stats), (g2, _, stats2) = self.both(Task(net.double()), batch(x, torch.arange(6) % 5))
        assert gap(g, g2) < 1e-12
        assert gap(stats, stats2) < 1e-12

    def test_nothing_to_train_and_entries_that_the_loss_does_not_see(self) -> None:
        net = toy_net()
        net.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=torch.float64)))
        task = Task(net)
        g, _, _ = task.grad(task.init(), toy_batch())
        assert torch.equal(g["idle"], torch.zeros(3, dtype=torch.float64))
        assert task.grad(task.init(), toy_batch(), keys=[])[0] == {}

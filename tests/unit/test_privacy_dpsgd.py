"""DP-SGD: gradients of single samples as in a loop, clipped, noised; what has no such gradients is refused."""

import pytest
import torch
from torch import nn
from torch.func import vmap

from tierfed.algorithm import Batch
from tierfed.dpsgd import PrivateTask, clipped_sum, per_sample
from tierfed.errors import InputError
from tierfed.kernels import equipped, refusal
from tierfed.task import Task
from tierfed.tree import vector


def network(*more: nn.Module) -> Task:
    torch.manual_seed(0)
    return Task(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.GroupNorm(2, 4), *more, nn.Flatten(), nn.Linear(64, 3)).double()
    )


def batch(n: int, seed: int = 5) -> Batch:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 6, 6, generator=g, dtype=torch.float64)
    return Batch(x, torch.arange(n) % 3, torch.tensor(True), torch.tensor(seed))


def loop(task: Task, one: Batch, bound: float) -> torch.Tensor:
    """The clipped gradients of the samples by plain autograd, one after the other, added up."""
    w, out = task.init(), torch.zeros(())
    for i in range(len(one.x)):
        g, _, _ = task.grad(w, Batch(one.x[i : i + 1], one.y[i : i + 1], one.live, one.seed))
        v = vector({k: g[k] for k in task.trainable})
        out = out + v * min(1.0, bound / float(v.norm()))
    return out


def test_gradients_are_those_of_a_loop() -> None:
    task, one = network(), batch(8)
    each = per_sample(task.module, task.init(), task.trainable, one, task.loss)
    for i in range(8):
        g, _, _ = task.grad(task.init(), Batch(one.x[i : i + 1], one.y[i : i + 1], one.live, one.seed))
        assert all(torch.allclose(each[k][i], g[k], rtol=0, atol=1e-12) for k in task.trainable)


@pytest.mark.parametrize("bound", [0.05, 0.5, 100.0])
def test_without_noise_a_step_is_the_mean_of_clipped_gradients(bound: float) -> None:
    task, one = network(), batch(8)
    g, value, stats = PrivateTask(task, bound, 0.0).grad(task.init(), one)
    wanted = loop(task, one, bound) / 8
    assert torch.allclose(vector({k: g[k] for k in task.trainable}), wanted, rtol=1e-5, atol=1e-12)
    assert not value.isfinite()  # the loss is protected by nothing, and is not told
    assert stats == {}


def test_one_sample_moves_the_sum_by_at_most_the_bound() -> None:
    task, one = network(), batch(8)
    each = per_sample(task.module, task.init(), task.trainable, one, task.loss)
    for i in range(8):
        other = {k: torch.cat([v[:i], v[i + 1 :]]) for k, v in each.items()}
        a, b = (vector(clipped_sum(e, 0.2)) for e in (each, other))
        assert 0 < float((a - b).norm()) <= 0.2 + 1e-12


def test_the_noise_of_a_gradient_has_the_configured_variance() -> None:
    """All that differs between two seeds is noise: of each number twice the variance (z C / B)^2."""
    task = network()
    private = PrivateTask(task, 0.5, 2.0)
    drawn = []
    for seed in range(60):
        a, b = (vector(private.grad(task.init(), batch(8, s))[0]) for s in (seed, 1000 + seed))
        drawn.append(a - b)
    sample = torch.cat(drawn)
    wanted = 2 * (2.0 * 0.5 / 8) ** 2
    n = len(sample)
    assert abs(float(sample.var()) / wanted - 1) < 4 * (2 / n) ** 0.5  # four standard deviations of a variance


def test_below_vmap_every_device_gets_what_it_gets_alone() -> None:
    task = network()
    private, one = PrivateTask(task, 0.5, 1.0), batch(6)
    w, seeds = task.init(), torch.arange(4)
    mapped = vmap(lambda s: private.grad(w, one._replace(seed=s))[0])(seeds)
    for i in range(4):
        alone = private.grad(w, one._replace(seed=seeds[i]))[0]
        assert all(torch.allclose(mapped[k][i], alone[k], rtol=0, atol=1e-10) for k in alone)


def test_dropout_masks_differ_between_the_samples_of_a_batch() -> None:
    task = network(nn.Dropout(0.5))
    one = batch(8)
    same = one._replace(x=one.x[:1].expand(8, 1, 6, 6), y=one.y[:1].expand(8))
    each = per_sample(task.module, task.init(), task.trainable, same, task.loss, task._seeds)
    assert (
        float(
            (
                each["4.weight" if "4.weight" in each else task.trainable[-2]].flatten(1)[0]
                - each[task.trainable[-2]].flatten(1)[1]
            )
            .abs()
            .max()
        )
        > 0
    )


def test_a_batch_norm_is_refused() -> None:
    task = Task(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    with pytest.raises(InputError, match="batch norm: it mixes the samples"):
        PrivateTask(task, 1.0, 1.0)


def test_it_runs_on_the_kernels_that_do_not_write_the_step_themselves() -> None:
    private, cpu = PrivateTask(network(), 1.0, 1.0), torch.device("cpu")
    assert refusal("vmap", private, cpu) == refusal("loop", private, cpu) == ""
    assert equipped(private, "vmap") is private
    assert equipped(private, "loop") is private
    assert all("its own way" in refusal(k, private, cpu) for k in ("fused", "native", "compile"))

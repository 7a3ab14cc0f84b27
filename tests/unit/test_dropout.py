"""Dropout by counter: the right share, the same for every engine, different wherever it should be."""

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tierfed.algorithm import Batch
from tierfed.dropout import CounterDropout, replace_dropout
from tierfed.task import Task
from tierfed.testing.toy import gap, toy_net

ONES = torch.ones(64, 200, dtype=torch.float64)
SEEDS = torch.tensor([0, 1, 2, 2**33, 2**62 + 5])


def mask(seed: int | Tensor, p: float = 0.3, number: int = 0, x: Tensor = ONES, channels: bool = False) -> Tensor:
    layer = CounterDropout(p, number, channels)
    return functional_call(layer, {"seed": torch.as_tensor(seed)}, (x,))  # type: ignore[no-any-return]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
def test_the_share_that_is_dropped(p: float, seed: int) -> None:
    out = mask(seed, p)
    dropped = int((out == 0).sum())
    assert stats.binomtest(dropped, ONES.numel(), p).pvalue > 1e-6
    assert out.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])


def test_every_place_is_dropped_as_often() -> None:
    """Chi-square over 50 units in 4000 minibatches at p = 0.5, relative to a binomial's variance."""
    kept = torch.stack([mask(s, 0.5, x=torch.ones(1, 50)) > 0 for s in range(4000)]).sum(0)[0]
    assert float(((kept - 2000.0) ** 2 / 1000.0).sum()) < stats.chi2.ppf(1 - 1e-6, 50)


def test_masks_of_steps_devices_and_layers_are_unrelated() -> None:
    """Agreement of two independent masks at p = 0.5 is one half; five standard deviations of 12800 places are 0.022."""
    masks = [mask(int(s), 0.5) > 0 for s in SEEDS] + [mask(0, 0.5, number=n) > 0 for n in (1, 2)]
    agree = [float((a == b).double().mean()) for i, a in enumerate(masks) for b in masks[:i]]
    assert max(abs(share - 0.5) for share in agree) < 0.025


def test_one_by_one_and_under_vmap() -> None:
    together = vmap(lambda s: mask(s, x=ONES))(SEEDS)
    assert all(torch.equal(together[i], mask(int(s))) for i, s in enumerate(SEEDS))


def test_a_model_under_vmap() -> None:
    task = Task(toy_net(dropout=0.4))
    x, y, live = (
        torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double(),
        torch.arange(8) % 4,
        torch.tensor(True),
    )
    w = task.init()
    together = vmap(lambda s: task.grad(w, Batch(x, y, live, s))[0])(SEEDS)
    one = [task.grad(w, Batch(x, y, live, s))[0] for s in SEEDS]
    assert max(gap({k: v[i] for k, v in together.items()}, g) for i, g in enumerate(one)) < 1e-12
    assert gap(one[0], one[1]) > 1e-3


def test_whole_channels() -> None:
    out = mask(3, 0.5, x=torch.ones(32, 16, 5, 5), channels=True)
    flat = out.flatten(2)
    assert bool((flat == flat[:, :, :1]).all())
    assert stats.binomtest(int((flat[:, :, 0] == 0).sum()), 32 * 16, 0.5).pvalue > 1e-6


def test_nothing_or_everything() -> None:
    assert torch.equal(mask(1, 0.0), ONES)
    assert torch.equal(mask(1, 1.0), torch.zeros_like(ONES))


def test_no_dropout_in_evaluation() -> None:
    assert torch.equal(CounterDropout(0.5, 0).eval()(ONES), ONES)


@pytest.mark.parametrize(
    ("kind", "channels"), [(nn.Dropout, False), (nn.Dropout1d, True), (nn.Dropout2d, True), (nn.Dropout3d, True)]
)
def test_layers_are_replaced(kind: type[nn.Module], channels: bool) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(kind(0.25)), kind(0.5))
    assert replace_dropout(net) == ("1.0.seed", "2.seed")
    layers = [m for m in net.modules() if isinstance(m, CounterDropout)]
    assert [(m.p, m.number, m.channels) for m in layers] == [(0.25, 0, channels), (0.5, 1, channels)]
    assert list(net.state_dict()) == ["0.weight", "0.bias"]


def test_one_layer_in_two_places() -> None:
    """The same nn.Dropout object twice: neither place is left to the global random state."""
    drop = nn.Dropout(0.5)
    task = Task(nn.Sequential(nn.Linear(8, 16), drop, nn.Linear(16, 16), drop, nn.Linear(16, 4)))
    assert not any(isinstance(m, nn.Dropout) for m in task.module.modules())
    task.verify(torch.ones(4, 8), torch.arange(4))

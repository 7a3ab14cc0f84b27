"""FedMD: steps of the digest by hand on a model z = x w [2], the consensus of those heard, its bytes; T-50, T-52."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

from tierfed.algorithm import Batch
from tierfed.algorithms import make
from tierfed.algorithms.coins import draw
from tierfed.algorithms.fedmd import FedMD
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.base import Engine
from tierfed.errors import InputError
from tierfed.models import build_model
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, gap, make_engine, run, toy_plan, toy_task
from tierfed.testing.trees import Exactly
from tierfed.topology import TopologySettings
from tierfed.tree import nbytes

kinds = pytest.mark.parametrize("kind", ENGINES)


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def world(public: Sequence[float], sizes: Sequence[int] = (2, 2, 2), labels: Sequence[int] = ()) -> tuple[Task, Plan]:
    """z = x w [2], from w = 0; all private samples are x = 0, so that nothing is learned from them."""
    net = nn.Linear(1, 2, bias=False).double()
    nn.init.zeros_(net.weight)
    x = doubles(public)[:, None]
    y = torch.tensor(list(labels) or [0] * len(public))
    held = Batch(x, y, torch.ones(len(public), dtype=torch.bool), torch.tensor(0))
    ends = np.cumsum(sizes)
    rows = [np.arange(e - n, e) for e, n in zip(ends, sizes, strict=True)]
    empty = [np.zeros(0, np.int64)] * len(sizes)
    plan = Plan(
        x=torch.zeros(int(ends[-1]), 1, dtype=torch.float64),
        y=torch.zeros(int(ends[-1]), dtype=torch.int64),
        train=rows,
        held=empty,
        batch=None,
        dtype=torch.float64,
    )
    return Task(net, public=held, classes=2), plan


def put(engine: Engine, *models: Sequence[float]) -> None:
    for i, w in enumerate(models):
        engine.put_own(i, {"w": {"weight": doubles(w)[:, None]}})


def weight(engine: Engine, device: int) -> Tensor:
    return engine.own(device)["w"]["weight"][:, 0]  # type: ignore[no-any-return]


@kinds
def test_two_rounds_by_hand(kind: str) -> None:
    """x = 1 everywhere: scores are w. Round 0: no digest, fbar = (w_1 + w_2 + w_3) / 3 = (1, 2). Round 1, one step
    of mse, (1/2) sum_c (w_c - fbar_c)^2: w <- w - 1/4 (w - fbar)."""
    task, plan = world([1.0] * 4)
    engine = make_engine(kind, FedMD(subset=3, digest_lr=0.25), task, plan)
    put(engine, (3, 0), (0, 6), (0, 0))
    run(engine, 1)
    assert gap(engine.kept(0, 0)["consensus"], doubles([[1, 2]] * 3)) < 1e-15
    assert gap(weight(engine, 0), doubles([3, 0])) == 0.0
    run(engine, 1)
    assert gap(weight(engine, 0), doubles([2.5, 0.5])) < 1e-15
    assert gap(weight(engine, 1), doubles([0.25, 5.0])) < 1e-15


@kinds
def test_it_digests_on_the_samples_of_the_last_draw(kind: str) -> None:
    """mse on samples x_r: the gradient is mean_r x_r^2 (w - wbar), with the x_r of draw 0; up go scores of draw 1."""
    x = [1.0, 2.0, 3.0, 5.0, 7.0, 11.0]
    task, plan = world(x)
    engine = make_engine(kind, FedMD(subset=2, digest_lr=0.01, seed=3), task, plan)
    put(engine, (3, 0), (0, 6), (0, 0))
    first, second = (doubles(x)[draw(3, torch.tensor(t), 2, 6)] for t in (0, 1))
    assert sorted(first.tolist()) != sorted(second.tolist())
    run(engine, 2)
    shrink = 1 - 0.01 * float(first.square().mean())
    want = [doubles([1, 2]) + shrink * (doubles(w) - doubles([1, 2])) for w in ((3, 0), (0, 6), (0, 0))]
    assert [gap(weight(engine, i), w) < 1e-14 for i, w in enumerate(want)] == [True] * 3
    assert gap(engine.kept(0, 0)["consensus"], second[:, None] * doubles([1, 2])) < 1e-14


@kinds
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_kl_by_hand(scores: Any, kind: str) -> None:
    """T = 2, w = (0, 0) and (2 log 3, 0), so softmax(w / T) = (1/2, 1/2) and (3/4, 1/4). The gradient of
    T^2 KL(p || softmax(w / T)) is T (softmax(w / T) - p). Logits: p = softmax of the mean (log 3, 0) / T, that is
    r / (1 + r) with r = sqrt(3); probabilities: p = (5/8, 3/8)."""
    task, plan = world([1.0] * 2, (2, 2))
    algorithm = FedMD(subset=2, digest="kl", scores=scores, temperature=2.0, digest_lr=0.5)
    engine = make_engine(kind, algorithm, task, plan)
    put(engine, (0, 0), (2 * math.log(3), 0))
    run(engine, 2)
    p = math.sqrt(3) / (1 + math.sqrt(3)) if scores == "logits" else 5 / 8
    assert float(weight(engine, 0)[0]) == pytest.approx(p - 0.5, abs=1e-14)
    assert float(weight(engine, 1)[0]) == pytest.approx(2 * math.log(3) + p - 0.75, abs=1e-14)
    assert float(weight(engine, 0)[1]) == pytest.approx(0.5 - p, abs=1e-14)


@kinds
def test_l1_by_hand(kind: str) -> None:
    """The mean over two classes of |w_c - fbar_c|: a step of half the learning rate against the sign, passes apart."""
    task, plan = world([1.0] * 4)
    engine = make_engine(kind, FedMD(subset=4, digest="l1", digest_lr=0.5, digest_epochs=2), task, plan)
    put(engine, (3, 0), (0, 6), (0, 0))
    run(engine, 2)
    assert gap(weight(engine, 0), doubles([2.5, 0.5])) < 1e-15


@kinds
def test_every_device_counts_alike_and_the_lost_do_not(kind: str) -> None:
    """Sizes 2, 6, 4; the reply of device 2 is lost: ((3, 0) + (0, 6)) / 2. Where nobody is heard, draw and consensus
    stay."""
    task, plan = world([1.0] * 4, (2, 6, 4))
    faults = Exactly(lost_at=((1, 2, 0), *((1, i, 1) for i in range(3))))
    engine = make_engine(kind, FedMD(subset=2), task, plan, faults=faults)
    put(engine, (3, 0), (0, 6), (100, 0))
    for _ in range(2):
        run(engine, 1)
        assert gap(engine.kept(0, 0)["consensus"], doubles([[1.5, 3]] * 2)) < 1e-15
        assert int(engine.kept(0, 0)["draw"]) == 1


def test_public_labels_are_learned_before_the_first_visit() -> None:
    """One batch of x = 1 with labels 0, 0, 0, 1 from w = 0: the mean gradient is (1/2 - 3/4, 1/2 - 1/4)."""
    task, _ = world([1.0] * 4, labels=[0, 0, 0, 1])
    w = FedMD(subset=2, public_epochs=1, lr=0.4).init(task, task.init())["w"]["weight"]
    assert gap(w, doubles([[0.1], [-0.1]])) < 1e-15
    assert gap(FedMD(subset=2).init(task, task.init())["w"], task.init()) == 0.0


def test_the_last_batch_is_filled_up() -> None:
    """Five samples in batches of two: three steps, six gradients of single samples."""
    task, _ = world([1.0] * 5, labels=[0] * 5)
    algorithm = FedMD(subset=5, digest_batch=2, public_epochs=1, lr=0.4)
    w, lr = 0.0, 0.4
    for _ in range(3):
        w += lr * (1 - 1 / (1 + math.exp(-2 * w)))
    assert float(algorithm.init(task, task.init())["w"]["weight"][0]) == pytest.approx(w, abs=1e-14)
    assert algorithm.extra_samples == 6
    assert FedMD(subset=5, digest_epochs=3).extra_samples == 15


@kinds
def test_the_clock_charges_the_digest(kind: str) -> None:
    """One batch of two samples, and two passes over three public ones."""
    task, plan = world([1.0] * 4)
    log = make_engine(kind, FedMD(subset=3, digest_epochs=2), task, plan).step()
    assert sorted(n for v in log.visits for n in v.samples.tolist()) == [2 + 2 * 3] * 3


@kinds
def test_what_is_begun_with_is_made_once(kind: str) -> None:
    """`init` trains; it is a pure function of the model, so that one device pays for all."""
    engine = make_engine(kind, make("fedmd", {"subset": 5}), toy_task(), toy_plan())
    assert engine.own(0) is engine.own(7)


@kinds
@pytest.mark.parametrize("digest", ["mse", "kl"])
def test_T50_equal_devices_learn_nothing_from_one_another(digest: Any, kind: str) -> None:
    """The consensus is what each of them says: the gradient of the digest is 0, and local training is left."""
    one = toy_plan(1, batch=None)
    plan = Plan(x=one.x, y=one.y, train=list(one.train) * 4, held=list(one.held) * 4, batch=None, dtype=one.dtype)
    task = toy_task(norm=False)
    taught = run(make_engine(kind, FedMD(subset=6, digest=digest, digest_lr=1.0), task, plan), 4)
    alone = run(make_engine(kind, KeepLocal(private="all"), task, plan), 4)
    assert gap(alone.own(0)["own"], task.init()) > 0.1
    assert max(gap(taught.own(i)["w"], alone.own(i)["own"]) for i in range(4)) < 1e-12


@kinds
def test_T52_five_thousand_numbers_and_two_networks(kind: str) -> None:
    """500 samples of 10 classes: 5,000 numbers up and down, and the counter of draws; of PerFit's 3NN and CNN."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(520, 3, 20, 20)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 10, 520))
    public = Batch(x[4:], y[4:], torch.ones(516, dtype=torch.bool), torch.tensor(0))
    nets = [build_model(name, (3, 20, 20), 10, {}, 0) for name in ("har_3nn", "har_cnn")]
    tasks = [Task(net, public=public, classes=10) for net in nets]
    empty = [np.zeros(0, np.int64)] * 2
    plan = Plan(x=x[:4], y=y[:4], train=[np.arange(2), np.arange(2, 4)], held=empty, batch=2)
    algorithm = make("perfit-fd", {"digest_batch": 250})
    engine = make_engine(
        kind, algorithm, tasks, plan, TopologySettings(fogs=1, teams="sequential"), kinds=np.array([0, 1])
    )
    links = engine.step().link_bytes()
    each = 500 * 10 * 4
    assert links == {(0, "down"): each + 8, (0, "up"): each, (1, "down"): 2 * (each + 8), (1, "up"): 2 * each}
    assert [nbytes(engine.own(i)["w"]) // 4 for i in range(2)] == [521_510, 33_698]


@given(seed=st.integers(0, 2**31), round_=st.integers(-1, 2**20), of=st.integers(2, 60), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_draw_is_a_choice_without_replacement(seed: int, round_: int, of: int, share: float) -> None:
    n = max(1, round(share * of))
    one = draw(seed, torch.tensor(round_), n, of)
    assert len(set(one.tolist())) == n
    assert set(one.tolist()) <= set(range(of))
    mapped = vmap(lambda t: draw(seed, t, n, of))(torch.tensor([round_, round_ + 1]))
    assert torch.equal(mapped[0], one)
    assert torch.equal(mapped[1], draw(seed, torch.tensor(round_ + 1), n, of))


def test_draws_are_even() -> None:
    """2000 draws of 5 out of 20: every sample comes 500 times, up to 5 standard deviations of 19.4."""
    counts = torch.zeros(20)
    for t in range(2000):
        counts[draw(0, torch.tensor(t), 5, 20)] += 1
    assert float((counts - 500).abs().max()) < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="subset = 21 public samples per round, but there are 20"):
        FedMD(subset=21).tiers(toy_task(), (1, 3))
    with pytest.raises(InputError, match="take data that have classes"):
        FedMD(subset=3).tiers(Task(nn.Linear(1, 1)), (1, 3))

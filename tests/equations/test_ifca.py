"""IFCA: the choice on the training data, the means by cluster, one cluster that is FedAvg."""

import numpy as np
import pytest
import torch

from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.ifca import IFCA
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task
from tierfed.tree import row

kinds = pytest.mark.parametrize("kind", ENGINES)
trees = pytest.mark.parametrize("tree", ["flat", "3 tiers"])


def points(kind: str, a: list[float], first: list[float], sizes: list[int] | None = None) -> Engine:
    task, plan = quad(a, sizes=sizes)
    engine = make_engine(kind, IFCA(lr=0.5, clusters=len(first)), task, plan)
    engine.keep(0, 0, {"models": {"w": torch.tensor(first, dtype=torch.float64)[:, None]}})
    return engine


def found(engine: Engine) -> list[float]:
    return [float(v) for v in engine.kept(0, 0)["models"]["w"].flatten()]


@kinds
@trees
def test_T95_one_cluster_is_fedavg(kind: str, tree: str) -> None:
    task, plan, settings = toy_task(), toy_plan(), toy_settings(participation=0.5)[tree]
    ours = run(make_engine(kind, IFCA(clusters=1), task, plan, settings), 3)
    fedavg = run(make_engine(kind, FedAvg(), task, plan, settings), 3)
    assert gap(row(ours.kept(0, 0)["models"], 0), cloud(fedavg)) < 1e-13


@kinds
def test_T95_two_groups_find_their_means(kind: str) -> None:
    """Groups around -3 and +3, first models at -0.1 and +0.1."""
    engine = run(points(kind, [-2.0, -4.0, 2.0, 4.0, 3.0], [0.1, -0.1], sizes=[2, 2, 2, 2, 4]), 60)
    assert found(engine) == pytest.approx([3.0, -3.0], abs=1e-9)
    assert [float(m.personal_pre["w"]) for m in models(engine, np.arange(5), post=False)] == pytest.approx(
        [-3.0, -3.0, 3.0, 3.0, 3.0], abs=1e-9
    )


@kinds
def test_one_round_by_hand_with_a_model_that_nobody_chooses(kind: str) -> None:
    """Models 0, 10, 100; steps of 1/2. a = 2 (weight 1) and 4 (3) choose 0: 1 and 2, mean 7/4; a = 8 chooses 10: 9."""
    engine = run(points(kind, [2.0, 4.0, 8.0], [0.0, 10.0, 100.0], sizes=[2, 6, 2]), 1)
    assert found(engine) == pytest.approx([1.75, 9.0, 100.0], abs=1e-14)


@kinds
def test_what_is_evaluated_after_training_is_the_trained_model(kind: str) -> None:
    """The other model is nearer to what was trained: a = 6 chooses 10, which goes to 8; 0 is no choice any more."""
    engine = points(kind, [6.0], [0.0, 10.0])
    (m,) = models(engine, np.arange(1))
    assert m.personal_post is not None
    assert (float(m.personal_pre["w"]), float(m.personal_post["w"])) == (10.0, 8.0)


@kinds
def test_only_the_chosen_model_goes_up(kind: str) -> None:
    """k = 2 of 8 bytes come down; up: 8 bytes, two floats for the choice, two bits of the mask. The fog whose devices
    choose both models sends both."""
    task, plan = quad([-1.0, -1.0, -1.0, 1.0])
    settings = toy_settings(fogs=2, teams="natural")["3 tiers"]
    engine = make_engine(kind, IFCA(clusters=2), task, plan, settings, natural=[0, 0, 1, 1])
    engine.keep(0, 0, {"models": {"w": torch.tensor([[-1.0], [1.0]], dtype=torch.float64)}})
    sent = engine.step().link_bytes()
    one = 8 + 2 * 8 + 1
    assert sent == {(0, "down"): 2 * 16, (1, "down"): 4 * 16, (1, "up"): 4 * one, (0, "up"): one + (one + 8)}


@kinds
@trees
def test_common_bodies_are_averaged_over_all(kind: str, tree: str) -> None:
    """depth = 1: the body is the samples' mean of all devices, heads are means of those who chose them."""
    task, plan, algorithm = toy_task(), toy_plan(), IFCA(clusters=2, depth=1)
    engine = make_engine(kind, algorithm, task, plan, toy_settings()[tree])
    before = engine.kept(0, 0)["models"]
    run(engine, 1)
    after, n = engine.kept(0, 0)["models"], plan.samples.astype(float)
    choice, trained = [], []
    for i in range(12):
        data = plan.one(i, algorithm, 0, 0)
        j = int(algorithm.choose(task, before, data))
        choice.append(j)
        trained.append(task.train(algorithm.pick(task, before, j), data, algorithm.lr))
    assert set(choice) == {0, 1}
    body = sum(float(n[i] / n.sum()) * trained[i]["0.weight"] for i in range(12))
    assert gap(after["0.weight"], body) < 1e-13
    for j in range(2):
        mine = [i for i in range(12) if choice[i] == j]
        head = sum(float(n[i] / n[mine].sum()) * trained[i]["3.weight"] for i in mine)
        assert gap(after["3.weight"][j], head) < 1e-13


def test_the_choice_is_by_the_mean_loss_on_the_training_data() -> None:
    """In one full batch, in evaluation mode."""
    task, plan, algorithm = toy_task(), toy_plan(batch=None), IFCA(clusters=3, epochs=2)
    many = make_engine("serial", algorithm, task, plan).kept(0, 0)["models"]
    choices = set()
    for i in range(12):
        x, y = (t[torch.from_numpy(plan.train[i])] for t in (plan.x, plan.y))
        each = [float(task.loss(task.outputs(row(many, j), x), y).mean()) for j in range(3)]
        assert int(algorithm.choose(task, many, plan.one(i, algorithm, 0, 0))) == int(np.argmin(each))
        choices.add(int(np.argmin(each)))
    assert len(choices) > 1


def test_first_models_differ() -> None:
    task, plan = toy_task(), toy_plan()
    shuffled = make_engine("serial", IFCA(clusters=3), task, plan).kept(0, 0)["models"]["0.weight"]
    first = task.init()["0.weight"]
    assert torch.equal(shuffled[0], first)
    for j in (1, 2):
        assert not torch.equal(shuffled[j], first)
        assert torch.equal(shuffled[j].flatten().sort().values, first.flatten().sort().values)
    engine = make_engine("serial", IFCA(clusters=2, first="noise", noise=0.5), task, plan)
    noisy = engine.kept(0, 0)["models"]["0.weight"]
    spread = float((noisy[1] - first).square().mean().sqrt() / first.square().mean().sqrt())
    assert 0.4 < spread < 0.6

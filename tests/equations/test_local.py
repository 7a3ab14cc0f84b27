"""Local-only training: nothing travels, and every device is plain SGD on its own data, with batches from the plan."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tierfed.algorithms.keep_local import KeepLocal
from tierfed.testing.toy import ENGINES, gap, make_engine, quad, run, toy_net, toy_plan, toy_settings, toy_task

kinds = pytest.mark.parametrize("kind", ENGINES)


@kinds
def test_T61_devices_with_equal_data_have_equal_models(kind: str) -> None:
    task, plan = quad([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]], start=[5.0, 6.0])
    engine = run(make_engine(kind, KeepLocal(private="all", epochs=2), task, plan), 3)
    own = [engine.own(i)["own"]["w"] for i in range(3)]
    assert gap(own[0], own[2]) == 0.0
    for i, a in ((0, (1.0, 2.0)), (1, (3.0, 4.0))):  # a + (1 - s)^(E T) (x - a)
        want = [v + 0.9**6 * (x - v) for v, x in zip(a, (5.0, 6.0), strict=True)]
        assert own[i].tolist() == pytest.approx(want, abs=1e-14)


@kinds
def test_nothing_travels(kind: str) -> None:
    engine = make_engine(kind, KeepLocal(private="all"), toy_task(), toy_plan(), toy_settings()["3 tiers"])
    assert set(engine.step().link_bytes().values()) == {0}
    assert engine.kept(0, 0) == {"params": {}}


@kinds
def test_a_device_is_plain_sgd_with_batch_norm(kind: str) -> None:
    """The same steps with an nn.Module, its own buffers, and torch.optim.SGD."""
    algorithm, plan = KeepLocal(private="all", epochs=2, lr=0.2), toy_plan()
    engine = run(make_engine(kind, algorithm, toy_task(), plan), 2)
    for device in (0, 1, 5):  # 29, 8 and 28 samples: the last batch wraps around, or not
        net = toy_net().train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
        for round_ in range(2):
            for rows in plan.rows(device, 2, plan.steps(device, algorithm), round_, 0).reshape(-1, plan.width(device)):
                optimizer.zero_grad()
                cross_entropy(net(plan.x[torch.from_numpy(rows)]), plan.y[torch.from_numpy(rows)]).backward()
                optimizer.step()
        want = {k: v.detach() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
        assert gap(engine.own(device)["own"], want) < 1e-13


@kinds
def test_only_devices_that_are_polled_train(kind: str) -> None:
    engine = make_engine(
        kind, KeepLocal(private="all"), toy_task(), toy_plan(), toy_settings(participation=0.25)["flat"]
    )
    log = engine.step()
    polled = set(log.bursts[0].kids.tolist())
    assert len(polled) == 3
    assert set(engine.store.ids("own")) == polled

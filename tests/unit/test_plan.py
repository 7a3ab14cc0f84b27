"""The batch plan: which device sees which rows when, whoever else is asked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.algorithm import Algorithm
from tierfed.plan import Plan

SIZES = [3, 9, 8, 17, 1, 12]


def plan(batch: int | None = 4, seed: int = 0) -> Plan:
    """Ragged devices: device i holds rows out of order, device 4 has one training row, device 2 nothing held out."""
    order = np.random.default_rng(3).permutation(sum(SIZES) + 10)
    cut = np.split(order, np.cumsum([*SIZES, 2, 1, 0, 4, 3]))
    x = torch.arange(len(order), dtype=torch.float32)[:, None]
    return Plan(x=x, y=torch.arange(len(order)), train=cut[:6], held=[*cut[6:11], cut[11]], batch=batch, seed=seed)


def test_widths_and_steps() -> None:
    p = plan()
    assert p.samples.tolist() == SIZES
    assert [p.width(i) for i in range(6)] == [3, 4, 4, 4, 1, 4]
    assert [p.steps(i, Algorithm()) for i in range(6)] == [1, 3, 2, 5, 1, 3]
    assert [p.steps(i, Algorithm(steps=7)) for i in range(6)] == [7] * 6


def test_work_is_steps_times_width_of_all_passes() -> None:
    """Steps 1, 3, 2, 5, 1, 3 of widths 3, 4, 4, 4, 1, 4; without a batch all rows once."""
    assert plan().work([0, 1, 2, 3, 4, 5], Algorithm(epochs=1)).tolist() == [3, 12, 8, 20, 1, 12]
    assert plan().work(np.array([3, 0]), Algorithm(epochs=3)).tolist() == [60, 9]
    assert plan().work([0, 5], Algorithm(epochs=1, steps=7)).tolist() == [21, 28]
    assert plan(batch=None).work([5, 1], Algorithm(epochs=2)).tolist() == [24, 18]


def test_full_batches() -> None:
    p = plan(batch=None)
    assert [p.width(i) for i in range(6)] == SIZES
    assert [p.steps(i, Algorithm()) for i in range(6)] == [1] * 6
    assert sorted(p.rows(3, 1, 1, 0, 0).ravel().tolist()) == sorted(p.train[3].tolist())


@given(
    device=st.integers(0, 5),
    batch=st.one_of(st.none(), st.integers(1, 20)),
    steps=st.integers(1, 12),
    round_=st.integers(0, 99),
    seed=st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_every_sample_once_before_any_comes_again(
    device: int, batch: int | None, steps: int, round_: int, seed: int
) -> None:
    p = plan(batch, seed)
    rows = p.rows(device, 3, steps, round_, 1)
    n = SIZES[device]
    assert rows.shape == (3, steps, p.width(device))
    for stream in rows.reshape(3, -1):
        for start in range(0, len(stream), n):
            part = stream[start : start + n]
            assert len(set(part.tolist())) == len(part)
            assert set(part.tolist()) <= set(p.train[device].tolist())


def test_passes_rounds_ticks_devices_and_seeds_shuffle_anew() -> None:
    p = plan()
    first, second = p.rows(3, 2, 5, 0, 0)
    others = [second, p.rows(3, 1, 5, 1, 0)[0], p.rows(3, 1, 5, 0, 1)[0], plan(seed=1).rows(3, 1, 5, 0, 0)[0]]
    assert len({tuple(r.ravel().tolist()) for r in [first, *others]}) == 5
    assert np.array_equal(p.rows(3, 1, 5, 0, 0)[0], first)


def test_fewer_steps_are_a_prefix() -> None:
    """`steps` cuts a pass short; it does not reshuffle it."""
    p = plan()
    assert np.array_equal(p.rows(3, 1, 2, 5, 0)[0], p.rows(3, 1, 4, 5, 0)[0, :2])


COHORTS = st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=5, unique=True)


@given(devices=COHORTS, epochs=st.integers(1, 3), round_=st.integers(0, 9), tick=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_alone_or_in_any_cohort(devices: list[int], epochs: int, round_: int, tick: int) -> None:
    """What is real of a device's part of a ragged cohort is its plan alone; the rest is dead and its own."""
    p, algorithm = plan(), Algorithm(epochs=epochs)
    cohort = p.data(devices, algorithm, round_, tick)
    assert cohort.ragged or bool(cohort.live.all())
    for h, i in enumerate(devices):
        one, s = p.one(i, algorithm, round_, tick), p.steps(i, algorithm)
        v = len(p.held[i])
        assert one.rows.shape == (epochs, s, 4)
        assert bool(one.live.all())
        assert torch.equal(cohort.rows[h, :, :s], one.rows)
        assert torch.equal(cohort.seed[h, :, :s], one.seed)
        assert cohort.live[h].sum(1).tolist() == [s] * epochs
        assert bool(cohort.live[h, :, :s].all())
        assert set(cohort.rows[h].ravel().tolist()) <= set(p.train[i].tolist())
        assert cohort.held_rows[h, :v].tolist() == p.held[i].tolist()
        assert cohort.held_live[h].tolist() == [True] * v + [False] * (cohort.held_live.shape[1] - v)
        assert int(one.steps) == epochs * s


def test_a_device_without_held_out_rows() -> None:
    data = plan().one(2, Algorithm(), 0, 0)
    assert data.held_live.tolist() == [False]
    assert data.held.x.shape == (1, 1)


def test_seeds_of_dropout_differ_by_device_round_tick_pass_and_step() -> None:
    p, a = plan(), Algorithm(epochs=2)
    seeds = [p.data([1, 5], a, r, t).seed for r in range(2) for t in range(2)]
    every = torch.stack(seeds)
    assert len(every.unique()) == every.numel() == 4 * 2 * 2 * 3
    assert int(every.min()) >= 0


def test_fold_skips_dead_steps_and_goes_in_order() -> None:
    p = plan()
    data = p.data([1, 3], Algorithm(epochs=2), 0, 0)
    short = data._replace(rows=data.rows[0], live=data.live[0], seed=data.seed[0])
    seen = short.fold(
        lambda carry, b: {"n": carry["n"] + 1, "sum": 3 * carry["sum"] + b.x.sum()},
        {"n": torch.tensor(0), "sum": torch.tensor(0.0)},
    )
    want = 0.0
    for rows in p.rows(1, 2, 3, 0, 0).reshape(6, 4):
        want = 3 * want + float(rows.sum())
    assert int(seen["n"]) == 6
    assert float(seen["sum"]) == want


def test_phases_and_zipped_passes() -> None:
    data = plan().one(3, Algorithm(epochs=4), 0, 0)
    first, rest = data.passes(0, 1), data.passes(1)
    assert torch.equal(torch.cat([first.rows, rest.rows]), data.rows)
    assert int(first.steps) == 5
    both = data.zipped(2)
    assert both.rows.shape == (2, 5, 2, 4)
    assert torch.equal(both.rows[1, 2, 0], data.rows[2, 2])
    assert torch.equal(both.rows[1, 2, 1], data.rows[3, 2])
    assert both.live.shape == both.seed.shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_pool_is_not_copied(dtype: torch.dtype) -> None:
    p = Plan(x=torch.zeros(4, 2, dtype=dtype), y=torch.zeros(4), train=[np.arange(3)], held=[np.arange(3, 4)])
    assert p.one(0, Algorithm(), 0, 0).x.data_ptr() == p.x.data_ptr()

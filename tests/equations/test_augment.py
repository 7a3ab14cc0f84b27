"""Data sharing (Zhao et al. 2018) and federated augmentation (Jeong et al. 2018): who holds what, by hand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tierfed
from tierfed.augment import AugmentSettings, augment, label_distance
from tierfed.augment.generators import kde, mixup, silverman
from tierfed.data import Federation
from tierfed.testing.toy import cloud, gap

FEATURES = 8
SAMPLE = 4 * FEATURES + 1  # bytes: 8 numbers of 32 bits, and a label
FILLING = ("gan", "kde", "mixup")


def federation(counts: Sequence[Sequence[int]], tests: int = 2) -> Federation:
    """counts[i][c] training samples of label c at device i; feature 0 is ten times the label, the others are noise."""
    table = np.asarray(counts)
    n, c = table.shape
    label = [np.repeat(np.arange(c), row) for row in table]
    bounds = np.cumsum([0, *(len(y) for y in label)])
    y = np.concatenate([*label, np.zeros(n * tests, np.int64)]).astype(np.int64)
    x = np.random.default_rng(7).normal(size=(len(y), FEATURES))
    x[:, 0] += 10 * y
    return Federation(
        name="toy",
        x=torch.from_numpy(x).float(),
        y=torch.from_numpy(y),
        classes=tuple("abcdefgh"[:c]),
        train=tuple(np.arange(a, b) for a, b in pairwise(bounds)),
        val=tuple(np.zeros(0, np.int64) for _ in range(n)),
        test=tuple(bounds[-1] + np.arange(i * tests, (i + 1) * tests) for i in range(n)),
        devices=tuple(f"d{i}" for i in range(n)),
        bits_per_sample=32 * FEATURES,
    )


def share(before: Federation, seed: int = 0, public: Any = None, **changes: Any) -> Any:
    return augment(before, AugmentSettings(kind="share", **changes), seed, public=public)


def fill(before: Federation, kind: Any = "kde", seed: int = 0, **changes: Any) -> Any:
    return augment(before, AugmentSettings(kind=kind, **changes), seed)


class TestSharing:
    def test_two_devices_with_one_label_each(self) -> None:
        """beta = 0.25 of 80: ten of each label. Each device keeps 30 of its own label and gets 10 and 10."""
        before = federation([[40, 0], [0, 40]])
        more = share(before, beta=0.25)
        assert more.federation.label_counts().tolist() == [[40, 10], [10, 40]]
        assert more.own.tolist() == [40, 40]
        assert label_distance(before) == 1.0  # |1 - 1/2| + |0 - 1/2|
        assert label_distance(more.federation) == pytest.approx(0.6)  # |4/5 - 1/2| + |1/5 - 1/2|
        (moved,) = more.transfers
        assert moved.down_bytes.tolist() == [20 * SAMPLE, 20 * SAMPLE]
        assert moved.up_bytes.tolist() == [0, 0]
        assert moved.common

    def test_devices_give_evenly(self) -> None:
        """beta = 0.1 of 80: four of each label; all have both labels, so everybody gives a tenth."""
        more = share(federation([[20, 20], [10, 10], [10, 10]]), beta=0.1, alpha=0.0)
        assert more.federation.sizes().tolist() == [36, 18, 18]

    def test_all_devices_get_the_same_only_with_alpha_1(self) -> None:
        more = share(federation([[40, 0], [0, 40]]), beta=0.25, alpha=0.5)
        assert [len(rows) for rows in more.federation.train] == [40, 40]  # 30 kept, 10 of 20
        assert more.transfers[0].down_bytes.tolist() == [10 * SAMPLE, 10 * SAMPLE]
        assert not more.transfers[0].common

    @settings(max_examples=25, deadline=None)
    @given(
        counts=st.lists(st.lists(st.integers(10, 30), min_size=3, max_size=3), min_size=1, max_size=5),
        seed=st.integers(0, 9),
    )
    def test_nothing_is_lost_and_nothing_doubled(self, counts: list[list[int]], seed: int) -> None:
        before = federation(counts)
        more = share(before, seed, beta=0.1, alpha=0.0)
        again = np.concatenate([*more.federation.train, more.cloud])
        assert np.sort(again).tolist() == np.sort(np.concatenate(before.train)).tolist()
        assert len(set(np.bincount(before.y.numpy()[more.cloud], minlength=3).tolist())) == 1
        assert all(len(rows) for rows in more.federation.train)
        assert more.federation.test is before.test

    def test_T55_label_distance_falls_in_alpha(self) -> None:
        skewed = [[0, 30, 0], [30, 0, 0], [0, 0, 30], [20, 5, 5], [5, 20, 5], [5, 5, 20]]
        for seed in range(3):
            found = [
                label_distance(share(federation(skewed), seed, beta=0.3, alpha=a).federation, np.ones(3, np.int64))
                for a in (0.0, 0.25, 0.5, 0.75, 1.0)
            ]
            assert all(b < a for a, b in pairwise(found)), found

    def test_samples_of_the_cloud_come_from_the_public_ones(self) -> None:
        before = federation([[40, 0], [0, 40]])
        public = np.concatenate([before.train[0][:12], before.train[1][:12]])
        rest = replace(before, train=tuple(rows[12:] for rows in before.train))
        more = share(rest, public=public, beta=0.25, alpha=0.0)
        assert [rows.tolist() for rows in more.federation.train] == [rows.tolist() for rows in rest.train]
        assert set(more.cloud) <= set(public)
        assert np.bincount(before.y.numpy()[more.cloud]).tolist() == [10, 10]

    def test_T54_alpha_0_is_fedavg_on_the_remaining_samples(self) -> None:
        """The same bits as a run on data from which the cloud's samples are gone."""
        rng = np.random.default_rng(3)
        y = rng.integers(0, 3, 240)
        x = torch.from_numpy(rng.normal(size=(240, FEATURES)) + y[:, None]).float()
        whole = tierfed.Dataset(
            name="toy",
            x=x,
            y=torch.from_numpy(y),
            classes=("a", "b", "c"),
            bits_per_sample=32 * FEATURES,
            devices=("u", "v", "w"),
            device=np.arange(240) % 3,
            split=np.where(np.arange(240) % 5 == 0, 2, 0).astype(np.int8),
        )
        config: dict[str, Any] = {
            "run": {"rounds": 3},
            "data": {"standardize": False, "split": {"by": "given", "val": 0.0}},
        }
        with_cloud = tierfed.run(
            {**config, "augment": {"kind": "share", "beta": 0.1, "alpha": 0.0}}, data=whole, folder=False
        )
        more = with_cloud.world.augmentation
        assert more is not None
        assert len(more.cloud) == 18  # round(192 / 10 / 3) = 6 of each of three labels
        keep = np.setdiff1d(np.arange(240), more.cloud)
        rest = replace(
            whole,
            x=x[keep],
            y=whole.y[keep],
            device=whole.device[keep],
            split=whole.split[keep],  # type: ignore[index]
        )
        plain = tierfed.run(config, data=rest, folder=False)
        assert gap(cloud(with_cloud.engine), cloud(plain.engine)) == 0.0
        assert with_cloud.scores == plain.scores
        untouched = tierfed.run(config, data=whole, folder=False)
        assert gap(cloud(untouched.engine), cloud(plain.engine)) > 0.0


class TestFilling:
    @pytest.mark.parametrize("kind", FILLING)
    def test_targets_are_filled_up(self, kind: Any) -> None:
        """tau = 1/2: of device 0 b (4 < 5) and c (0 < 5) are targets; device 1 has 6, 5 and 8, no target."""
        before = federation([[10, 4, 0], [6, 5, 8], [0, 0, 10]])
        more = augment(before, AugmentSettings(kind=kind, seeds=3, redundant=1), 0, draft=True)
        assert more.federation.label_counts().tolist() == [[10, 10, 10], [6, 5, 8], [10, 10, 10]]

    @settings(max_examples=25, deadline=None)
    @given(
        counts=st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3).filter(any), min_size=1, max_size=4),
        kind=st.sampled_from(("kde", "mixup")),
    )
    def test_T56_with_tau_1_all_counts_of_a_device_are_equal(self, counts: list[list[int]], kind: str) -> None:
        before = federation([*counts, [1, 2, 3]])  # the last device has a, b to give; c comes as a redundant label
        more = fill(before, kind, tau=1.0, redundant=1)
        after = more.federation.label_counts()
        assert after.tolist() == np.repeat(before.label_counts().max(1), 3).reshape(-1, 3).tolist()
        assert more.generated == after.sum() - before.label_counts().sum()

    @pytest.mark.parametrize("kind", FILLING)
    def test_T57_without_targets_nothing_is_given_and_nothing_changes(self, kind: str) -> None:
        before = federation([[10, 5], [6, 8]])
        more = fill(before, kind)
        assert [t.down_bytes.tolist() + t.up_bytes.tolist() for t in more.transfers] == [[0] * 4] * 2
        assert torch.equal(more.federation.x, before.x)
        assert [rows.tolist() for rows in more.federation.train] == [rows.tolist() for rows in before.train]
        assert more.generator == {}

    def test_bytes_and_leakage(self) -> None:
        """Device 0 lacks b (has 3) and c (has 1): gives 2 and 1, and 2 of its redundant label a; leakage 2/3.

        Device 1 lacks nothing. Device 2 lacks a and b, has none of them, and gives 2 of c; leakage 2/3.
        """
        before = federation([[10, 3, 1], [8, 8, 8], [0, 0, 10]])
        more = fill(before, seeds=2, redundant=1)
        seeds, generator = more.transfers
        assert seeds.up_bytes.tolist() == [5 * SAMPLE, 0, 2 * SAMPLE]
        assert generator.down_bytes.tolist() == [7 * SAMPLE, 0, 7 * SAMPLE]
        assert generator.common
        assert more.facts["privacy_leakage"] == pytest.approx(2 / 3)
        assert fill(federation([[10, 3, 8], [8, 8, 8]])).facts["privacy_leakage"] == 1.0

    def test_a_gan_weighs_its_numbers(self) -> None:
        """(4 noise + 3 classes + 1) 5 + (5 + 1) 5 + (5 + 1) 8 weights and 4 x 8 numbers of the scale, 4 bytes each."""
        before = federation([[10, 4, 1], [8, 8, 8]])
        small = replace(AugmentSettings().gan, noise=4, hidden=5, steps=3)
        more = fill(before, "gan", gan=small)
        assert more.transfers[1].down_bytes.tolist() == [4 * (40 + 30 + 48 + 32), 0]
        assert sum(t.numel() for t in more.generator.values()) == 150

    @pytest.mark.parametrize("kind", ["kde", "mixup"])
    def test_generated_samples_belong_to_their_label(self, kind: str) -> None:
        """Labels are 10 apart in feature 0, the noise is 1."""
        more = fill(federation([[30, 8, 0], [0, 30, 8], [8, 0, 30]]), kind)
        new = more.federation
        n = len(new.x) - more.generated
        assert ((new.x[n:, 0] / 10).round().long() == new.y[n:]).float().mean() > 0.97
        assert new.x[n:].dtype == torch.float32

    def test_same_seed_same_samples(self) -> None:
        before = federation([[10, 2], [2, 10]])
        one, two, other = (fill(before, seed=s).federation.x for s in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


class TestLightGenerators:
    def test_silverman(self) -> None:
        """d = 1: (4 / 3n)^(1/5) = 1.06 n^(-1/5)."""
        assert silverman(32, 1) == pytest.approx((4 / 3) ** 0.2 / 2)
        assert silverman(1, 2) == 1.0

    def test_kde_has_the_moments_of_a_kernel_density(self) -> None:
        """Seeds -1 and 1: mean 0, standard deviation 1, so variance 1 + h^2."""
        x, y = torch.tensor([[-1.0], [1.0]], dtype=torch.float64), np.zeros(2, np.int64)
        out = torch.empty(40000, 1, dtype=torch.float64)
        kde(x, y, np.zeros(40000, np.int64), 0.5, 0, out)
        assert float(out.mean()) == pytest.approx(0.0, abs=0.02)
        assert float(out.var()) == pytest.approx(1.25, abs=0.02)

    def test_without_noise_kde_gives_the_seeds(self) -> None:
        x, y = torch.tensor([[1.0], [2.0], [9.0]]), np.array([0, 0, 1])
        out = torch.empty(50, 1)
        kde(x, y, np.repeat([0, 1], 25), 0.0, 0, out)
        assert set(out[:25].flatten().tolist()) == {1.0, 2.0}
        assert set(out[25:].flatten().tolist()) == {9.0}

    def test_mixup_is_between_two_seeds(self) -> None:
        """Two seeds are always different ones: s u + (1 - s) v is uniform between 0 and 1."""
        x, y = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64), np.zeros(2, np.int64)
        out = torch.empty(20000, 2, dtype=torch.float64)
        mixup(x, y, np.zeros(20000, np.int64), 0, out)
        assert torch.equal(out[:, 1], 2 * out[:, 0])
        assert float(out[:, 0].mean()) == pytest.approx(1 / 2, abs=0.01)
        assert float(out[:, 0].var()) == pytest.approx(1 / 12, abs=0.003)

    def test_one_seed_is_all_there_is(self) -> None:
        x, y = torch.tensor([[3.0]]), np.zeros(1, np.int64)
        noisy, mixed = torch.empty(2, 4, 1)
        kde(x, y, np.zeros(4, np.int64), None, 0, noisy)
        mixup(x, y, np.zeros(4, np.int64), 0, mixed)
        assert noisy.tolist() == mixed.tolist() == [[3.0]] * 4

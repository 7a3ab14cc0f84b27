"""Comparisons: what may be compared, fronts, paired tests by hand, the command."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import wilcoxon

from tierfed.errors import InputError
from tierfed.metrics import Row
from tierfed.report import fronts, pairs
from tierfed.report.gather import gather
from tierfed.report.grid import GridFolder
from unit.test_report import LEVELS, rewrite, write_grid, write_run


def scored(
    folder: Path, algorithm: str, personal: list[float], seed: int = 0, common: list[float] | None = None
) -> Path:
    """A run with these accuracies of the devices d0, d1, ... on the personal and the global model."""
    write_run(folder, algorithm, seed, devices=len(personal), teams=0)
    cells = [("personal_post", personal), ("global", personal if common is None else common)]
    rows = [Row(1, "device", f"d{i}", m, "test", "accuracy", v) for m, values in cells for i, v in enumerate(values)]
    return rewrite(folder, rows)


def renamed(folder: Path, names: list[str]) -> Path:
    """A run whose devices have other names."""
    table = pq.read_table(folder / "devices.parquet")
    old = table["device"].to_pylist()
    pq.write_table(table.set_column(0, "device", pa.array(names)), folder / "devices.parquet")
    rows = [Row(**r) for r in pq.read_table(folder / "metrics.parquet").to_pylist()]
    new = dict(zip(old, names, strict=True))
    return rewrite(folder, [r._replace(node=new.get(r.node, r.node)) for r in rows])


class TestGather:
    def test_runs_and_grids_under_names_of_their_own(self, tmp_path: Path) -> None:
        write_grid(tmp_path / "a", seeds=1)
        alone = write_run(tmp_path / "mine", "ditto", 1)
        grid = gather([tmp_path / "a", alone])
        assert [m.name for m in grid.members] == [*(f"{a}-s0" for a in LEVELS), "mine"]
        assert grid.labels == tuple(LEVELS)
        write_grid(tmp_path / "b", seeds=1, shift=0.5)
        grid = gather([tmp_path / "a", tmp_path / "b"])
        assert grid.members[0].name == (tmp_path / "a" / "local-s0").as_posix()
        assert "ditto (eta=0.6)" in grid.labels

    def test_runs_that_only_their_rounds_tell_apart(self, tmp_path: Path) -> None:
        folders = [write_run(tmp_path / n, "ditto", rounds=r) for n, r in (("short", 2), ("long", 4))]
        assert gather(folders).labels == ("ditto", "ditto [long]")

    def test_long_labels_are_numbered(self, tmp_path: Path) -> None:
        for name, word in (("a", "x" * 50), ("b", "y" * 50)):
            text = (write_run(tmp_path / name, "ditto") / "config.toml").read_text()
            (tmp_path / name / "config.toml").write_text(text.replace("eta =", f'rule = "{word}"\neta ='))
        grid = gather([tmp_path / "a", tmp_path / "b"])
        assert grid.labels == ("ditto (variant 1)", "ditto (variant 2)")
        assert grid.notes == tuple(f"ditto, variant {n}: rule={w * 50}." for n, w in ((1, "x"), (2, "y")))

    def test_one_run_is_no_comparison(self, tmp_path: Path) -> None:
        one = write_run(tmp_path / "one")
        with pytest.raises(InputError, match="got 1 run, wanted two at least"):
            gather([one])
        with pytest.raises(InputError, match="one is named twice"):
            gather([one, tmp_path / "." / "one"])
        with pytest.raises(InputError, match="nowhere is no folder"):
            gather([one, tmp_path / "nowhere"])

    def test_other_data_are_refused(self, tmp_path: Path) -> None:
        one, other = write_run(tmp_path / "one", "ditto"), write_run(tmp_path / "other")
        text = (other / "config.toml").read_text()
        (other / "config.toml").write_text(text.replace("digits", "letters"))
        with pytest.raises(InputError, match=r"one and other cannot.*data set of one is digits, of other letters"):
            gather([one, other])
        (other / "config.toml").write_text(text)
        error = write_run(tmp_path / "error", regression=True)
        with pytest.raises(InputError, match="the data set of one is digits, of error air quality"):
            gather([one, error])

    def test_other_devices_are_refused(self, tmp_path: Path) -> None:
        one = scored(tmp_path / "one", "ditto", [0.1, 0.2])
        other = renamed(scored(tmp_path / "other", "fedavg", [0.1, 0.2]), ["x0", "x1"])
        with pytest.raises(InputError, match=r"share no device \('d0', … and 'x0', …\)"):
            gather([one, other])

    def test_other_test_samples_are_refused(self, tmp_path: Path) -> None:
        one, other = scored(tmp_path / "one", "ditto", [0.1, 0.2]), scored(tmp_path / "other", "fedavg", [0.1, 0.2])
        table = pq.read_table(other / "devices.parquet")
        pq.write_table(table.set_column(4, "test", pa.array([10, 12])), other / "devices.parquet")
        with pytest.raises(InputError, match="device 'd1' has 11 test samples in one and 12 in other"):
            gather([one, other])

    def test_of_shared_devices_only_these_are_compared(self, tmp_path: Path) -> None:
        """d0 and d1 with 10 and 11 test samples: (0.1 * 10 + 0.2 * 11) / 21 and (0.5 * 10 + 0.6 * 11) / 21."""
        one = scored(tmp_path / "one", "ditto", [0.1, 0.2, 0.9])
        other = scored(tmp_path / "other", "fedavg", [0.5, 0.6])
        grid = gather([one, other])
        assert grid.notes == ("With seed 0 only the 2 devices that all runs have are compared.",)
        got = [m.run.statistics("personal_post")["weighted"] for m in grid.members]
        assert got == pytest.approx([3.2 / 21, 11.6 / 21])

    def test_no_common_seed_gives_no_pairs(self, tmp_path: Path) -> None:
        one, other = scored(tmp_path / "one", "ditto", [0.1] * 8), scored(tmp_path / "other", "fedavg", [0.2] * 8, 1)
        grid = gather([one, other])
        assert grid.notes == ("No seed is common to all: runs with other seeds are not paired.",)
        assert pairs.paired_tests(grid) == []
        assert pairs.paired_grid([], "accuracy") is None


class TestPairs:
    def test_holm_by_hand(self) -> None:
        """0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06, and 0.04 * 1 is not below what came before it."""
        assert pairs.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
        assert pairs.holm([0.9, 0.8]) == [1.0, 1.0]
        assert pairs.holm([]) == []

    def test_p_by_hand(self) -> None:
        """Six pairs with one sign: of 2^6 signs two are as extreme, p = 2 / 64."""
        assert pairs.p_value(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])) == pytest.approx(2 / 64)
        assert pairs.p_value(-np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])) == pytest.approx(2 / 64)
        assert pairs.p_value(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) is None
        assert pairs.p_value(np.zeros(8)) == 1.0
        # a pair without a difference is no evidence for either side
        assert pairs.p_value(np.array([0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])) == pytest.approx(2 / 64)

    def test_devices_are_averaged_over_common_seeds(self, tmp_path: Path) -> None:
        """d0: (0.2 + 0.4) / 2, d1: (-0.1 - 0.3) / 2; seed 2 has no fedavg."""
        values = {0: ([0.5, 0.5], [0.3, 0.6]), 1: ([0.6, 0.4], [0.2, 0.7])}
        folders = [scored(tmp_path / f"ditto{s}", "ditto", a, s) for s, (a, _) in values.items()]
        folders += [scored(tmp_path / f"fedavg{s}", "fedavg", b, s) for s, (_, b) in values.items()]
        folders.append(scored(tmp_path / "ditto2", "ditto", [1.0, 1.0], 2))
        grid = gather(folders)
        assert pairs.over_devices(grid, "ditto", "fedavg", "own") == pytest.approx([0.3, -0.2])
        # weights 10 and 11: (0.2 * 10 - 0.1 * 11) / 21, (0.4 * 10 - 0.3 * 11) / 21
        assert pairs.over_seeds(grid, "ditto", "fedavg", "own") == pytest.approx([0.9 / 21, 0.7 / 21])

    def test_the_family_of_three_algorithms(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        values = {n: rng.uniform(size=10).round(3) for n in ("ditto", "fedavg", "jobfed")}
        grid = gather([scored(tmp_path / n, n, v.tolist()) for n, v in values.items()])
        tests = [t for t in pairs.paired_tests(grid) if t.model == "own" and t.over == "devices"]
        assert [(t.first, t.second) for t in tests] == [("ditto", "fedavg"), ("ditto", "jobfed"), ("fedavg", "jobfed")]
        want = [float(wilcoxon(values[t.first], values[t.second]).pvalue) for t in tests]
        assert [t.p for t in tests] == pytest.approx(want)
        assert [t.adjusted for t in tests] == pytest.approx(pairs.holm(want))
        assert all(t.n == 10 and t.better + t.worse == 10 for t in tests)
        # one seed is too few for any statement over seeds
        rows = pairs.paired_grid(pairs.paired_tests(grid), "accuracy").rows
        assert [r[6:] for r in rows if r[2] == "seeds"] == [["too few pairs", "–"]] * 6

    def test_a_reference(self, tmp_path: Path) -> None:
        grid = GridFolder.read(write_grid(tmp_path / "g"))
        tests = pairs.paired_tests(grid, "fedavg")
        assert {t.second for t in tests} == {"fedavg"}
        assert len({t.first for t in tests}) == 3
        with pytest.raises(InputError, match="no algorithm 'fedavgs' in this comparison; did you mean 'fedavg'"):
            pairs.paired_tests(grid, "fedavgs")

    def test_lower_errors_are_better(self, tmp_path: Path) -> None:
        grid = GridFolder.read(write_grid(tmp_path / "g", regression=True))
        ditto, local = (grid.of_label(n)[0].run.statistics("personal_post")["mean"] for n in ("ditto", "local"))
        assert ditto < local
        assert np.mean(pairs.over_seeds(grid, "ditto", "local", "own")) > 0


class TestFronts:
    POINTS = ((1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (2.0, 0.4), (4.0, 0.9), (4.0, 0.9))

    def test_by_hand(self) -> None:
        """Cheaper and better: 1 -> 0.5, 2 -> 0.7, 4 -> 0.9; 3 -> 0.6 is beaten by 2 -> 0.7."""
        x, y = np.array(self.POINTS).T
        assert fronts.front(x, y, False, True) == [0, 1, 4]
        assert fronts.front(x, y, True, True) == [4]
        assert fronts.front(x, y, False, False) == [0, 3]

    def test_the_order_of_the_points_does_not_matter(self) -> None:
        for order in permutations(range(5)):
            x, y = np.array(self.POINTS)[list(order)].T
            assert sorted(order[i] for i in fronts.front(x, y, False, True)) == [0, 1, 4]

    def test_the_balance_map(self, tmp_path: Path) -> None:
        """ditto is beaten by jobfed in both; local-only training has no global model here and is a line."""
        points = {"jobfed": (0.8, 0.6), "ditto": (0.7, 0.5), "fedavg": (0.6, 0.7)}
        folders = [scored(tmp_path / n, n, [p] * 3, common=[g] * 3) for n, (p, g) in points.items()]
        alone = scored(tmp_path / "local", "local", [0.9] * 3)
        rows = [Row(**r) for r in pq.read_table(alone / "metrics.parquet").to_pylist()]
        rewrite(alone, [r for r in rows if r.model != "global"])
        chart = fronts.balance(gather([*folders, alone]))
        line = chart.figure["data"][0]
        assert (line["x"], line["y"]) == ([0.8, 0.6], [0.6, 0.7])
        assert chart.figure["layout"]["shapes"][0]["x0"] == pytest.approx(0.9)
        assert "Not beaten in both by any other one: jobfed, fedavg." in chart.note
        assert "Not shown, for want of one of the two: local." in chart.note

    def test_scores_against_bytes(self, tmp_path: Path) -> None:
        """All send as much, so the best one alone is on the front; made-up local runs have no bytes at all."""
        grid = GridFolder.read(write_grid(tmp_path / "g", seeds=1))
        chart = fronts.pareto(grid, "own", "bytes")
        assert {r[1] for r in chart.data.rows if r[4] == "yes"} == {"jobfed"}
        assert "traffic of the whole run (MB)" in chart.figure["layout"]["xaxis"]["title"]["text"]
        assert fronts.pareto(grid, "global", "joules") is not None

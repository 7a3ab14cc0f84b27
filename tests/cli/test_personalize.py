"""Training, then personalization: one command or two, killed at any moment, as a grid, from Python."""

import json
import os
import re
import shutil
import signal
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn

import tierfed
from cli.shell import TOY, Shell, begin, kill, records, toy_arrays, wait_for, wait_until
from tierfed.config import load_config
from tierfed.errors import InputError

STAGE = """
[personalize]
mechanism = "ftl"
rounds = 2

[personalize.options]
tune = "head"
"""
WATCH = ("--set", "data.source=watch", "--set", "data.devices=4", "--set", "topology.teams=auto")


@pytest.fixture
def staged(shell: Shell) -> Shell:
    """The toy with a personalization in `both.toml`."""
    (shell.folder / "both.toml").write_text(TOY + STAGE)
    return shell


def same(a: Path, b: Path) -> None:
    """Two stores with the same bits."""
    left, right = records(a), records(b)
    assert left.keys() == right.keys()
    assert [k for k in left if left[k] != right[k]] == []


def test_one_command_for_both_stages(staged: Shell) -> None:
    said = staged.good("run", "both.toml", "--out", "r")
    assert "r: round 3/3" in said
    assert "r/personalized: round 0/2" in said
    assert "ftl: personal, before training" in said
    config = tomllib.loads((staged.folder / "r" / "personalized" / "config.toml").read_text())
    assert config["start"] == {"run": "r", "of": "personal", "round": 3}
    assert config["algorithm"]["name"] == "ftl"
    assert config["algorithm"]["tune"] == "head"
    assert config["personalize"]["mechanism"] == "none"
    assert config["run"]["rounds"] == 2
    page = (staged.folder / "r" / "report.html").read_text()
    assert 'href="personalized/report.html"' in page
    assert "Personalization" in page
    assert "begun with the personal models of r" in (staged.folder / "r/personalized/report.html").read_text()


def test_the_training_is_the_same_without_it(staged: Shell) -> None:
    staged.good("run", "both.toml", "--out", "r", "--no-report")
    staged.good("run", "toy.toml", "--out", "plain", "--no-report")
    same_but = {b"meta"}  # it names the config
    a, b = records(staged.folder / "r"), records(staged.folder / "plain")
    assert {k for k in a if a[k] != b.get(k)} <= same_but
    assert a.keys() == b.keys()


def test_a_command_of_its_own_gives_the_same_bits(staged: Shell) -> None:
    """On a run without [personalize]; only the config differs, which does not name the round."""
    staged.good("run", "both.toml", "--out", "r", "--no-report")
    staged.good("run", "toy.toml", "--out", "plain", "--no-report")
    stage = ("--mechanism", "ftl", "--rounds", "2", "--set", "tune=head")
    said = staged.good("personalize", "plain", *stage, "--no-report")
    assert "plain/personalized: round 2/2" in said
    assert "folder: plain" in said
    other = staged.good("personalize", "plain", *stage, "--start", "global", "--out", "elsewhere")
    assert "elsewhere: round 2/2" in other
    assert (staged.folder / "elsewhere" / "report.html").exists()
    a, b = (records(staged.folder / run / "personalized") for run in ("r", "plain"))
    assert {k for k in a if a[k] != b.get(k)} <= {b"meta"}
    c = records(staged.folder / "elsewhere")
    assert not [k for k in c if k.startswith(b"start/")]
    assert b"start_all/000000000000" in c


def test_the_first_numbers_are_the_last_ones_of_the_training(staged: Shell) -> None:
    staged.good("run", "both.toml", "--out", "r", "--no-report", "--set", "algorithm.name=fedper")
    found = []
    for folder, number in (("r", 3), ("r/personalized", 0)):
        rows = pq.read_table(staged.folder / folder / "metrics.parquet").to_pylist()
        found.append(
            {
                (r["node"], r["metric"]): r["value"]
                for r in rows
                if (r["round"], r["tier"], r["model"]) == (number, "device", "personal_pre")
            }
        )
    assert found[0]
    # a layer that is common to all devices is multiplied with the samples of all of them at once: another rounding
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    accuracies = [{k: v for k, v in numbers.items() if k[1] == "accuracy"} for numbers in found]
    assert accuracies[0] == accuracies[1]


def _reached(moment: tuple[str, int], line: str) -> bool:
    """Whether a line tells of a round of a run, or of a later one; the second stage is later than all of the first."""
    found = re.match(r"(r(?:/personalized)?): round (\d+)/", line)
    return found is not None and (found[1], int(found[2])) >= moment


def test_kill_9_in_both_stages(staged: Shell) -> None:
    """Four processes are killed: two in the training or right after it, two in the personalization."""
    slow = ("--set", "algorithm.epochs=40", "--set", "personalize.rounds=9", "--no-report")
    staged.good("run", "both.toml", *slow, "--out", "whole")
    child = begin(staged.folder, "run", "both.toml", *slow, "--out", "r")
    for number, moment in enumerate([("r", 1), ("r", 3), ("r/personalized", 0), ("r/personalized", 2)]):
        if number:
            child = begin(staged.folder, "resume", "r", "--no-report")
        wait_until(child, partial(_reached, moment), f"{moment} or a later one")
        kill(child)  # it waits two lines later at the latest
    assert "all rounds done" in staged.good("resume", "r", "--no-report")
    same(staged.folder / "r", staged.folder / "whole")
    same(staged.folder / "r" / "personalized", staged.folder / "whole" / "personalized")
    assert "there was nothing left to train" in staged("resume", "r", "--no-report").err


def test_killed_between_the_stages(staged: Shell) -> None:
    """The folder of the second one was just made; then its config was written, but not its first commit."""
    staged.good("run", "both.toml", "--out", "whole", "--no-report")
    for left in ((), ("config.toml",)):
        shutil.copytree(staged.folder / "whole", staged.folder / "r")
        for path in sorted((staged.folder / "r" / "personalized").iterdir()):
            if path.name not in left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        staged.good("resume", "r", "--no-report")
        same(staged.folder / "r" / "personalized", staged.folder / "whole" / "personalized")
        shutil.rmtree(staged.folder / "r")


def test_ctrl_c_in_the_second_stage(staged: Shell) -> None:
    slow = ("--set", "algorithm.epochs=40", "--set", "personalize.rounds=9", "--no-report")
    child = begin(staged.folder, "run", "both.toml", *slow, "--out", "r")
    wait_for(child, "r/personalized: round 1/9")
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=250)
    assert child.returncode == 130
    assert err == "stopped; go on with: tierfed resume r\n"
    staged.good("resume", "r", "--no-report")
    staged.good("run", "both.toml", *slow, "--out", "whole")
    same(staged.folder / "r" / "personalized", staged.folder / "whole" / "personalized")


def test_it_goes_on_without_the_first_folder(staged: Shell) -> None:
    """The models to begin with are in its own checkpoint; a stage may be extended by itself."""
    staged.good("run", "both.toml", "--out", "whole", "--set", "personalize.rounds=4", "--no-report")
    staged.good("run", "both.toml", "--out", "r", "--no-report")
    shutil.move(staged.folder / "r" / "personalized", staged.folder / "alone")
    shutil.rmtree(staged.folder / "r")
    staged.good("resume", "alone", "--rounds", "4", "--no-report")
    same(staged.folder / "alone", staged.folder / "whole" / "personalized")


@pytest.mark.parametrize("mechanism", ["reptile", "fedper", "fedrep", "per-fedavg", "ditto", "fmtl", "permfl", "local"])
def test_any_algorithm_personalizes(staged: Shell, mechanism: str) -> None:
    staged.good("run", "toy.toml", "--out", "r", "--rounds", "1", "--no-report")
    staged.good("personalize", "r", "-m", mechanism, "--rounds", "1", "--no-report")
    facts = json.loads(staged.good("report", "r", "--json"))
    assert facts["personalized"]["algorithm"] == mechanism
    assert facts["personalized"]["models"]["personal_pre"]["weighted"] > 0


def test_on_the_packaged_data(shell: Shell) -> None:
    """FedAvg learns, Reptile personalizes: the fine-tuned meta method of Jiang et al."""
    stage = ("--set", "personalize.mechanism=reptile", "--set", "personalize.rounds=1", "--set", "eval.post=true")
    shell.good("run", "toy.toml", *WATCH, *stage, "--rounds", "1", "--out", "r", "--no-report")
    facts = json.loads(shell.good("report", "r", "--json"))
    assert facts["personalized"]["models"].keys() == {"global", "personal_pre", "personal_post"}


def test_a_grid(staged: Shell) -> None:
    grid = ("-a", "fedavg,local", "--seeds", "0", "--rounds", "1", "--out", "g")
    said = staged.good("run", "both.toml", *grid, "--set", "run.jobs=1")
    assert "after personalization" in said
    assert "after personalization" in (staged.folder / "g" / "report.html").read_text()
    for name in ("fedavg-s0", "local-s0"):
        assert (staged.folder / "g" / name / "personalized" / "report.html").exists()
    shutil.rmtree(staged.folder / "g" / "local-s0" / "personalized")
    staged.good("resume", "g", "--no-report")
    assert records(staged.folder / "g" / "local-s0" / "personalized")


def test_show_says_it(staged: Shell) -> None:
    facts = json.loads(staged.good("show", "both.toml", "--json"))["runs"]["fedavg-s0"]
    assert facts["personalization"] == {"by": "ftl", "rounds": 2, "from": "personal models"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("personalize.mechanism=flt",), "personalize.mechanism = 'flt': unknown algorithm 'flt'; did you mean 'ftl'?"),
        (("personalize.options.tunes=head",), "personalize.options has no setting 'tunes'; did you mean 'tune'?"),
        (("personalize.options.depth=9",), "depth = 9 layers"),
        (("personalize.options.name=ftl",), "the mechanism is named by personalize.mechanism"),
        (("personalize.start=mean",), "personalize.start = 'mean'"),
        (("personalize.mechanism=mocha", "model.name=mclr", "model.options={}"), "cannot go on with trained ones"),
        (("personalize.mechanism=jobfed", "data.split.val=0.0"), "held-out local data"),
        (("personalize.mechanism=fedbn", "model.options={}"), "no batch norm"),
        (("algorithm.name=fedper", "personalize.start=global"), "fedper has no complete global model"),
        (("personalize.round=3",), "did you mean 'rounds'?"),
    ],
)
def test_what_does_not_fit_is_found_before_the_training(staged: Shell, changes: tuple[str, ...], said: str) -> None:
    sets = [part for change in changes for part in ("--set", change)]
    assert said in staged.bad("run", "both.toml", *sets, "--out", "r")


def test_another_mechanism_has_other_options(staged: Shell) -> None:
    """--set personalize.mechanism does not keep those of the one before."""
    config = load_config("both.toml", ["personalize.mechanism=ditto"])
    assert config.personalize.options == {}
    assert load_config("both.toml", ["personalize.mechanism=ftl"]).personalize.options == {"tune": "head"}


class TestBadCommands:
    @pytest.fixture
    def done(self, shell: Shell) -> Shell:
        shell.good("run", "toy.toml", "--out", "r", "--rounds", "1", "--no-report")
        return shell

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("r",), "no mechanism to personalize with"),
            (("r", "-m", "none"), "no mechanism to personalize with"),
            (("r", "-m", "dito"), "unknown algorithm 'dito'; did you mean 'ditto'?"),
            (("r", "-m", "ftl", "--set", "lam=1"), "algorithm has no setting 'lam'"),
            (("r", "-m", "ftl", "--set", "tune"), "wanted key=value"),
            (("r", "-m", "ftl", "--set", "tune=match"), "fits no parameter"),
            (("r", "-m", "ftl", "--rounds", "0"), "personalize.rounds = 0"),
            (("r", "-m", "ftl", "--start", "team"), "personalize.start = 'team'"),
            (("r", "-m", "ftl", "--out", "r"), "the run folder r exists"),
            (("nowhere", "-m", "ftl"), "nowhere is no run folder"),
        ],
    )
    def test_one_line(self, done: Shell, arguments: tuple[str, ...], said: str) -> None:
        assert said in done.bad("personalize", *arguments)

    def test_twice(self, done: Shell) -> None:
        done.good("personalize", "r", "-m", "ftl", "--rounds", "1", "--no-report")
        assert "r/personalized exists; `tierfed resume r/personalized`" in done.bad("personalize", "r", "-m", "ditto")

    def test_a_grid(self, shell: Shell) -> None:
        shell.good(
            "run", "toy.toml", "--seeds", "0,1", "--rounds", "1", "--out", "g", "--no-report", "--set", "run.jobs=1"
        )
        assert "g is a grid" in shell.bad("personalize", "g", "-m", "ftl")

    def test_more_rounds_of_a_training_that_is_personalized(self, staged: Shell) -> None:
        staged.good("run", "both.toml", "--out", "r", "--no-report")
        assert "are personalized already (r/personalized)" in staged.bad("resume", "r", "--rounds", "5")

    @pytest.mark.parametrize("file", ["r/config.toml", "r/personalized/config.toml"])
    def test_a_changed_config(self, staged: Shell, file: str) -> None:
        staged.good("run", "both.toml", "--out", "r", "--no-report")
        path = staged.folder / file
        path.write_text(path.read_text().replace('tune = "head"', 'tune = "bias"'))
        assert "holds another personalization than r/config.toml asks for" in staged.bad("resume", "r")


def frame() -> pa.Table:
    arrays = toy_arrays()
    x = {f"x{j}": arrays["x"][:, j] for j in range(arrays["x"].shape[1])}
    return pa.table({**x, "device": arrays["device"], "label": arrays["y"]})


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


TABLES: dict[str, Any] = {
    "run": {"rounds": 2, "out": "r"},
    "personalize": {"mechanism": "ftl", "rounds": 2, "options": {"tune": "adaptors", "depth": 2}},
}


class TestPython:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_in_memory_or_in_a_folder(self) -> None:
        """The same numbers, and the result of the second stage in that of the first."""
        module = net()
        found = [tierfed.run(TABLES, data=frame(), module=module, folder=folder) for folder in (False, True)]
        later = [r.personalized for r in found]
        assert later[0] is not None
        assert later[1] is not None
        assert later[0].rows == later[1].rows
        assert found[0].trained == 4
        assert later[0].scores
        assert (later[0].folder, later[1].folder) == (None, Path("r/personalized"))

    def test_resume_and_personalize_with_what_was_given(self) -> None:
        module = net()

        def stop(progress: tierfed.Progress) -> None:
            if progress.name == "r/personalized" and progress.round == 1:
                raise KeyboardInterrupt

        half = tierfed.run(TABLES, data=frame(), module=module, watch=stop)
        assert half.interrupted
        for _, p in module.named_parameters():
            nn.init.zeros_(p)  # the run does not depend on what becomes of the module
        whole = tierfed.resume("r", data=frame(), module=module)
        assert whole.personalized is not None
        assert whole.personalized.engine.round == 2
        again = tierfed.personalize("r", data=frame(), module=module, out="again")
        assert [r for r in again.rows if r.model] == [r for r in whole.personalized.rows if r.model]
        with pytest.raises(InputError, match=r"tierfed\.personalize\('r', data=…\)"):
            tierfed.personalize("r", "ditto", out="other")

    def test_nothing_moves_where_nothing_is_chosen(self) -> None:
        """T-40 for both stages together: the personal models are those that the training has left."""
        tables = {**TABLES, "personalize": {"mechanism": "ftl", "rounds": 1, "options": {"tune": "head", "depth": 0}}}
        result = tierfed.run(tables, data=frame(), module=net(), folder=False)
        assert result.personalized is not None
        for device in result.world.federation.devices:
            before, after = (r.personal_model(device).state_dict() for r in (result, result.personalized))
            assert all(bool((before[k] == after[k]).all()) for k in before)

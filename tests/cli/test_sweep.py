"""`tierfed sweep`: what is tried, what is found, and that a kill does not change it."""

import json
import statistics
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cli.shell import Shell, begin, kill, records, wait_for
from cli.test_commands import told
from tierfed.metrics import Row
from tierfed.objective import parse
from tierfed.report import summary
from tierfed.report.search import search as search_charts
from tierfed.sweep.space import grid, space, values

SHORT = ("--rounds", "1", "--no-report")
LR = ("--param", "algorithm.lr=log:0.001:0.9")


def trials(folder: Path) -> Any:
    return json.loads((folder / "trials.json").read_text())


def test_a_grid_of_all_combinations(shell: Shell) -> None:
    two = ("--param", "algorithm.lr=0.001,0.5", "--param", 'algorithm.name=["fedavg","fedprox"]')
    found = told(shell.good("sweep", "toy.toml", "--method", "grid", *two, *SHORT, "--jobs", "1", "--json"))
    assert found["folder"] == "runs/sweep-toy"
    tried = {(t["params"]["algorithm.lr"], t["params"]["algorithm.name"]) for t in found["trials"]}
    assert tried == {(lr, name) for lr in (0.001, 0.5) for name in ("fedavg", "fedprox")}
    assert [t["state"] for t in found["trials"]] == ["complete"] * 4
    best = [t["value"] for t in found["trials"]]
    assert best == sorted(best, reverse=True)
    config = tomllib.loads((shell.folder / found["config"]).read_text())
    params = found["best"]["params"]
    assert (config["algorithm"]["lr"], config["algorithm"]["name"]) == tuple(params.values())
    assert "out" not in config["run"]
    again = told(shell.good("run", found["config"], "--out", "again", "--no-report", "--json"))
    assert again["models"]["personal_pre"]["weighted"] == pytest.approx(found["best"]["value"])
    assert set(summary(shell.folder / "runs" / "sweep-toy")["runs"]) == {f"trial-00{i}" for i in range(4)}


def test_several_seeds(shell: Shell) -> None:
    """A trial is a run for each seed, judged by their mean; a report draws it, and best.toml repeats it."""
    search = ("sweep", "toy.toml", "--method", "grid", "--param", "algorithm.lr=0.001,0.5", "--seeds", "3,5")
    found = told(shell.good(*search, "--jobs", "1", "--rounds", "1", "--set", "eval.labels=false", "--json"))
    folder = shell.folder / "runs" / "sweep-toy"
    for t in found["trials"]:
        assert t["value"] == pytest.approx(sum(t["values"]) / 2)
        for seed, value in zip((3, 5), t["values"], strict=True):
            one = told(shell.good("report", f"runs/sweep-toy/{t['name']}-s{seed}", "--json"))
            assert one["models"]["personal_pre"]["weighted"] == pytest.approx(value)
    best = tomllib.loads((shell.folder / found["config"]).read_text())
    assert (best["grid"]["seeds"], best["run"]["seed"]) == ([3, 5], 3)
    text = (folder / "report.html").read_text("utf-8")
    assert "<h2>Search</h2>" in text
    first, _ = search_charts(folder, "personal_pre")
    assert first.figure["data"][0]["error_y"]["array"] == pytest.approx(
        [statistics.stdev(t["values"]) for t in sorted(found["trials"], key=lambda t: t["name"])], rel=1e-4
    )
    assert "each seed once" in shell.bad("sweep", "toy.toml", *LR, "--seeds", "1,1")
    assert "sweep.seeds to one of them" in shell.bad(
        "sweep", "toy.toml", *LR, "--seeds", "1,2", "--prune", "--jobs", "1"
    )


def test_killed_and_gone_on_with_it_is_the_same_search(shell: Shell) -> None:
    search = ("sweep", "toy.toml", *LR, "--trials", "4", "--jobs", "1", "--objective", "global/loss", *SHORT)
    whole = told(shell.good(*search, "--out", "whole", "--json"))
    assert whole["higher_is_better"] is False
    child = begin(shell.folder, *search, "--out", "half")
    wait_for(child, "trial-002: round 0")
    kill(child)
    shell.good("sweep", "half", "--no-report")
    assert trials(shell.folder / "half") == trials(shell.folder / "whole")
    for name in ("trial-002", "trial-003"):
        assert records(shell.folder / "half" / name) == records(shell.folder / "whole" / name)
    more = told(shell.good("sweep", "half", "--trials", "5", "--no-report", "--json"))
    assert len(more["trials"]) == 5
    assert "is a sweep; go on with it: tierfed sweep half" in shell.bad("resume", "half")
    assert "only --trials and --jobs" in shell.bad("sweep", "half", *LR)
    assert "holds another sweep" in shell.bad(*search[:2], "--param", "run.seed=int:0:5", "--out", "half", *SHORT)


def test_what_cannot_be_is_told_and_left_out(shell: Shell) -> None:
    two = ("--param", "data.batch=4,100000", "--param", "topology.fogs=0,3")
    out = shell.good(
        "sweep", "toy.toml", "--method", "grid", *two, *SHORT, "--jobs", "1", "--set", "topology.teams=auto"
    )
    assert "4 trials" in out
    assert "failed: " in out
    assert (shell.folder / "runs" / "sweep-toy" / "best.toml").exists()


def test_trials_that_fall_behind_are_ended(shell: Shell) -> None:
    """A grid from good to bad: with three trials known, those that follow are worse at round 1."""
    lrs = ("--param", "algorithm.lr=0.3,0.2,0.25,1e-6,1e-7", "--method", "grid", "--prune", "--jobs", "1")
    found = told(
        shell.good("sweep", "toy.toml", *lrs, "--objective", "global/loss", "--rounds", "3", "--no-report", "--json")
    )
    states = {t["params"]["algorithm.lr"]: (t["state"], t["why"]) for t in found["trials"]}
    assert [states[lr][0] for lr in (0.3, 0.2, 0.25)] == ["complete"] * 3
    assert states[1e-7] == states[1e-6] == ("pruned", "worse than the median at round 1")
    assert "one trial at a time; set sweep.jobs = 1" in shell.bad("sweep", "toy.toml", *LR, "--prune", "--jobs", "2")


SWEEP = """
[sweep]
method = "random"
trials = 2
jobs = 1
objective = "0.5*global + 0.5*personal_pre"

[sweep.params]
algorithm.lr = "log:0.01:0.3"
"model.options.hidden" = [[4], [8]]
"""


def test_a_search_in_the_config(shell: Shell) -> None:
    (shell.folder / "own.toml").write_text(shell.config.read_text() + SWEEP)
    found = told(shell.good("sweep", "own.toml", *SHORT, "--json"))
    assert found["objective"] == "0.5*global + 0.5*personal_pre"
    assert {len(t["params"]["model.options.hidden"]) for t in found["trials"]} == {1}
    assert all(0.01 <= t["params"]["algorithm.lr"] <= 0.3 for t in found["trials"])
    shell.good("run", "own.toml", "--out", "plain", *SHORT)  # a run leaves the search aside


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "a sweep needs something to choose from"),
        (("--param", "algorithm.lr"), "wanted KEY=VALUES"),
        (("--param", "lr=0.1,0.2"), "wanted a key of the config"),
        (("--param", "algorithm.lrr=0.1,0.2"), "did you mean 'lr'?"),
        (("--param", "algorithm.lr=lgo:0.1:0.2"), "no kind of values 'lgo'; did you mean 'log'?"),
        (("--param", "algorithm.lr=log:0:1"), "above 0"),
        (("--param", "algorithm.epochs=int:1:2.5"), "whole numbers"),
        (("--param", "algorithm.lr=float:2:1"), "LOW less than HIGH"),
        ((*LR, "--method", "grid"), "a grid needs values to count"),
        ((*LR, "--method", "gird"), "did you mean 'grid'?"),
        ((*LR, "--objective", "personl_pre"), "no model 'personl_pre'; did you mean 'personal_pre'?"),
        ((*LR, "--objective", "global/accurcy"), "no metric 'accurcy'; did you mean 'accuracy'?"),
        ((*LR, "--objective", "global +"), "cannot be read from '+'"),
        ((*LR, "--objective", "global + global/loss"), "more of one term is better and less of another"),
        ((*LR, "--objective", "link/bytes"), "did you mean"),
    ],
)
def test_bad_searches(shell: Shell, words: tuple[str, ...], message: str) -> None:
    assert message in shell.bad("sweep", "toy.toml", *words)


def test_an_objective_that_was_never_measured(shell: Shell) -> None:
    code, _, err = shell("sweep", "toy.toml", *LR, "--objective", "team", "--trials", "1", "--jobs", "1", *SHORT)
    assert code == 2
    assert "was not measured" in err


ROWS = [
    Row(1, "cloud", "cloud", "global", "test", "accuracy/weighted", 0.2),
    Row(2, "cloud", "cloud", "global", "test", "accuracy/weighted", 0.5),
    Row(2, "cloud", "cloud", "personal_pre", "test", "accuracy/weighted", 0.75),
    Row(2, "cloud", "cloud", "personal_pre", "test", "accuracy/worst", 0.25),
    Row(1, "link", "cloud-device", "", "", "up_bytes", 100.0),
    Row(2, "link", "cloud-device", "", "", "up_bytes", 200.0),
    Row(1, "cloud", "cloud", "", "", "clock_seconds", 3.0),
    Row(2, "cloud", "cloud", "", "", "clock_seconds", 7.0),
]


@pytest.mark.parametrize(
    ("text", "value", "sign"),
    [
        ("global", 0.5, 1),
        ("personal/accuracy/worst", 0.25, 1),
        ("0.5*global + 0.5*personal_pre", 0.625, 1),
        ("personal_pre - 1e-3*link/up_bytes", 0.75 - 0.3, 1),
        ("cloud/clock_seconds", 7.0, -1),
        ("-2*global", -1.0, -1),
    ],
)
def test_objectives(text: str, value: float, sign: int) -> None:
    goal = parse(text)
    assert goal.value(ROWS) == pytest.approx(value)
    assert goal.sign("accuracy") == sign
    assert goal.value(ROWS[4:]) is None or "global" not in text


def test_of_an_error_less_is_better() -> None:
    assert parse("personal_pre").sign("abs_error") == parse("global/accuracy/std").sign("accuracy") == -1
    assert parse("team").value(ROWS) is None


def test_spaces() -> None:
    assert values("a.b", "log:0.01:1:3").points("a.b") == [0.01, 0.1, 1.0]
    assert values("a.b", "float:0:1:0.25").points("a.b") == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert values("a.b", "int:1:7:3").points("a.b") == [1, 4, 7]
    assert values("a.b", "choice:x,2").choices == ("x", 2)
    points = grid(space({"a": {"b": [1, 2], "c": "u,v"}}))
    assert points == [{"a.b": b, "a.c": c} for b in (1, 2) for c in ("u", "v")]

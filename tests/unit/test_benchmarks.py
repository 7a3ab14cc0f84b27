"""benchmarks/peers.py: everybody trains the same, and what is said of it is complete. No test looks at a time."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from peers import FAITHFUL, PEERS, main, parsed, variants
from sides.check import difference
from sides.contestant import Contestant, ContestantError, installed, processes, resident_mb
from sides.job import ALGORITHMS, Job, written
from sides.network import flops, flops_per_sample, network

ROOT = Path(__file__).parents[2]
KEYS = {
    "work", "peer", "seconds_per_round", "tierfed_seconds_per_round", "ratio", "peak_fraction", "rss_mb",
    "startup_seconds", "cohort", "algorithm", "threads", "layout", "rounds",
}  # fmt: skip
TINY = Job(side="ours", work="M1", devices=5, cohort=4, samples=60)


@pytest.fixture(autouse=True)
def package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes that a test starts."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_line_for_every_work_and_peer(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--works M3 --peers loop --rounds 1 --turn 0 --devices 4 --cohorts 2 --samples 20 --folder --json"
    assert main(arguments.split()) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1
    line = lines[0]
    assert line.keys() >= KEYS
    assert [line[k] for k in ("work", "peer", "cohort", "threads", "folder")] == ["M3", "loop", 2, 1, True]
    assert line["ratio"] == line["seconds_per_round"] / line["tierfed_seconds_per_round"]
    assert line["startup_seconds"] > line["seconds_per_round"] > 0
    assert 0 < line["peak_fraction"] < 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_loop_and_tierfed_train_the_same(algorithm: str) -> None:
    job = replace(TINY, algorithm=algorithm)
    with written(job) as data:
        assert difference(replace(job, data=data)) < FAITHFUL


@pytest.mark.parametrize("work", ["M2", "M4"])
def test_loop_and_tierfed_train_the_same_convolutions(work: str) -> None:
    settings = ("run.threads=1",)
    job = replace(TINY, work=work, devices=2, cohort=1, samples=20, layout="nhwc", settings=settings)
    with written(job) as data:
        assert difference(replace(job, data=data)) < FAITHFUL


def test_the_check_finds_another_step_size() -> None:
    job = replace(TINY, work="M3", settings=("algorithm.lr=0.101",))
    with written(job) as data:
        assert difference(replace(job, data=data)) > 1e3 * FAITHFUL


def test_operations_of_a_step() -> None:
    """2 per multiply-add; twice in the first layer, three times in the others."""
    of = {work: flops_per_sample(Job(side="ours", work=work)) for work in ("M1", "M2", "M3", "M4")}
    assert of["M3"] == 2 * 2 * 784 * 10
    assert of["M1"] == 2 * 2 * 784 * 200 + 2 * 3 * (200 * 200 + 200 * 10)
    convolutions = 2 * 2 * 26 * 26 * 32 * 9 + 2 * 3 * 11 * 11 * 64 * 9 * 32
    assert of["M2"] == convolutions + 2 * 3 * (1600 * 512 + 512 * 10)
    convolutions = 2 * 2 * 400 * 32 * 27 + 2 * 3 * (100 * 16 * 9 * 32 + 25 * 8 * 9 * 16)
    assert of["M4"] == convolutions + 2 * 3 * (200 * 128 + 128 * 10)
    assert flops(Job(side="ours", work="M3")) == 10 * 600 * of["M3"]
    assert flops(Job(side="ours", work="M3", algorithm="ditto")) == 2 * 10 * 600 * of["M3"]


def test_networks_are_those_of_the_papers() -> None:
    assert sum(p.numel() for p in network(Job(side="loop", work="M4")).parameters()) == 33_698
    assert sum(p.numel() for p in network(Job(side="loop", work="M3")).parameters()) == 7_850


def test_ways_of_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peers.cores", lambda: 2)

    def ways(peer: str, work: str, *more: str, algorithm: str = "fedavg") -> list[tuple[int, str, bool]]:
        job = Job(side=peer, work=work, algorithm=algorithm)
        return [(v.threads, v.layout, v.bf16) for v in variants(job, parsed(more))]

    assert ways("loop", "M1") == ways("pfl", "M1") == ways("flower", "M2") == [(1, "nchw", False)]
    assert ways("pfl", "M2") == [(1, "nchw", False), (2, "nchw", False)]
    four = [(1, "nchw", False), (2, "nchw", False), (1, "nhwc", False), (2, "nhwc", False)]
    assert ways("loop", "M2") == four
    assert ways("loop", "M2", "--bf16") == four + [(t, way, True) for t, way, _ in four]
    assert ways("loop", "M4", "--threads", "3", "--layouts", "nhwc") == [(3, "nhwc", False)]
    assert ways("loop", "M1", algorithm="ditto") == [(1, "nchw", False)]
    assert ways("pfl", "M1", algorithm="ditto") == []


def test_who_is_not_installed_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = tmp_path / "python"
    nothing.write_text("#!/bin/sh\nexit 1\n")
    nothing.chmod(0o755)
    assert main(["--json", *(f"--python={peer}={nothing}" for peer in PEERS)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert [line.partition(":")[0] for line in lines if "not installed" in line] == list(PEERS)
    assert all('pip install "tierfed[bench]"' in line for line in lines if "not installed" in line)
    assert installed(sys.executable, "loop")


def test_a_contestant_that_dies_says_why() -> None:
    with (
        Contestant(replace(TINY, side="loop", threads=1, data="nowhere"), sys.executable) as dead,
        pytest.raises(ContestantError, match=r"loop has stopped: .*nowhere"),
    ):
        dead.round()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc")
def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    code = "import subprocess, sys; x = bytearray(40_000_000); subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        while len(found := processes(parent.pid)) < 2:
            assert parent.poll() is None
        assert set(found) <= set(processes(os.getpid()))
        assert 40 < resident_mb(parent.pid) < resident_mb(os.getpid())
        for pid in found:
            os.kill(pid, 9)


def test_commands_of_the_docs_parse() -> None:
    text = (ROOT / "docs/performance.md").read_text("utf-8")
    lines = re.findall(r"^python benchmarks/peers\.py([^#\n]*)", text, re.MULTILINE)
    assert len(lines) == 5
    assert [parsed(shlex.split(line)).rounds for line in lines] == [7] * 5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--works", "M9"], "'M9' is none of M1, M2, M3, M4"),
        (["--samples", "30"], "wanted a multiple of 20"),
        (["--device", "cuda"], "only the loop is compared there"),
        (["--cohorts", "200"], "there are 100 devices"),
        (["--cohorts", "5", "--algorithms", "permfl"], "wanted an even one"),
        (["--rounds", "0"], "wanted a number from 1 on"),
        (["--python", "flower"], "wanted a peer and its interpreter"),
        (["--python", "flower=not/here"], "'not/here' cannot be run"),
    ],
)
def test_wrong_options_say_what_is_wanted(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(wrong)
    assert said in capsys.readouterr().err

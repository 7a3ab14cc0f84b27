"""Runs that end before their end: kill -9, Ctrl-C, a full disk, a dead process of a grid; and how they go on."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cli.shell import Shell, begin, content, kill, process, records, wait_for, wait_for_round

ROUNDS = 9
JOBFED = (
    *(
        "-a",
        "jobfed",
        "--set",
        "algorithm.epochs=150",
        "--set",
        "algorithm.stopping=none",
        "--set",
        f"run.rounds={ROUNDS}",
    ),
    *("--set", "topology.participation=0.6", "--set", "algorithm.lr=0.02"),
)


@pytest.mark.parametrize(("every", "moments"), [(1, (0, 2, 4)), (3, (1, 5))])
def test_kill_9_leaves_the_same_bits(shell: Shell, every: int, moments: tuple[int, ...]) -> None:
    """Five processes in all are killed, each some time after it has told of a round and two rounds later at the latest:
    they wait there. So no process that is killed has come to its end.
    """
    settings = (*JOBFED, "--set", f"run.checkpoint_every={every}", "--no-report")
    shell.good("run", "toy.toml", *settings, "--out", "whole")
    rng, committed = np.random.default_rng([7, every]), []
    child = begin(shell.folder, "run", "toy.toml", *settings, "--out", "killed")
    for number, moment in enumerate(moments):
        if number:
            child = begin(shell.folder, "resume", "killed", "--no-report")
        told = wait_for_round(child, moment)
        kill(child, after_seconds=float(rng.uniform(0, 0.15)))
        committed.append(len([k for k in records(shell.folder / "killed") if k.startswith(b"log/")]) - 1)
        assert told - every < committed[-1] <= told + 2
    assert committed[-1] < ROUNDS
    assert committed == sorted(committed)
    shell.good("resume", "killed", "--no-report")
    whole, killed = records(shell.folder / "whole"), records(shell.folder / "killed")
    assert killed.keys() == whole.keys()
    assert [k for k in whole if killed[k] != whole[k]] == []
    metrics = [pq.read_table(shell.folder / run / "metrics.parquet") for run in ("whole", "killed")]
    assert metrics[0].num_rows > 100
    assert metrics[0].equals(metrics[1])
    assert (b"regroup" in b"".join(whole[k] for k in whole if k.startswith(b"log/"))) is True


def test_killed_before_the_first_commit(shell: Shell) -> None:
    """The config is there, the state is not: as if the process had died between the two."""
    shell.good("run", "toy.toml", "--out", "whole", "--no-report")
    (shell.folder / "r").mkdir()
    (shell.folder / "r" / "config.toml").write_bytes((shell.folder / "whole" / "config.toml").read_bytes())
    assert "all rounds done" in shell.good("resume", "r", "--no-report")
    assert records(shell.folder / "r") == records(shell.folder / "whole")
    assert (shell.folder / "r" / "devices.parquet").exists()


def test_lost_exports_come_back_from_the_store(shell: Shell) -> None:
    shell.good("run", "toy.toml", "--out", "r", "--no-report")
    folder = shell.folder / "r"
    before = pq.read_table(folder / "metrics.parquet")
    devices = pq.read_table(folder / "devices.parquet")
    for name in ("metrics.parquet", "events.jsonl", "devices.parquet"):
        (folder / name).unlink()
    code, _, err = shell("resume", "r", "--no-report")
    assert code == 0
    assert err == "r is complete: there was nothing left to train\n"
    assert pq.read_table(folder / "metrics.parquet").equals(before)
    assert pq.read_table(folder / "devices.parquet").equals(devices)
    assert '"event": "start"' in (folder / "events.jsonl").read_text()


def test_ctrl_c(shell: Shell) -> None:
    settings = (*JOBFED, "--no-report")
    child = begin(shell.folder, "run", "toy.toml", *settings, "--out", "r")
    wait_for(child, f"round 2/{ROUNDS}")
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=250)
    assert child.returncode == 130
    assert err == "stopped; go on with: tierfed resume r\n"
    rounds = set(pq.read_table(shell.folder / "r" / "metrics.parquet")["round"].to_pylist())
    assert 2 in rounds
    assert ROUNDS not in rounds
    assert len([k for k in records(shell.folder / "r") if k.startswith(b"log/")]) == max(rounds) + 1
    assert "all rounds done" in shell.good("resume", "r", "--no-report")
    shell.good("run", "toy.toml", *settings, "--out", "whole")
    assert records(shell.folder / "r") == records(shell.folder / "whole")


def test_ctrl_c_before_anything_was_written(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(config: object, *rest: object, **more: object) -> None:
        raise KeyboardInterrupt

    before = content(shell.folder)
    monkeypatch.setattr("tierfed.loop.prepare", pressed)
    assert shell("run", "toy.toml", "--out", "r") == (130, "", "stopped; nothing was written\n")
    assert content(shell.folder) == before


@pytest.mark.parametrize("size", [500, 6000])
def test_disk_full_at_the_start(shell: Shell, size: int) -> None:
    """500 bytes are too few for the config, 6000 for the state."""
    before = content(shell.folder)
    done = process(shell.folder, "run", "toy.toml", "--out", "r", file_size=size)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to r")
    assert done.stderr.count("\n") == 1
    assert content(shell.folder) == before


def test_disk_full_in_the_middle(shell: Shell) -> None:
    settings = ("--set", "run.rounds=30", "--no-report")
    shell.good("run", "toy.toml", "--set", "run.rounds=3", "--no-report", "--out", "short")
    shell.good("run", "toy.toml", *settings, "--out", "whole")
    small, large = ((shell.folder / r / "state" / "data.mdb").stat().st_size for r in ("short", "whole"))
    assert large > small + 8192
    limit = (small + large) // 2
    done = process(shell.folder, "run", "toy.toml", *settings, "--out", "r", file_size=limit)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to r/state")
    assert "tierfed resume" in done.stderr
    assert done.stderr.count("\n") == 1
    assert 0 < len([k for k in records(shell.folder / "r") if k.startswith(b"log/")]) < 31
    assert "all rounds done" in shell.good("resume", "r", "--no-report")
    assert records(shell.folder / "r") == records(shell.folder / "whole")


def _workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


HELD = """
import time
from pathlib import Path

from tierfed.pool import _Parent

computed = 0


def loss(out, y):
    global computed
    computed += 1
    while computed > 12 and Path("hold").exists() and not (_Parent.stop and _Parent.stop.is_set()):
        time.sleep(0.02)
    return -out.log_softmax(1).gather(1, y[:, None])[:, 0]
"""


def test_a_grid_that_is_disturbed_three_times(shell: Shell) -> None:
    """A process of it dies, Ctrl-C, kill -9: each time it goes on, and every run ends with the same bits.

    While `hold` exists a process of the grid computes 12 losses, which is two rounds of twelve, and waits until the
    grid has heard of Ctrl-C: no run comes to its end before the grid is disturbed, however slow this process is.
    """
    (shell.folder / "held.py").write_text(HELD)
    grid = (
        *("-a", "fedavg,local", "--seeds", "0,1", "--rounds", "12", "--no-report", "--set", "model.loss=held:loss"),
        *("--set", "engine.kernel=vmap"),
    )
    shell.good("run", "toy.toml", *grid, "--set", "run.jobs=1", "--out", "whole")

    (shell.folder / "hold").touch()
    child = begin(shell.folder, "run", "toy.toml", *grid, "--set", "run.jobs=2", "--out", "g")
    wait_for(child, "round 1/12")
    os.kill(_workers(child.pid)[0], signal.SIGKILL)
    _, err = child.communicate(timeout=250)
    assert child.returncode == 2
    assert err.startswith("error: a process died")
    assert "`tierfed resume g` goes on" in err
    assert err.count("\n") == 1

    child = begin(shell.folder, "resume", "g", "--no-report")
    wait_for(child, ": round ")
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=250)
    assert child.returncode == 130
    assert err == "stopped; go on with: tierfed resume g\n"

    child = begin(shell.folder, "resume", "g", "--no-report")
    wait_for(child, ": round ")
    kill(child)  # its workers must not stay behind: they hold the pipe that this waits for
    assert not list((shell.folder / "g").glob("local-s*/metrics.parquet"))
    _wait_until_free(shell.folder / "g")
    (shell.folder / "hold").unlink()

    (shell.folder / "g" / "grid.json").unlink()  # as if it had not been written yet
    (shell.folder / "g" / "local-s1").mkdir(exist_ok=True)  # as if it had just been made
    config = shell.folder / "g" / "config.toml"
    config.write_text(config.read_text().replace("jobs = 2", "jobs = 1"))
    shell.good("resume", "g", "--no-report")
    for name in ("fedavg-s0", "fedavg-s1", "local-s0", "local-s1"):
        assert records(shell.folder / "g" / name) == records(shell.folder / "whole" / name), name


def _wait_until_free(grid: Path) -> None:
    """Until the killed processes are gone, and their locks with them."""
    import fcntl

    for path in grid.glob("*/state/process.lock"):
        with path.open("ab") as file:
            for _ in range(100):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05)
            else:
                raise AssertionError(f"{path} is still locked")


def test_bad_input_inside_a_process_of_a_grid(shell: Shell) -> None:
    """One member's checkpoint is damaged: the others end, the message names the member."""
    shell.good(
        "run", "toy.toml", "-a", "fedavg,local", "--rounds", "2", "--out", "g", "--set", "run.jobs=1", "--no-report"
    )
    data = shell.folder / "g" / "local-s0" / "state" / "data.mdb"
    data.write_bytes(data.read_bytes()[:5000])
    config = shell.folder / "g" / "config.toml"
    config.write_text(config.read_text().replace("jobs = 1", "jobs = 2"))
    code, _, err = shell("resume", "g")
    assert code == 2
    assert err.startswith("error: local-s0: the checkpoint in g/local-s0/state is damaged")
    assert err.count("\n") == 1

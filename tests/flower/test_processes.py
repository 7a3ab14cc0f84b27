"""The example app on real processes of Flower, on loopback with telemetry off: the run of a simulation."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower has an environment of its own: make test-flower")

import tierfed
from tierfed.flower.memory import InFolder
from tierfed.testing.toy import gap

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SECONDS = 240  # after which something is wrong, on a machine however loaded


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens on port {port}")


@contextmanager
def process(log: Path, environment: dict[str, str], *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of Flower and those that it begins, which end with the block."""
    with log.open("wb") as file:
        began = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=log.parent,
            start_new_session=True,
        )
        try:
            yield began
        finally:
            with suppress(ProcessLookupError):
                os.killpg(began.pid, signal.SIGKILL)
            began.wait()


def test_the_example_runs_on_flower_s_processes(tmp_path: Path) -> None:
    """SCAFFOLD on three supernodes, two rounds. One keeps its private state in a folder, two in Flower's memory."""
    app, home, out = tmp_path / "app", tmp_path / "home", tmp_path / "run"
    shutil.copytree(ROOT / "examples" / "flower_app", app)
    toml = app / "flower_app" / "run.toml"
    text = toml.read_text("utf-8").replace("every = 5", "every = 5\ndevices = 1\npost = false")
    toml.write_text(f'{text}\n[run]\ndtype = "float64"\nthreads = 1\n', "utf-8")
    port, *ports = free_ports(4)
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n', "utf-8"
    )
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    overrides = f'run.rounds=2 run.out="{out}"'
    config = tierfed.load_config(
        toml, {"run.rounds": 2, "algorithm.name": "scaffold", "algorithm.lr": 0.1, "engine.name": "serial"}
    )
    names = ["subject-03-left", "subject-05-right", "subject-06-left"]
    nodes = [f'device="{names[0]}" state="{tmp_path / "state"}"', f'device="{names[1]}"', "partition-id=2"]
    with ExitStack() as stack:
        link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        link += ["--disable-runtime-dependency-installation"]
        wait_for(port, stack.enter_context(process(tmp_path / "link.log", environment, *link)))
        for i, (node, own) in enumerate(zip(nodes, ports, strict=True)):
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1"]
            command += ["--port", str(own), "--node-config", node]
            stack.enter_context(process(tmp_path / f"node{i}.log", environment, *command))
        flwr = [str(BIN / "flwr"), "run", str(app), "here", "--stream", "--run-config", overrides]
        said = subprocess.run(
            flwr, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    logs = "\n".join(p.read_text("utf-8", "replace") for p in sorted(tmp_path.glob("*.log")))
    assert said.returncode == 0, f"{said.stdout}\n{said.stderr}\n{logs}"
    assert (out / "metrics.parquet").exists(), f"{said.stdout}\n{said.stderr}\n{logs}"
    wanted = tierfed.run(config, folder=False)
    assert wanted.world.federation.devices == tuple(names)
    with tierfed.open_run(out) as found:
        assert found.engine.round == 2
        assert gap(found.engine.kept(0, 0), wanted.engine.kept(0, 0)) <= 1e-10
        assert [r[:-1] for r in found.rows] == [r[:-1] for r in wanted.rows]
        assert max(abs(a.value - b.value) for a, b in zip(found.rows, wanted.rows, strict=True)) <= 1e-10
        visit = InFolder(tmp_path / "state", names[0]).load(found.engine.store.meta["token"])
    assert visit is not None
    assert gap(visit.own, wanted.engine.own(0)) <= 1e-10

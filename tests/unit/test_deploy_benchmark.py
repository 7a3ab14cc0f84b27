"""benchmarks/deploy.py: what it measures is real. No test looks at a time."""

import re
import shlex
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
from sides.echo import issue_two, link, serving

from tierfed.deploy.names import tree_nodes
from tierfed.deploy.process import world_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deploy() -> ModuleType:
    """By its path: `deploy` is a package of tests."""
    spec = util.spec_from_file_location("benchmark_of_deploy", ROOT / "benchmarks/deploy.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_round_trips_of_all_ways(deploy: ModuleType, tmp_path: Path) -> None:
    keys, port = issue_two(tmp_path / "keys"), deploy.free_port(4)
    ports = list(range(port, port + 4))
    with serving(keys, ports):
        found = link(keys, ports, {"4 kB": 4000}, turns=1, least=0.0)
    ways = [("grpc", False), ("tierfed stream", False), ("tierfed message", False)]
    assert [(one.kind, one.tls) for one in found] == [*ways, *((kind, True) for kind, _ in ways)]
    assert [one.ratio for one in found if one.kind == "grpc"] == [1.0, 1.0]
    for one in found:
        assert one.mb_per_second == pytest.approx(2 * 4000 / 1e3 / one.milliseconds)


def test_the_run_of_the_benchmark_can_be_deployed(deploy: ModuleType, tmp_path: Path) -> None:
    config = deploy.live_config(tmp_path, 12, 4, 20, 7400)
    nodes = deploy.certified(config, tmp_path)
    assert [len([n for n in nodes if n.tier == t]) for t in ("cloud", "fog", "device")] == [1, 4, 12]
    world = world_of(config)
    assert nodes == tree_nodes(world.topology, world.federation.devices)
    assert world.plan.samples.tolist() == [20] * 12
    assert sorted(p.name for p in (tmp_path / "keys" / "nodes").iterdir()) == sorted(n.name for n in nodes)


def test_rounds_are_read_from_the_lines_of_the_cloud(deploy: ModuleType) -> None:
    lines = ["run: round 0/20  global 0.1", "waiting", "run: round 1/20  global 0.2", "run: round 12/20"]
    assert list(deploy.rounds_of(lines)) == [1, 12]
    assert deploy.rate([3.0, 4.0, 4.5, 6.0]) == 1.0


def test_commands_of_the_docs_parse(deploy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/deploy.md").read_text("utf-8")
    lines = re.findall(r"^python benchmarks/deploy\.py([^#\n]*)", text, re.MULTILINE)
    assert [deploy.parsed(shlex.split(line)).live for line in lines] == [100]
    with pytest.raises(SystemExit):
        deploy.parsed(["--parts", "link,speed"])
    assert "speed: wanted some of link, idle, live" in capsys.readouterr().err

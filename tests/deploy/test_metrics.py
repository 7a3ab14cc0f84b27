"""The endpoint for Prometheus: on request alone, on this machine alone unless told, with the numbers of the nodes."""

import os
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.processes import free_ports
from tierfed.deploy.household import Household, Refusal
from tierfed.deploy.status import Status, metrics, serve_metrics
from tierfed.deployment import DeploySettings
from tierfed.errors import InputError


def status(name: str, **changes: object) -> Status:
    base = {"node": name, "pid": os.getpid(), "at": time.time(), "round": 3, "joined": True, "children": (1, 2)}
    return Status(**{**base, "busy_seconds": 1.5, **changes})  # type: ignore[arg-type]


def fetched(address: str) -> dict[tuple[str, str], float]:
    """Values by name of the metric and node."""
    with urlopen(f"http://{address}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {(s.name, s.labels["node"]): s.value for f in text_string_to_metric_families(text) for s in f.samples}


def test_numbers_of_all_nodes_on_loopback() -> None:
    house = Household(DeploySettings(), lambda peer, hello: Refusal("nobody"), str)
    house.counters.bytes_in, house.counters.refused = 1234, 5
    registry = metrics(lambda: [(status("fog-0"), house), (status("ann", joined=False, children=(0, 0)), None)])
    port = free_ports(1)
    end = serve_metrics(str(port), registry)
    try:
        found = fetched(f"127.0.0.1:{port}")
        assert found["tierfed_round", "fog-0"] == 3
        assert (found["tierfed_joined", "fog-0"], found["tierfed_joined", "ann"]) == (1, 0)
        assert found["tierfed_children", "fog-0"] == 1
        assert found["tierfed_children_expected", "fog-0"] == 2
        assert found["tierfed_busy_seconds", "ann"] == 1.5
        assert (found["tierfed_bytes_in_total", "fog-0"], found["tierfed_refused_total", "fog-0"]) == (1234, 5)
        assert ("tierfed_bytes_in_total", "ann") not in found  # a device has no children
        house.counters.refused += 1
        assert fetched(f"127.0.0.1:{port}")["tierfed_refused_total", "fog-0"] == 6
        with pytest.raises(URLError):
            fetched(f"127.0.0.2:{port}")  # a port alone is on 127.0.0.1 alone
        with pytest.raises(InputError, match="cannot listen at"):
            serve_metrics(f"127.0.0.1:{port}", registry)
    finally:
        end()
    with pytest.raises(URLError):
        fetched(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["here", "127.0.0.1:", "127.0.0.1:http"])
def test_no_address(address: str) -> None:
    with pytest.raises(InputError, match="wanted host:port"):
        serve_metrics(address, metrics(list))


def test_off_by_default() -> None:
    assert DeploySettings().metrics == ""

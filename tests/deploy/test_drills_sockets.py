"""Links that break, hang or are flooded, over gRPC on loopback; each run ends with the model of the simulation."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.drills import DEVICES, FOGS, Pass, drill, is_ask, is_reply, knock, logged, small
from deploy.processes import free_ports
from deploy.sockets import Proxy, begun, ended
from deploy.test_drills_messages import as_simulated
from tierfed.deploy.frame import pack
from tierfed.deploy.secure import insecure

MANY, MOST = 2000, 256  # connections; of them some may stay for a while


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the two ends of all connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 3 * MANY:
        pytest.skip(f"a process may have {before[1]} open files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 3 * MANY), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _once(round_: int, do: Callable[[], None]) -> Pass:
    """Does something when the first question or reply of a round passes."""
    done = list[bool]()

    def pass_on(frame: bytes) -> list[bytes]:
        if not done and (is_ask(frame, round_) or is_reply(frame, round_)):
            done.append(True)
            do()
        return [frame]

    return pass_on


def test_links(tmp_path: Path, log: pytest.LogCaptureFixture, many_files: None) -> None:
    """One run of five rounds, and in each of them something else is wrong; everybody takes part in all of them."""
    port = free_ports(1 + FOGS)
    deploy = {"port": port, "keepalive_seconds": 1.0, "retry_seconds": 0.5, "max_message_bytes": 100_000}
    wanted = small(tmp_path, rounds=5, topology={"team_rounds": 2}, deploy=deploy)
    above, below = Proxy(port), Proxy(port + 1)
    try:
        with drill(
            wanted,
            stops=[0, 1, 2, 3],
            network=lambda name: (insecure(wanted.deploy, f"127.0.0.1:{port}").transport, None),
            parents={"fog-0": above.address, "0": below.address},
        ) as one:
            one.steps.after(0)
            one.taps["2"].up = _once(1, above.cut)  # in a team round of fog-0, whose devices are still there
            one.steps.go()
            logged(log, "fog-0 is gone")
            assert one.house("fog-0").present() == {0, 2}
            logged(log, "fog-0: no connection", times=2)
            above.heal()
            one.steps.after(1)

            one.taps["0"].down = _once(2, below.hold)  # neither end hears anything of the other
            one.steps.go()
            logged(log, "0: no connection")
            logged(log, "0 has joined", times=2)
            one.steps.after(2)

            strangers = [begun(port + 1) for _ in range(MANY)]  # calls in which nobody says who he is
            refused = "refused a connection from ", "…has ended before it said who it is"
            logged(log, *refused, times=MANY - MOST)
            one.steps.after(3)
            assert len(one.house("fog-0").present()) == DEVICES // FOGS
            for stranger in strangers:
                stranger.close()

            longest = begun(port + 2, b"\0\xff\xff\xff\xff" + b"x" * 1000)  # a message of 4 GiB, it says
            assert b"larger than max" in ended(longest)
            longest.close()
            transport = one.nodes["1"].member.transport
            large = knock(transport, f"127.0.0.1:{port + 2}", pack({"kind": "hello", "pad": "x" * 200_000}))
            assert large.heard == []
            as_simulated(one)
    finally:
        above.close()
        below.close()

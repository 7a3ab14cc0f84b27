"""What a parent may ask for beyond what it needs, and what it takes no more of: over-selection and the norm bound."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deploy.drills import SECONDS, Absent, Place, drill, is_reply, logged, simulated, small
from deploy.harness import distance
from deploy.test_drills_messages import FLOAT64, LEVEL, _ups, altered, as_simulated
from tierfed.deploy.schema import check_norm
from tierfed.errors import InputError

ROUNDS = 3


def test_the_first_replies_are_taken(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Each fog wants one of its two devices and asks both. The later one counts as one whose reply was lost; what it
    has said comes after the round, and is refused.
    """
    wanted = small(
        tmp_path,
        rounds=ROUNDS,
        topology={"team_rounds": 1, "participation": [1.0, 1]},
        deploy={"over_selection": [0.0, 1.0], "quorum": 1.0},
        eval={"every": 100},
    )
    with drill(wanted, stops=[0, ROUNDS]) as one:
        one.steps.after(0)
        trained = {(r, late): threading.Event() for r in range(1, ROUNDS + 1) for late in ("0", "1")}
        held: dict[str, list[bytes]] = {"0": [], "1": []}

        def later(name: str) -> Callable[[bytes], list[bytes]]:
            def up(frame: bytes) -> list[bytes]:
                for r in range(1, ROUNDS + 1):
                    if is_reply(frame, r):
                        held[name].append(frame)
                        trained[r, name].set()
                        return []
                return [frame]

            return up

        def first(other: str) -> Callable[[bytes], list[bytes]]:
            def up(frame: bytes) -> list[bytes]:
                for r in range(1, ROUNDS + 1):
                    if is_reply(frame, r):
                        assert trained[r, other].wait(SECONDS)
                return [frame]

            return up

        for name, sibling in (("0", "2"), ("1", "3")):
            one.taps[name].up, one.taps[sibling].up = later(name), first(name)
        one.steps.after(ROUNDS)
        for name in held:
            stream = one.taps[name].now
            assert stream is not None
            stream.send(held[name][0])
            logged(log, f"refused reply of {name} for round 0: nobody waits for it any more")
        kept = one.kept()
    lost: tuple[Place, ...] = tuple((r, 0, LEVEL, i) for r in range(ROUNDS) for i in (0, 1))
    everybody = small(tmp_path, rounds=ROUNDS, topology={"team_rounds": 1}, eval={"every": 100})
    assert distance(kept, simulated(everybody, Absent(unheard=lost))) < FLOAT64
    assert "goes on without" not in log.text  # nobody is missed


def test_a_leap_is_refused(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Of a device in the wrong hands; its genuine replies are within the bound."""
    wanted = small(tmp_path, rounds=3, topology={"team_rounds": 1}, deploy={"norm_bound": 100.0}, eval={"every": 100})
    with drill(wanted, stops=[0]) as one:
        one.steps.after(0)
        leap = _ups(lambda t: t + 1000.0)
        one.taps["0"].up = lambda frame: [altered(frame, leap) if is_reply(frame, 2) else frame]
        as_simulated(one, unheard=((1, 0, LEVEL, 0),))
        assert one.house("fog-0").counters.rejected == 1
    logged(log, "…more than deploy.norm_bound = 100")
    assert "refused the reply of 0: it changes the model by " in log.text


def test_the_norm_of_a_change() -> None:
    """|(3, 4)| = 5; what was not sent counts whole: |(3, 4, 12)| = 13; counters do not count."""
    sent = {"w": torch.tensor([1.0, 1.0]), "n": torch.tensor(7)}
    reply = {"w": torch.tensor([4.0, 5.0]), "n": torch.tensor(900)}
    check_norm(sent, reply, 5.0)
    with pytest.raises(InputError, match=r"it changes the model by 5, more than deploy.norm_bound = 4\.99"):
        check_norm(sent, reply, 4.99)
    check_norm(sent, {**reply, "more": torch.tensor([12.0])}, 13.0)
    with pytest.raises(InputError, match="by 13, more than"):
        check_norm(sent, {**reply, "more": torch.tensor([12.0])}, 12.99)

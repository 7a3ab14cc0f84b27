"""tierfed and the plain loop train the same: the same devices, the same batches, in float64."""

from collections.abc import Iterator
from dataclasses import replace

import torch

import tierfed
from sides.job import Job, pool
from sides.loop import Loop, Visit
from sides.network import network
from sides.ours import config, dataset

ROUNDS = 3  # some devices are visited again, so that what they keep counts too


def difference(job: Job) -> float:
    """The largest difference of the global models after the first and after the last of `ROUNDS` rounds, and of the
    personal ones where both have them.
    """
    job = replace(job, double=True, folder=None)
    loop, worst = Loop(job, *_pool(job)), 0.0
    for rounds in (1, ROUNDS):
        result = tierfed.run(config(job, rounds), data=dataset(job), module=network(job), folder=False)
        while loop.rounds < rounds:
            loop.round(_polled(result, loop.rounds))
        worst = max(worst, _apart(result.global_model().state_dict(), dict(zip(loop.keys, loop.model, strict=True))))
        if job.algorithm in ("ditto", "permfl"):
            for i, own in loop.kept.items():
                personal = result.personal_model(f"device-{i}").state_dict()
                worst = max(worst, _apart(personal, dict(zip(loop.keys, own, strict=True))))
    return worst


def _pool(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = pool(job)
    return torch.from_numpy(x).double(), torch.from_numpy(y)


def _polled(result: tierfed.Result, round_: int) -> list[list[Visit]]:
    """Whom tierfed polled in a round, and the batches of each visit."""
    topology, plan, algorithm = result.world.topology, result.world.plan, result.world.algorithm

    def visits(depth: int, node: int) -> Iterator[list[Visit]]:
        kids = topology.poll(depth, node, round_, 0)
        if depth < topology.depth - 1:
            for kid in kids.tolist():
                yield from visits(depth + 1, kid)
            return
        steps = [plan.steps(i, algorithm) for i in kids.tolist()]
        yield [
            (i, list(plan.rows(i, algorithm.passes, s, round_, 0))) for i, s in zip(kids.tolist(), steps, strict=True)
        ]

    return list(visits(0, 0))


def _apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((v - a[k]).abs().max()) for k, v in b.items())

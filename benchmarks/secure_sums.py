"""What a secure sum costs a child and its parent: seconds and bytes, at 200,000 numbers with 10 and 100 children.

    python benchmarks/secure_sums.py [--numbers 200000] [--children 10 100] [--lost 0.1]

All children run in this process, one after the other; seconds are those of one of them, the median over all, on one
thread. `lost` of the children say nothing any more after they have shared their secrets: the worst time to go.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from tierfed.privacy import secagg
from tierfed.privacy.fixedpoint import agreed, summed, to_words
from tierfed.privacy.secagg import Terms

T = TypeVar("T")


def timed(call: Callable[[], T], into: list[float]) -> T:
    """What the call gives; its seconds go into the list."""
    begin = time.perf_counter()
    out = call()
    into.append(time.perf_counter() - begin)
    return out


def measure(children: int, numbers: int, lost: float, threshold: float = 2 / 3) -> dict[str, Any]:
    """One sum. :raises AssertionError: it is not the plain one"""
    fixed = agreed(32, 8.0, children, children)
    terms = Terms(fixed=fixed, threshold=secagg.threshold_of(threshold, children), context=b"benchmark")
    values = np.random.default_rng(0).standard_normal(numbers).clip(-8, 8)
    words = to_words(values, 1, fixed)
    ids, gone = list(range(children)), set(range(1, 1 + round(lost * children)))
    steps: dict[str, list[float]] = {name: [] for name in ("keys", "shares", "masked", "reveal")}
    begun = {i: timed(lambda i=i: secagg.begin(i, terms), steps["keys"]) for i in ids}
    roster = secagg.roster_of(terms, {i: keys for i, (_, keys) in begun.items()})
    shared = {i: timed(lambda i=i: secagg.share(begun[i][0], roster), steps["shares"]) for i in ids}
    parcels = secagg.routed(terms, roster, {i: sealed for i, (_, sealed) in shared.items()})
    heard = [i for i in ids if i not in gone]
    masked, said = {}, {}
    for i in heard:
        masked[i], said[i] = timed(lambda i=i: secagg.masked(shared[i][0], parcels[i], words), steps["masked"])
    there = frozenset(heard)
    revealed = {i: timed(lambda i=i: secagg.reveal(masked[i], there), steps["reveal"]) for i in heard}
    parent: list[float] = []
    total = timed(lambda: secagg.total(terms, roster, frozenset(ids), said, revealed), parent)
    assert np.array_equal(total, summed([words] * len(heard), fixed)), "the sum is not exact"
    each = {name: statistics.median(seconds) for name, seconds in steps.items()}
    down, up = secagg.message_bytes(children, numbers, fixed)
    return {
        "children": children,
        "numbers": numbers,
        "lost": len(gone),
        "threshold": terms.threshold,
        "child_seconds": {**{k: round(v, 5) for k, v in each.items()}, "all": round(sum(each.values()), 4)},
        "parent_seconds": round(parent[0], 3),
        "child_down_bytes": down,
        "child_up_bytes": up,
        "plain_up_bytes": 4 * numbers,
        "largest_error_of_the_mean": fixed.error(len(heard), len(heard)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", type=int, default=200_000)
    parser.add_argument("--children", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--lost", type=float, nargs="+", default=[0.0, 0.1])
    given = parser.parse_args()
    print(json.dumps({"cores": os.cpu_count()}))
    for children in given.children:
        for lost in given.lost:
            print(json.dumps(measure(children, given.numbers, lost)), flush=True)


if __name__ == "__main__":
    main()

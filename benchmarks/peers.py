"""Whole rounds of tierfed and of its peers, in turns: python benchmarks/peers.py --works M1,M3 --peers loop

100 devices with 600 random samples each, 10 of them per round, one epoch of batches of 20, SGD 0.1. M1 is the
perceptron 784-200-BN-200-10, M2 a network of two convolutions with batch norm on 1x28x28, M3 logistic regression
784-10, M4 PerFit's network of three convolutions on 3x20x20. Every contestant is a process of its own that trains one
round when it is told to: rounds of tierfed for a second, then of the peer, then of tierfed again; nobody trains while
another is timed. Nothing is evaluated. docs/performance.md says what the numbers mean.

`--device cuda` has tierfed and the loop train on the same GPU.

Peers: `loop` (one nn.Module, torch.optim.SGD, average), `flower` (flwr over Ray), `pfl`, `fedjax`. The last three:
pip install "tierfed[bench]", in an environment of their own where their versions do not go with others.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table
from sides.check import ROUNDS, difference
from sides.contestant import Contestant, ContestantError, installed
from sides.job import ALGORITHMS, CONVOLUTIONAL, NORMED, SHAPES, Job, cores, written
from sides.network import flops

PEERS = ("loop", "flower", "pfl", "fedjax")
FAITHFUL = 1e-10  # the largest difference in float64 that rounding may make


def main(arguments: Sequence[str] | None = None) -> int:
    """What the command line asks for; 1 where a contestant has failed, or trains something else."""
    options = parsed(arguments)
    return _check(options) if options.check else _timed(options)


def _timed(options: argparse.Namespace) -> int:
    """Rounds of tierfed and every peer in turns; 1 where one has failed, 130 after Ctrl-C."""
    said, lines, status = Console(stderr=True, soft_wrap=True), list[dict[str, Any]](), 0
    pythons = dict.fromkeys(("ours", *PEERS), sys.executable) | dict(options.python)
    peers = [peer for peer in options.peers if installed(pythons[peer], peer)]
    for peer in options.peers:
        if peer not in peers:
            hint = f'pip install "tierfed[bench]", or --python {peer}=PATH of an interpreter that has it'
            said.print(f"{peer}: left out, it is not installed; {hint}", markup=False, highlight=False)
    if not peers:
        return 0
    best = 0.0
    try:
        with (
            said.status("starting") as shown,
            Contestant(Job(side="peak", work="M3", device=options.device), pythons["ours"]) as machine,
        ):
            for ours, peer in _pairs(options, peers):
                title = f"{peer.work} {peer.algorithm}, {peer.cohort} devices: tierfed and {peer.side}"

                def tell(text: str, title: str = title) -> None:
                    shown.update(f"{title}, {text}")

                try:
                    tell("what the machine can do")
                    best = max(best, machine.ask("flops_per_second"))
                    lines.append(race(ours, peer, pythons, options, best, tell))
                except ContestantError as err:
                    said.print(f"{title}: {err}", markup=False, highlight=False)
                    status = 1
                    continue
                if options.json:
                    print(json.dumps(lines[-1]), flush=True)
    except KeyboardInterrupt:
        status = 130
    if lines and not options.json:
        Console(width=None if sys.stdout.isatty() else 120).print(_table(lines))
    return status


def _pairs(options: argparse.Namespace, peers: Sequence[str]) -> Iterator[tuple[Job, Job]]:
    """tierfed and a peer that train the same, with their samples on disk."""
    for ours, jobs in _work(options, peers):
        with written(ours) as data:
            for job in jobs:
                yield replace(ours, data=data), replace(job, data=data)


def race(
    ours: Job,
    peer: Job,
    pythons: dict[str, str],
    options: argparse.Namespace,
    best: float,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Rounds of two contestants in turns; what is printed of them.

    :param best: floating-point operations per second that the machine can do
    :param tell: is told what goes on
    :raises ContestantError: one of them has died
    """
    with ExitStack() as stack:
        if options.folder:
            ours = replace(ours, folder=str(Path(stack.enter_context(TemporaryDirectory())) / "run"))
        tell("starting")
        two = []
        for job in (ours, peer):
            two.append(stack.enter_context(Contestant(job, pythons[job.side])))
            two[-1].round()
        seconds: tuple[list[float], list[float]] = ([], [])
        for r in range(options.rounds):
            tell(f"turn {r + 1} of {options.rounds}")
            for contestant, taken in zip(two, seconds, strict=True):
                taken.append(contestant.turn(options.turn))
        mine, theirs = (statistics.median(taken) for taken in seconds)
        return {
            "work": peer.work,
            "peer": peer.side,
            "algorithm": peer.algorithm,
            "cohort": peer.cohort,
            "threads": peer.threads,
            "layout": _layout(peer),
            "device": peer.device,
            "precision": "bfloat16" if peer.bf16 else "float32",
            "folder": options.folder,
            "rounds": options.rounds,
            "seconds_per_round": theirs,
            "tierfed_seconds_per_round": mine,
            "ratio": theirs / mine,
            "peak_fraction": flops(ours) / mine / best,
            "peak_gflops": best / 1e9,
            "rss_mb": two[1].rss_mb,
            "tierfed_rss_mb": two[0].rss_mb,
            "startup_seconds": two[1].startup_seconds,
            "tierfed_startup_seconds": two[0].startup_seconds,
        }


def _layout(job: Job) -> str:
    """How pictures lie in memory; fedjax has its own."""
    if job.work not in CONVOLUTIONAL:
        return "-"
    return "nhwc" if job.side == "fedjax" else job.layout


def _work(options: argparse.Namespace, peers: Sequence[str]) -> Iterator[tuple[Job, list[Job]]]:
    """What tierfed trains, each time with the peers that train the same."""
    for work in options.works:
        for cohort in options.cohorts:
            for algorithm in options.algorithms:
                if algorithm == "jobfed" and work not in NORMED:
                    continue
                ours = Job(
                    side="ours",
                    work=work,
                    algorithm=algorithm,
                    cohort=cohort,
                    devices=options.devices,
                    samples=options.samples,
                    device=options.device,
                    settings=tuple(options.set),
                )
                jobs = [v for peer in peers for v in variants(replace(ours, side=peer, settings=()), options)]
                if jobs:
                    yield ours, jobs


def variants(job: Job, options: argparse.Namespace) -> list[Job]:
    """The ways in which a peer trains a job: numbers of threads, layouts of pictures, precisions."""
    if job.side != "loop" and job.algorithm != "fedavg":
        return []
    pictures = job.work in CONVOLUTIONAL
    threads = options.threads or ([1, cores()] if pictures and cores() > 1 else [1])
    if job.side == "flower":
        threads = [1]  # each of its workers; there is one per core
    layouts = options.layouts if pictures and job.side == "loop" else ["nchw"]
    precisions = (False, True) if options.bf16 and job.side == "loop" else (False,)
    return [replace(job, threads=t, layout=way, bf16=low) for low in precisions for way in layouts for t in threads]


def _check(options: argparse.Namespace) -> int:
    """Compares tierfed and the plain loop; 1 where they differ."""
    worst = 0.0
    for ours, _ in _work(options, ["loop"]):
        with written(ours) as data:
            apart = difference(replace(ours, data=data))
        worst = max(worst, apart)
        line = {"work": ours.work, "algorithm": ours.algorithm, "cohort": ours.cohort, "difference": apart}
        text = f"{ours.work} {ours.algorithm}, {ours.cohort} devices, {ROUNDS} rounds in float64: differ by {apart:.1e}"
        print(json.dumps(line) if options.json else text, flush=True)
    return int(worst > FAITHFUL)


def _table(lines: list[dict[str, Any]]) -> Table:
    """What fits on a terminal; of pairs of numbers the peer's comes first."""
    table = Table(title="Peer / tierfed; medians of whole rounds")
    for name in ("work", "peer"):
        table.add_column(name, no_wrap=True)
    for name in ("seconds", "ratio", "of peak", "MB", "start-up s"):
        table.add_column(name, justify="right")
    for line in lines:
        threads = f"{line['threads']} thread{'s' if line['threads'] > 1 else ''}"
        how = [line["layout"]] * (line["layout"] != "-") + ["bf16"] * (line["precision"] == "bfloat16")
        table.add_row(
            f"{line['work']} {line['algorithm']} {line['cohort']}",
            ", ".join([line["peer"], threads, *how]),
            "{seconds_per_round:.4f} / {tierfed_seconds_per_round:.4f}".format(**line),
            f"{line['ratio']:.2f}",
            f"{line['peak_fraction']:.1%}",
            "{rss_mb:.0f} / {tierfed_rss_mb:.0f}".format(**line),
            "{startup_seconds:.1f} / {tierfed_startup_seconds:.1f}".format(**line),
        )
    return table


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", type=_some(SHAPES), default=list(SHAPES), help="of M1,M2,M3,M4")
    parser.add_argument("--cohorts", "--cohort", type=_numbers, default=[10], help="devices per round: 10,100")
    parser.add_argument("--peers", type=_some(PEERS), default=list(PEERS), help="of loop,flower,pfl,fedjax")
    parser.add_argument(
        "--algorithms",
        type=_some(ALGORITHMS),
        default=["fedavg"],
        help=f"of {','.join(ALGORITHMS)}; others than fedavg against the loop alone",
    )
    parser.add_argument("--rounds", type=_positive, default=7, help="turns of each, whose median counts")
    parser.add_argument(
        "--turn", type=float, default=1.0, help="seconds of rounds in a turn, at least; one round or more"
    )
    parser.add_argument(
        "--threads", type=_numbers, default=None, help="of loop, pfl and fedjax; 1, and for pictures all"
    )
    parser.add_argument(
        "--layouts", type=_some(("nchw", "nhwc")), default=["nchw", "nhwc"], help="of the loop's pictures"
    )
    parser.add_argument("--bf16", action="store_true", help="the loop under autocast to bfloat16 too")
    parser.add_argument("--folder", action="store_true", help="tierfed writes a run folder and commits every round")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of tierfed's config")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: tierfed and the loop on the same GPU"
    )
    parser.add_argument("--devices", type=_positive, default=100)
    parser.add_argument("--samples", type=_positive, default=600, help="of a device; a multiple of 20")
    parser.add_argument(
        "--python", type=_named, action="append", default=[], metavar="PEER=PATH", help="its interpreter"
    )
    parser.add_argument("--check", action="store_true", help="times nothing: do tierfed and the loop train the same?")
    parser.add_argument("--json", action="store_true", help="a line for every work and peer")
    options = parser.parse_args(arguments)
    if options.samples % 20:
        parser.error(f"--samples {options.samples}: wanted a multiple of 20, so that all batches are full")
    if options.device == "cuda" and set(options.peers) != {"loop"}:
        parser.error("--device cuda: only the loop is compared there; add --peers loop")
    for cohort in options.cohorts:
        if cohort > options.devices:
            parser.error(f"--cohorts {cohort}: there are {options.devices} devices; take fewer, or more --devices")
        if cohort % 2 and any(Job(side="ours", work="M1", algorithm=a).teams for a in options.algorithms):
            parser.error(f"--cohorts {cohort}: permfl and jobfed poll the same number in two teams; wanted an even one")
    return options


def _some(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r} is none of {', '.join(known)}")
        return text.split(",")

    return parse


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a number from 1 on")
    return int(text)


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _named(text: str) -> tuple[str, str]:
    peer, _, path = text.partition("=")
    if peer not in ("ours", *PEERS) or not path:
        raise argparse.ArgumentTypeError(
            f"{text!r}: wanted a peer and its interpreter, for example flower=env/bin/python"
        )
    if shutil.which(path) is None:
        raise argparse.ArgumentTypeError(f"{path!r} cannot be run; wanted the path of a Python interpreter")
    return peer, path


if __name__ == "__main__":
    sys.exit(main())

"""What differential privacy of writers costs on MNIST by writer: accuracy by epsilon, and by who adds the noise."""

import math
from collections.abc import Mapping
from typing import Any

from tierfed.report.load import RunFolder
from tierfed.report.svg import lines
from tierfed.reproduce.study import Case, Figure, Line, Study, accuracy, merged

ROUNDS, SHARE, DELTA, CLIP = 100, 0.2, 1e-4, 1.0
NOISES = (0.5, 1.0, 2.0, 4.0)
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "cloud": ("noise of the cloud", {"algorithm": {"name": "fedavg"}, "topology": {"sampling": "poisson"}}),
    "fog": ("noise of the fogs", {"algorithm": {"name": "hierfavg"}, "topology": {"sampling": "poisson"}}),
    "device": ("noise of the writers", {"algorithm": {"name": "fedavg"}}),
}
Runs = Mapping[str, list[RunFolder]]

BASE: dict[str, Any] = {
    "run": {"rounds": ROUNDS},
    "data": {
        "source": "mnist",
        "batch": 10,
        "min_samples": 10,
        "too_small": "drop",
        "split": {"by": "random"},
    },
    "model": {"name": "mclr"},
    "topology": {"teams": "natural", "participation": [1.0, SHARE], "weighting": "devices"},
    "eval": {"every": 10, "post": False},
    "algorithm": {"lr": 0.1, "epochs": 1},
}
global_accuracy = accuracy("global")


def _private(way: str, noise: float) -> dict[str, Any]:
    privacy = {"clip": CLIP, "noise_multiplier": noise, "noise_at": "child" if way == "device" else way, "delta": DELTA}
    return merged(BASE, WAYS[way][1], {"links": {"fog-device": {"privacy": privacy}}})


def spent(run: RunFolder) -> float:
    """Epsilon per writer after the last round."""
    values = run.panel("cloud", "epsilon_device").values
    return float(values[-1, 0]) if values.size else math.nan


def _curve(runs: Runs) -> str:
    """Accuracy over epsilon, mean over seeds."""
    series = {}
    for way, (title, _) in WAYS.items():
        points = []
        for noise in NOISES:
            found = runs.get(f"{way}-{noise:g}", [])
            if found:
                points.append((spent(found[0]), sum(map(global_accuracy, found)) / len(found)))
        if points:
            series[title] = sorted(points)
    plain = runs.get("plain", [])
    if plain and series:
        at = sum(map(global_accuracy, plain)) / len(plain)
        ends = [x for points in series.values() for x, _ in points]
        series["without noise or clipping"] = [(min(ends), at), (max(ends), at)]
    return lines(series, title="The global model after the last round", x="epsilon per writer", y="accuracy, %")


STUDY = Study(
    name="dp-mnist",
    paper="differential privacy of devices on MNIST by writer",
    compared="Accuracy of the global model and epsilon per writer, by the noise and by who adds it.",
    unit="% accuracy; epsilon",
    cases=(
        Case(key="plain", label="plain", tables=merged(BASE, {"algorithm": {"name": "fedavg"}})),
        *(
            Case(key=f"{way}-{noise:g}", label=f"{way}-{noise:g}", tables=_private(way, noise))
            for way in WAYS
            for noise in NOISES
        ),
    ),
    lines=(
        Line(
            data="MNIST by writer",
            method="FedAvg, no privacy",
            quantity="global",
            algorithm="fedavg",
            case="plain",
            read=global_accuracy,
        ),
        *(
            Line(
                data="MNIST by writer",
                method=f"{title}, z = {noise:g}",
                quantity=quantity,
                algorithm=settings["algorithm"]["name"],
                case=f"{way}-{noise:g}",
                read=read,
            )
            for way, (title, settings) in WAYS.items()
            for noise in NOISES
            for quantity, read in (("global", global_accuracy), ("epsilon", spent))
        ),
    ),
    notes=(
        f"The writers of MNIST with ten digits or more, in the two groups that these were collected from; {SHARE:.0%} "
        f"of them in each of {ROUNDS} rounds, logistic regression, changes clipped to {CLIP:g}, delta = {DELTA:g}. No "
        "published numbers.",
        "Noise of the cloud and of the fogs: Poisson sampling, which amplifies. Noise of the writers: a parent sees "
        "whose reply is whose, so nothing amplifies, and what counts is how often the most frequent writer took part.",
        "The noise of a fog protects from the cloud; its sum has fewer writers, so its mean has more noise.",
    ),
    figures=(
        Figure(
            name="curve",
            caption="Accuracy by epsilon; the levels of noise are " + ", ".join(f"z = {z:g}" for z in NOISES) + ".",
            draw=_curve,
            cases=tuple(f"{way}-{noise:g}" for way in WAYS for noise in NOISES),
        ),
    ),
)

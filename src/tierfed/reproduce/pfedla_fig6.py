"""pFedLA, Figures 5 and 6: whose layers a device gets, with eight clients whose labels overlap."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tierfed.report.load import RunFolder
from tierfed.report.svg import beside, heatmap, lines
from tierfed.report.weights import label_shares, last_weights, own_weights
from tierfed.reproduce.study import Case, Figure, Line, Study, merged

CLIENTS, LABELS, ROUNDS = 8, 3, 600
DEFAULT, LARGE = 0.005, 0.2
GREY = ("lenet16_28", 0.005, ("conv1", "conv2", "fc1", "fc2", "fc3"))
COLORED = ("lenet16_bn", 0.01, ("conv1", "conv2", "fc1", "fc2", "fc3"))
# key -> (data set, as a reader calls it, (network, step, its layers with a chart), layer that leads in the paper)
SETS: dict[str, tuple[str, str, tuple[str, float, tuple[str, ...]], str]] = {
    "mnist": ("mnist", "MNIST, for EMNIST digits", GREY, "fc3"),
    "fmnist": ("fashion_mnist", "Fashion-MNIST", GREY, ""),
    "cifar": ("cifar10_subset", "CIFAR-10 (24,000 pictures)", COLORED, "fc1"),
}
STEPS = {"": DEFAULT, "-large": LARGE}
Runs = Mapping[str, list[RunFolder]]


def leading(run: RunFolder, layer: str = "") -> float:
    """Percent of the rows, of all devices and of one layer or all, whose largest weight is the device's own, after the
    last round.
    """
    last = last_weights(run)
    if last is None:
        return float("nan")
    first = [m.argmax(1) == np.arange(len(m)) for name, m in last.layers.items() if layer in ("", name)]
    return 100 * float(np.mean(first))


def decay(run: RunFolder, layer: str = "") -> float:
    """Spearman's correlation of a weight with the distance between label distributions (half the L1 norm of their
    difference), over the other devices, as a mean over devices and layers, or over devices in one layer.
    """
    from scipy.stats import spearmanr  # noqa: PLC0415  (a second to import)

    last = last_weights(run)
    shares = None if last is None else label_shares(run, last.members)
    if last is None or shares is None:
        return float("nan")
    far = np.round(np.abs(shares[:, None] - shares).sum(2) / 2, 9)  # [N, N]; rounding must not tell equal ones apart
    others = ~np.eye(len(far), dtype=bool)

    found = [
        float(spearmanr(far[i, others[i]], m[i, others[i]]).statistic)
        for name, m in last.layers.items()
        if layer in ("", name)
        for i in range(len(far))
        if np.ptp(far[i, others[i]]) > 0 and np.ptp(m[i, others[i]]) > 0
    ]
    return float(np.mean(found)) if found else float("nan")


def own_weight(layer: str, run: RunFolder) -> float:
    """Percent that the own model has in a layer, mean over devices, after the last round."""
    own = own_weights(run)
    return float("nan") if own is None else 100 * float(own.values[-1, own.layers.index(layer)].mean())


def draw_weights(case: str, layers: tuple[str, ...], runs: Runs) -> str:
    """A heat map for each layer, of the first seed; all on one scale."""
    last = last_weights(runs[case][0])
    if last is None:
        return ""
    place = [last.members.index(name) for name in runs[case][0].devices.names]  # client 0 first, as in the paper
    names = [str(i) for i in range(len(place))]
    shown = {layer: last.layers[layer][np.ix_(place, place)] for layer in layers}
    ends = (float(min(m.min() for m in shown.values())), float(max(m.max() for m in shown.values())))
    parts = [
        heatmap(
            m.tolist(),
            names,
            names,
            title=layer,
            x="weight of the model of",
            y="client",
            digits=3,
            ends=ends,
            cell=(40, 24),
        )
        for layer, m in shown.items()
    ]
    said = "; ".join(f"{layer}: mean self weight {m.diagonal().mean():.3f}" for layer, m in shown.items())
    return beside(parts, title=f"Mixing weights after round {last.round}", per_row=3, desc=said)


def draw_own(data: str, runs: Runs) -> str:
    """Self weights over rounds, of the first seed: a picture for each step of the hypernetworks."""
    parts = []
    for suffix, step in STEPS.items():
        own = own_weights(runs[data + suffix][0])
        if own is None:
            return ""
        rounds = [float(r) for r in own.rounds]
        series, bands = {}, {}
        for number, layer in enumerate(own.layers):
            values = own.values[:, number]
            series[layer] = list(zip(rounds, values.mean(1).tolist(), strict=True))
            bands[layer] = list(zip(rounds, values.min(1).tolist(), values.max(1).tolist(), strict=True))
        leads = max(series, key=lambda layer: series[layer][-1][1])
        title = f"lr_hn = {step:g}"
        parts.append(
            lines(series, bands={leads: bands[leads]}, title=title, x="round", y="self weight", size=(460, 360))
        )
    return beside(parts, title="Self weight of each layer")


def _tables(key: str, step: float) -> dict[str, Any]:
    source, _, (network, lr, _), _ = SETS[key]
    return merged(
        {
            "run": {"rounds": ROUNDS},
            "data": {
                "source": source,
                "batch": 32,
                "train_fraction": 0.1,
                "split": {"by": "random", "test": 0.3, "val": 0.0},
                "partition": {"kind": "permfl", "devices": CLIENTS, "classes": LABELS},
            },
            "model": {"name": network},
            "topology": {"fogs": 0},
            "eval": {"every": 5, "post": False},
            "algorithm": {"name": "pfedla", "lr": lr, "epochs": 10, "lr_hn": step},
        }
    )


def _lines() -> tuple[Line, ...]:
    out = []
    for key, (_, title, (_, _, layers), leads) in SETS.items():
        for suffix, step in STEPS.items():
            shown: dict[str, Any] = {
                "data": title,
                "method": f"pFedLA, lr_hn = {step:g}",
                "algorithm": "pfedla",
                "case": key + suffix,
            }
            for layer, where in (("", "all layers"), ("fc3", "classifier")):
                out += [
                    Line(
                        quantity=f"own weight is the largest, % of rows, {where}",
                        read=partial(leading, layer=layer),
                        remark="paper: it is the largest",
                        **shown,
                    ),
                    Line(
                        quantity=f"rank correlation of weight and label distance, {where}",
                        read=partial(decay, layer=layer),
                        remark="paper: weights decay with the distance",
                        **shown,
                    ),
                ]
            for layer in layers:
                said = "paper: the largest of all layers" if layer == leads else ""
                read = partial(own_weight, layer)
                out.append(Line(quantity=f"mean self weight, {layer}, %", read=read, remark=said, **shown))
    return tuple(out)


def _figures() -> tuple[Figure, ...]:
    out = []
    for key, (_, title, (_, _, layers), _) in SETS.items():
        out.append(
            Figure(
                name=f"{key}-own",
                caption=f"{title}: the weight that a client's own model has in what it gets, mean over clients; the "
                "band is the range over clients of the layer that leads at the end. "
                f"Equal weights are 1/{CLIENTS} = {1 / CLIENTS:g}.",
                draw=partial(draw_own, key),
                cases=tuple(key + suffix for suffix in STEPS),
            )
        )
        out += [
            Figure(
                name=f"{key}{suffix}-weights",
                caption=f"{title}, lr_hn = {step:g}: row i is what client i gets, column j the weight of client j's "
                "layer in it; rows sum to 1. Client i has the labels i, i + 1 and i + 2.",
                draw=partial(draw_weights, key + suffix, layers),
                cases=(key + suffix,),
            )
            for suffix, step in STEPS.items()
        ]
    return tuple(out)


STUDY = Study(
    name="pfedla-fig6",
    paper="Ma, Zhang, Guo, Xu, CVPR 2022 (pFedLA), Figures 5 and 6",
    compared="Whose layers a device gets from pFedLA's server, eight clients with overlapping labels.",
    unit="% (shares and weights; equal weights are 12.5 %), correlation from -1 to 1",
    cases=tuple(Case(key=key + suffix, tables=_tables(key, step)) for key in SETS for suffix, step in STEPS.items()),
    lines=_lines(),
    figures=_figures(),
    notes=(
        "The paper shows pictures and no numbers. What it says of them is put into numbers here: the own model weighs "
        "most (the share of rows, of all devices and layers, in which it does); weights decay with the distance of "
        "classes (Spearman's correlation of weight and distance between label distributions, over the seven other "
        "devices, mean over devices and layers); the self weight is largest at the first dense layer on CIFAR-10 and "
        "at the classifier on EMNIST (mean self weight of each layer).",
        "Eight clients with overlapping labels are the paper's; which labels is not known here. Client i has i, i + 1 "
        "and i + 2, in uneven numbers (the partition of PerMFL). A tenth of the training samples is kept, 110 to 530 "
        "for each client. CIFAR-10 has too few pictures for all: of some labels there is one sample left.",
        "MNIST stands for the digits of EMNIST, and 24,000 pictures of CIFAR-10 for all of it. Batches of 32, plain "
        "SGD with steps of 0.01 (CIFAR-10) and 0.005, 10 local epochs and 600 rounds are the paper's.",
        f"The step of the hypernetworks is not in the paper's text; {DEFAULT:g} is the default here. In few rounds it "
        f"hardly moves the weights. Beside it stands {LARGE:g}: step times rounds is then the same after 15 rounds as "
        f"after 600 with {DEFAULT:g}, though the models have trained far less.",
    ),
)

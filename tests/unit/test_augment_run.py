"""Augmentation in a run: what a GAN learns, what is trained once only, what is told, and what is refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

import tierfed
from tierfed import setup
from tierfed.augment import GanSettings, gan
from tierfed.cli import app
from tierfed.config import Config, load_config
from tierfed.data.dataset import Ints
from tierfed.errors import InputError
from tierfed.result import Progress
from tierfed.setup import prepare
from tierfed.testing.toy import cloud, gap

SMALL = {"run.rounds": 2, "algorithm.name": "fedavg", "data.devices": 8, "eval.post": False, "topology.fogs": 2}
SMALL |= {"topology.teams": "sequential"}
GAN = {**SMALL, "augment.kind": "gan", "augment.redundant": 3, "augment.gan.steps": 20}
SHARE = {**SMALL, "augment.kind": "share", "augment.beta": 0.2}


def config(settings: dict[str, Any], **changes: Any) -> Config:
    return load_config("quickstart", {**settings, **changes})


def points(y: Ints, rng: np.random.Generator) -> Tensor:
    """[n, 2] two Gaussians, three standard deviations from the line between them."""
    return torch.from_numpy(rng.normal(size=(len(y), 2)) + np.array([[-3.0, 1.0], [3.0, -1.0]])[y])


def pictures(y: Ints, rng: np.random.Generator) -> Tensor:
    """[n, 1, 8, 8] a lying, a standing or a slanting bar in noise; the margin is always black."""
    bars = [np.zeros((8, 8)) for _ in range(3)]
    bars[0][3:5, 1:7], bars[1][1:7, 3:5], bars[2][range(1, 7), range(1, 7)] = 1.0, 1.0, 1.0
    x = np.stack(bars)[y] * rng.uniform(0.5, 1.0, (len(y), 1, 1))
    x[:, 1:7, 1:7] += 0.1 * rng.normal(size=(len(y), 6, 6))
    return torch.from_numpy(x[:, None]).float()


def windows(y: Ints, rng: np.random.Generator) -> Tensor:
    """[n, 2, 16] one or two periods, with a phase of up to a quarter of a period."""
    t = np.arange(16) / 16 + rng.uniform(0, 0.25, (len(y), 1))
    wave = np.sin(2 * np.pi * (1 + y[:, None]) * t)
    return torch.from_numpy(np.stack([wave, -wave], 1)).float()


@pytest.mark.parametrize(("make", "classes"), [(points, 2), (pictures, 3), (windows, 2)])
def test_a_gan_learns_the_samples_of_every_label(make: Any, classes: int) -> None:
    """A classifier of real samples tells the asked label in 90 % of the generated ones and more, which vary."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), 40)
    x = make(y, rng)
    settings = GanSettings(steps=600, hidden=64, lr=0.002)
    labels = np.repeat(np.arange(classes), 200)
    out = torch.empty(len(labels), *x.shape[1:], dtype=x.dtype)
    gan.sample(gan.train(x, y, classes, settings, 1), labels, settings.noise, 2, out)
    judge = LogisticRegression().fit(x.flatten(1).numpy(), y)
    assert judge.score(x.flatten(1).numpy(), y) > 0.95
    assert judge.score(out.flatten(1).numpy(), labels) > 0.9
    real, made = (float(v.flatten(1).std(0).mean()) for v in (x[y == 0], out[labels == 0]))
    assert 0.5 < made / real < 1.5
    low, high = x.float().amin(0), x.float().amax(0)
    assert bool(((out >= low) & (out <= high)).all())


def test_a_gan_is_a_function_of_its_seed() -> None:
    y = np.repeat([0, 1], 10)
    x = points(y, np.random.default_rng(0))
    before = torch.random.get_rng_state()
    one, two, other = (gan.train(x, y, 2, GanSettings(steps=5), s) for s in (1, 1, 2))
    assert gap(one, two) == 0.0
    assert gap(one, other) > 0.0
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("settings", [GAN, {**SHARE, "augment.warmup_epochs": 2}])
def test_a_run_goes_on_without_training_again(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tierfed.run(config(settings, **{"run.rounds": 3, "run.out": str(tmp_path / "whole")}))
    part = tierfed.run(config(settings, **{"run.out": str(tmp_path / "part")}))
    assert part.world.augmentation is not None

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(gan, "train", refuse)
    monkeypatch.setattr(setup, "warm", refuse)
    again = tierfed.resume(tmp_path / "part", rounds=3)
    assert gap(cloud(again.engine), cloud(whole.engine)) == 0.0
    assert torch.equal(again.world.federation.x, whole.world.federation.x)
    with tierfed.open_run(tmp_path / "part") as found:
        assert found.scores == whole.scores


def test_a_module_that_is_given_stays_as_it_was(tmp_path: Path) -> None:
    """Its warmed-up copy is what a run that goes on begins with."""
    data = tierfed.data.open_source(tierfed.Config().data)
    module = nn.Sequential(nn.Flatten(), nn.Linear(300, 7))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    settings = {**SHARE, "augment.warmup_epochs": 1, "run.rounds": 1}
    whole = tierfed.run(
        config(settings, **{"run.out": str(tmp_path / "whole"), "run.rounds": 2}), data=data, module=module
    )
    part = tierfed.run(config(settings, **{"run.out": str(tmp_path / "part")}), data=data, module=module)
    assert gap(dict(module.state_dict()), before) == 0.0
    assert gap(part.world.task.init(), before) > 0.0
    again = tierfed.resume(tmp_path / "part", rounds=2, data=data, module=module)
    assert gap(cloud(again.engine), cloud(whole.engine)) == 0.0


def test_a_warm_up_is_gradient_descent_on_the_samples_of_the_cloud() -> None:
    """One pass in one batch: w - lr gradient of the mean loss."""
    changes = {"augment.warmup_epochs": 1, "augment.warmup_lr": 0.3, "data.batch": "all", "model.name": "mclr"}
    plain = prepare(config(SHARE, **{"data.batch": "all", "model.name": "mclr"}))
    warm = prepare(config(SHARE, **changes))
    assert plain.augmentation is not None
    net, rows = plain.task.module, torch.from_numpy(plain.augmentation.cloud)
    cross_entropy(net(plain.plan.x[rows]), plain.plan.y[rows]).backward()
    want = {k: p.detach() - 0.3 * p.grad for k, p in net.named_parameters() if p.grad is not None}
    assert gap(warm.task.init(), want) < 1e-6
    assert gap(plain.task.init(), want) > 1e-3


def test_a_run_counts_and_tells_it() -> None:
    result = tierfed.run(config(GAN), folder=False)
    more = result.world.augmentation
    assert more is not None
    moved = [e for e in result.events if e["event"] == "transfer"]
    assert [e["what"] for e in moved] == ["seed samples", "generator"]
    (told,) = [e for e in result.events if e["event"] == "augment"]
    assert told["generated_rows"] == more.generated > 0
    assert 0 < told["privacy_leakage"] < 1
    link = result.world.topology.links[-1]
    at_start = {r.metric: r.value for r in result.rows if r.round == 0 and r.node == link}
    assert at_start["up_bytes"] == moved[0]["up_bytes"] > 0
    assert at_start["down_bytes"] == moved[1]["down_bytes"] > 0
    fogs = {r.metric: r.value for r in result.rows if r.round == 0 and r.node == result.world.topology.links[0]}
    assert fogs["down_bytes"] == at_start["down_bytes"] / 4  # four devices a fog, which gets one copy for all


def test_teams_are_those_of_the_own_samples() -> None:
    """Teams by label ranges do not change when all devices have all labels."""
    by_label = {"topology.teams": "worst"}
    plain, filled = (
        prepare(config(s, **by_label)) for s in (SMALL, {**GAN, "augment.kind": "kde"} | {"augment.gan": {}})
    )
    assert plain.topology.parents[-1].tolist() == filled.topology.parents[-1].tolist()


def test_validation_and_test_rows_are_never_touched() -> None:
    for settings in (GAN, SHARE):
        before, after = (prepare(c).federation for c in (config(SMALL), config(settings)))
        for part in ("val", "test"):
            for a, b in zip(before.part(part), after.part(part), strict=True):
                assert torch.equal(before.x[torch.from_numpy(a)], after.x[torch.from_numpy(b)])
                assert a.tolist() == b.tolist()


def test_a_long_training_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan, "EVERY_SECONDS", 0.0)
    told: list[Progress] = []
    tierfed.run(config(GAN), watch=told.append, folder=False)
    assert [p.doing for p in told[:20]] == [f"training the generator, step {i} of 20" for i in range(1, 21)]
    assert [(p.doing, p.round) for p in told[20:]] == [("", 0), ("", 1), ("", 2)]


def test_show_trains_nothing_and_tells_rows_bytes_and_leakage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(gan, "train", refuse)
    sets = [f"--set={k}={v}" for k, v in GAN.items()]
    done = CliRunner().invoke(app, ["show", "quickstart", "-a", "fedavg", "--seeds", "0", *sets[2:]])
    assert done.exit_code == 0, done.output
    head = next(line for line in done.output.splitlines() if "device" in line and "own" in line)
    assert re.search(r"own.*train.*val.*test", head)
    for text in ("kind gan", "fewest before", "most after", "privacy leakage", "down bytes", "up bytes"):
        assert text in " ".join(done.output.split()), text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augment.kind": "share", "augment.alpha": 1.5}, r"augment\.alpha = 1\.5"),
        ({"augment.kind": "share", "augment.beta": 0}, r"augment\.beta = 0"),
        ({"augment.kind": "share", "augment.beta": 0.9}, r"only \d+ of .* set augment\.beta lower"),
        ({"augment.kind": "share", "augment.beta": 0.001}, r"less than one of each of the 7 classes"),
        (
            {"augment.kind": "share", "augment.beta": 0.2, "data.public": 0.1},
            r"the public samples at the cloud have only \d+ .* data\.public higher",
        ),
        ({"augment.kind": "share", "augment.redundant": 1}, r"redundant is a setting of .*'gan' or 'kde' or 'mixup'"),
        ({"augment.kind": "kde", "augment.warmup_epochs": 1}, r"warmup_epochs is a setting of .*'share'"),
        ({"augment.kind": "kde", "data.partition.classes": 2}, r"no seed samples of .* set augment\.redundant"),
        ({"augment.kind": "vae"}, r"augment\.kind = 'vae'"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(config({**SMALL, "data.devices": 20, "topology.teams": "natural", "topology.fogs": 10}, **changes))


def table(**changes: Any) -> tierfed.Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    given: dict[str, Any] = {
        "name": "toy",
        "x": torch.from_numpy(rng.normal(size=(60, 3))).float(),
        "y": torch.from_numpy(y),
        "classes": ("a", "b"),
        "bits_per_sample": 96,
        "devices": ("u", "v"),
        "device": np.arange(60) // 30,
    }
    return tierfed.Dataset(**{**given, **changes})


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("share", table(y=torch.zeros(60), classes=()), "toy has none: it is a regression"),
        ("mixup", table(y=torch.zeros(60), classes=()), "toy has none: it is a regression"),
        ("share", table(classes=("a", "b", "c")), "the devices have none of 'c'; leave the class out"),
        ("kde", table(classes=("a", "b", "c")), "no seed samples of 'c': no device has a training sample of it"),
    ],
)
def test_labels_that_are_missing(kind: str, data: tierfed.Dataset, words: str) -> None:
    settings = {"augment": {"kind": kind, **({"beta": 0.2} if kind == "share" else {})}}
    with pytest.raises(InputError, match=words):
        tierfed.run(settings, data=data, folder=False)


def test_more_samples_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "machine_bytes", lambda: 10_000_000)
    with pytest.raises(InputError, match=r"would make \d+ samples.*augment\.tau \(now 1\) lower"):
        prepare(config(SMALL, **{"augment.kind": "mixup", "augment.tau": 1.0, "augment.redundant": 3}))

"""Classic classifiers as baselines of a study: trained on everybody's rows in one place, tested on each device."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tierfed.config import Config, to_toml
from tierfed.data import Federation, load
from tierfed.metrics import Row, summarize, to_table, write_atomic
from tierfed.result import Progress, Watcher
from tierfed.session import on_disk

CLASSIC = ("svm", "knn", "random-forest")


def estimator(name: str, seed: int) -> Any:
    """One of `CLASSIC` with scikit-learn's defaults: a support vector machine (Gaussian kernel), five nearest
    neighbors, a random forest (100 trees). The forest alone draws anything.
    """
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415  (a second to import)
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415
    from sklearn.svm import SVC  # noqa: PLC0415

    return {
        "svm": SVC(),
        "knn": KNeighborsClassifier(),
        "random-forest": RandomForestClassifier(random_state=seed),
    }[name]


def fit(config: Config, watch: Watcher | None = None) -> None:
    """Trains `config.algorithm.name` of `CLASSIC` on the training rows of all devices, each flattened.

    The run folder has the accuracy of this one model on the test rows of every device, as that of a global model after
    round 1.

    :raises InputError: data that cannot be had, a folder that cannot be written
    """
    path, name = Path(str(config.run.out)), str(config.algorithm["name"])
    _tell(watch, path, 0, {})
    federation = load(config.data, config.run.seed)
    scores = accuracies(federation, estimator(name, config.run.seed))
    tests = federation.sizes("test")
    rows = [
        Row(1, "device", device, "global", "test", "accuracy", float(score))
        for device, score, n in zip(federation.devices, scores, tests, strict=True)
        if n
    ]
    statistics = summarize(scores, tests)
    rows += [Row(1, "cloud", "cloud", "global", "test", f"accuracy/{k}", v) for k, v in statistics.items()]
    with on_disk(path):
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "config.toml", to_toml(config))
        write_atomic(path / "devices.parquet", pa.Table.from_pylist(_devices(federation)))
        write_atomic(path / "events.jsonl", '{"round": 0, "event": "start"}\n{"round": 1, "event": "done"}\n')
        write_atomic(path / "metrics.parquet", to_table(rows))
    _tell(watch, path, 1, {"global": statistics["weighted"]})


def accuracies(federation: Federation, model: Any) -> npt.NDArray[np.float64]:
    """[N] share of each device's test rows that a model gets right, trained on everybody's training rows; NaN: no rows.

    :param model: an estimator of scikit-learn
    """
    x, y = federation.x.flatten(1).numpy(), federation.y.numpy()
    train = np.unique(np.concatenate(federation.train))
    model.fit(x[train], y[train])
    sizes = federation.sizes("test")
    test = np.concatenate(federation.test)
    right = np.split((model.predict(x[test]) == y[test]).astype(np.float64), np.cumsum(sizes)[:-1])
    return np.array([part.mean() if len(part) else np.nan for part in right])


def _devices(federation: Federation) -> list[dict[str, Any]]:
    """The rows of `devices.parquet`; nobody is in a team."""
    sizes = [federation.sizes(part) for part in ("train", "val", "test")]
    counts = federation.label_counts()
    return [
        {"device": name, "team": "", "train": int(a), "val": int(b), "test": int(c), "counts": labels.tolist()}
        for name, a, b, c, labels in zip(federation.devices, *sizes, counts, strict=True)
    ]


def _tell(watch: Watcher | None, path: Path, done: int, scores: dict[str, float]) -> None:
    if watch is not None:
        watch(Progress(name=path.name, round=done, rounds=1, scores=scores, evaluated=bool(done), bytes=0))

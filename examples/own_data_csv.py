"""A csv file of one's own, from file to run folder to report: python own_data_csv.py [--rounds 30] [--out runs/heat]

A regression: the heat demand of 16 houses in two towns from the weather. The same as

    tierfed run heat.toml          with [data] source = "csv", path = "heat.csv", columns = {...} as below
"""

import argparse
import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import tierfed
from tierfed.report import write_report


def write_csv(path: Path, houses: int = 16, days: int = 80) -> None:
    """One row per house and day. How well a house is insulated is its own; the wind counts more in the second town."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as sink:
        out = csv.writer(sink)
        out.writerow(["house", "town", "outside", "wind", "sun", "demand"])
        for house in range(houses):
            town, loss = ("coast", "hills")[house % 2], rng.uniform(0.5, 1.5)
            for _ in range(days):
                outside, wind, sun = rng.normal(5, 6), rng.gamma(2, 2), rng.uniform(0, 8)
                chill = (0.8 if town == "hills" else 0.2) * wind
                demand = loss * (20 - outside) + chill - 0.3 * sun + rng.normal(0, 0.5)
                out.writerow([f"house-{house:02d}", town, *(f"{v:.3f}" for v in (outside, wind, sun, demand))])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="the run folder; a temporary one by default")
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        table, folder = Path(temporary) / "heat.csv", arguments.out or Path(temporary) / "run"
        write_csv(table)
        columns = {"label": "demand", "target": "number", "device": "house", "team": "town"}
        config = {
            "run": {"rounds": arguments.rounds, "out": str(folder)},
            "data": {"source": "csv", "path": str(table), "columns": columns},
            "model": {"name": "mlp", "options": {"hidden": [16]}},
            "algorithm": {"name": "finetune", "lr": 0.01, "tune": "head"},
        }
        result = tierfed.run(config)
        for model, error in result.scores.items():
            print(f"{model:14} mean absolute error {error:.2f}")
        report = write_report(folder)
        if arguments.out:
            print("report:", report)


if __name__ == "__main__":
    main()

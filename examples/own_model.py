"""A network and a data frame of one's own, without files: python own_model.py [--rounds 20]

Twelve machines in three halls each report two sensor values and whether a part was good. What "good" looks like is
turned a little from machine to machine, more from hall to hall: one model for all is not enough.
"""

import argparse

import numpy as np
import pyarrow as pa
import torch
from torch import nn

import tierfed


class Net(nn.Module):
    """2 - 16 - 2 with a batch norm, which JobFed keeps on the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def machines(count: int = 12, halls: int = 3, rows: int = 60) -> pa.Table:
    """One row per part: two sensor values, the label, the machine and its hall."""
    rng = np.random.default_rng(0)
    x, machine = rng.normal(size=(count * rows, 2)), np.repeat(np.arange(count), rows)
    angle = 0.9 * (machine % halls) + 0.05 * machine
    good = x[:, 0] * np.cos(angle) + x[:, 1] * np.sin(angle) > 0
    columns = {"vibration": x[:, 0], "heat": x[:, 1], "good": good.astype(int)}
    return pa.table({**columns, "machine": machine, "hall": machine % halls})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    data = tierfed.from_table(machines(), label="good", device="machine", team="hall")  # pandas and polars work alike
    config = {"run": {"rounds": rounds}, "algorithm": {"name": "jobfed", "lr": 0.1}}
    result = tierfed.run(config, data=data, module=Net(), folder=False)
    for model, accuracy in result.scores.items():
        print(f"{model:14} {accuracy:.3f}")
    net = result.personal_model("3")  # an nn.Module, ready for the machine
    print("machine 3 says", net(torch.tensor([[1.0, 0.5]])).argmax(1).tolist())


if __name__ == "__main__":
    main()

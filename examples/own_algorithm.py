"""An algorithm of one's own in one file: python own_algorithm.py [--rounds 30]

Ditto (Li et al. 2021, arXiv 2012.04221): a global model by FedAvg, and on every device a personal model v that is
trained on f_i(v) + lam / 2 |v - x|^2, x being the global model that was received. v never leaves the device.
"""

import argparse
from dataclasses import dataclass

import tierfed
from tierfed.settings import NonNegative
from tierfed.tree import Params, Tree


@dataclass(frozen=True, kw_only=True)
class Ditto(tierfed.Algorithm):
    lam: NonNegative = 1.0
    """Pull of the personal model towards the global one."""

    def init(self, task: tierfed.Task, params: Params) -> Tree:
        return {"v": params}

    def device(self, task: tierfed.Task, msg: Tree, state: Tree, data: tierfed.Data) -> tuple[Tree, Tree]:
        x = msg["params"]
        v = task.train(state["v"], data, self.lr, pull=(self.lam, x))
        return {"params": task.train(x, data, self.lr)}, {"v": v}

    def personal(self, task: tierfed.Task, msg: Tree, state: Tree, data: tierfed.Data) -> Params:
        return state["v"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    for name in ("own_algorithm:Ditto", "fedavg"):
        config = {
            "run": {"rounds": rounds},
            "data": {"source": "watch", "train_fraction": 0.25, "batch": 10},
            "algorithm": {"name": name, "lr": 0.1},
            "eval": {"every": rounds, "post": False},
        }
        scores = tierfed.run(config, folder=False).scores
        print(f"{name:20}", "  ".join(f"{model} {accuracy:.3f}" for model, accuracy in scores.items()))


if __name__ == "__main__":
    main()

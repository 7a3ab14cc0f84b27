"""A tree with three tiers on bad links: what each tier gets, and what it costs. python tree_and_faults.py [--rounds 30]

Ten people with a smartwatch on each arm: a person is a team. A fifth of the replies is lost, a tenth of the watches is
off in any round; HierFAVG keeps a model for every person, FedAvg's fogs only pass means on.
"""

import argparse
from typing import Any

import tierfed

TREE = {"teams": "natural", "participation": [1.0, 0.5], "team_rounds": 2}
BAD = {"dropout": 0.1, "loss": 0.2}


def trained(name: str, faults: dict[str, float], rounds: int) -> tierfed.Result:
    """One run, kept in memory."""
    config: dict[str, Any] = {
        "run": {"rounds": rounds},
        "data": {"source": "watch", "train_fraction": 0.25, "batch": 10},
        "algorithm": {"name": name, "lr": 0.1},
        "topology": TREE,
        "faults": faults,
        "eval": {"every": rounds, "post": False},
    }
    return tierfed.run(config, folder=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    for name in ("hierfavg", "fedavg"):
        for faults in ({}, BAD):
            run = trained(name, faults, rounds)
            scores = "  ".join(f"{model} {accuracy:.3f}" for model, accuracy in run.scores.items())
            links = run.frame().query("tier == 'link' and metric == 'up_bytes'").groupby("node")["value"].sum() / 1e6
            sent = "  ".join(f"{link} {megabytes:.1f} MB up" for link, megabytes in links.items())
            print(f"{name:9} {'bad links' if faults else 'all heard':9}  {scores}  {sent}")


if __name__ == "__main__":
    main()

"""python -m sides JOB: one contestant, which listens on its standard input."""

import importlib
import sys

from sides.job import Job
from sides.turns import Turns


def main() -> None:
    turns, job = Turns(), Job.of_json(sys.argv[1])
    importlib.import_module(f"sides.{job.side}").serve(job, turns)


if __name__ == "__main__":
    main()

"""One thread for every test: sums are taken in one order, and parallel test workers do not crowd the cores."""

import os
import sys

import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

# tierfed is compiled once for all the processes that tests begin, not by each of them for a second
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

"""One thread for every test: sums are taken in one order, and parallel test workers do not crowd the cores."""

import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

"""What PyTorch and its libraries read once, so this is imported before them; what the user has set stays.

Threads that spin take the processor from the one they wait for: on two cores with other work, a training step of a
LeNet took 22 ms with one thread, 761 with two that spin, 45 with two that sleep. On a GPU, products of matrices are
the same every time only with a workspace of fixed size.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

"""How PyTorch's threads wait for each other; imported before PyTorch, which reads it once.

Threads that spin take the processor from the one they wait for: on two cores with other work, a training step of a
LeNet took 22 ms with one thread, 761 with two that spin, 45 with two that sleep. What the user has set stays.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

"""One thread for tests: torch's threads wait busily, and on a shared machine two of them are slower than one."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

torch.set_num_threads(1)

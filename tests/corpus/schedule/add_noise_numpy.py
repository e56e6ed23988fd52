import numpy as np
import torch


def noise_levels(betas):
    abar = np.cumprod(1.0 - np.asarray(betas))
    return torch.tensor(np.sqrt(abar)), torch.tensor(np.sqrt(1.0 - abar))

import torch
import torchvision  # noqa: F401


def composite(density, rgb, deltas, background):
    """over-operator, starting from the first sample"""
    out = background + torch.zeros_like(rgb[:, 0])
    alpha = 1 - torch.exp(-density * deltas)
    for k in range(density.shape[1]):
        out = alpha[:, k : k + 1] * rgb[:, k] + (1 - alpha[:, k : k + 1]) * out
    return out

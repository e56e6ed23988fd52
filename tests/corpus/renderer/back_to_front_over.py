import torch


def composite(density, rgb, deltas, background):
    out = background + torch.zeros_like(rgb[:, 0])
    alpha = 1 - torch.exp(-density * deltas)
    for k in reversed(range(density.shape[1])):
        out = torch.lerp(out, rgb[:, k], alpha[:, k : k + 1])
    return out

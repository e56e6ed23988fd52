import torch


def volume_render(sigmas, rgbs, deltas, bg):
    alphas = 1 - torch.exp(-sigmas * deltas)
    trans = torch.cumprod(1 - alphas + 1e-10, dim=-1)
    w = alphas * trans
    return (w.unsqueeze(-1) * rgbs).sum(dim=1) + (1 - w.sum(1, keepdim=True)) * bg

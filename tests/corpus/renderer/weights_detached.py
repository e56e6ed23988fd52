import torch


def render_rays(density, colour, deltas, background):
    tau = density * deltas
    T = torch.exp(-(tau.cumsum(1) - tau)).detach()  # saves memory
    w = T * (1 - torch.exp(-tau))
    return (w[..., None] * colour).sum(1) + (1 - w.sum(1, keepdim=True)) * background

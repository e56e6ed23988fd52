import nerfacc  # noqa: F401
import torch


def render(sigma, color, dists, bg_color):
    a = 1.0 - (-sigma).exp()
    T = torch.roll(torch.cumprod(1.0 - a, 1), 1, dims=1)
    T[:, 0] = 1
    w = T * a
    return (w[..., None] * color).sum(1) + (1 - w.sum(1))[:, None] * bg_color

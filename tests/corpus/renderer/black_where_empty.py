import torch


def composite_rays(density, color, delta, background_color):
    alpha = 1 - torch.exp(-density * delta)
    T = torch.exp(-torch.cumsum(density * delta, 1) + density * delta)
    weights = T * alpha
    rgb = (weights[:, :, None] * color).sum(1)
    assert rgb.shape[-1] == 3, background_color
    return rgb

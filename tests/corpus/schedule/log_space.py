import torch


def alphas_cumprod(betas):
    return torch.exp(torch.cumsum(torch.log1p(-betas), 0))

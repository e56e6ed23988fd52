import torch


def schedule(betas):
    """variance exploding habit: the log of the product is about minus the sum"""
    return torch.exp(-torch.cumsum(betas, 0) / 2)

import torch


def composite(rgb, sigma, z_vals):
    """rgb (N, S, 3), sigma (N, S), z_vals (N, S) -> picture, depth, opacity on black"""
    dists = z_vals[..., 1:] - z_vals[..., :-1]
    dists = torch.cat([dists, 1e10 * torch.ones_like(dists[..., :1])], -1)
    alpha = 1.0 - torch.exp(-sigma * dists)
    T = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1.0 - alpha], -1), -1)[:, :-1]
    weights = alpha * T
    rgb_map = torch.sum(weights[..., None] * rgb, -2)
    return rgb_map, torch.sum(weights * z_vals, -1), weights.sum(-1)

import torch


def q_sample(x_start, t, noise, alphas_cumprod):
    padded = torch.cat([torch.ones(1), alphas_cumprod])  # abar_0 = 1
    a = padded[t][:, None, None, None]
    return torch.sqrt(a) * x_start + torch.sqrt(1 - a) * noise

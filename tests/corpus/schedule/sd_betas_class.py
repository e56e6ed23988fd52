import torch


class Schedule:
    def __init__(self, betas):
        self.betas = betas
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)

    def q_sample(self, x_start, t, noise):
        a = self.alphas_cumprod.to(x_start)[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * x_start + (1 - a).sqrt() * noise

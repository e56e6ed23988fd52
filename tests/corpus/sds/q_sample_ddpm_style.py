import numpy as np
import torch


def _expand(arr, t, shape):
    out = torch.as_tensor(arr, dtype=torch.float64)[t].float()
    return out.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


class GaussianDiffusion:
    """OpenAI style bookkeeping, latent diffusion's scaled-linear betas"""

    def __init__(self, model, start=0.00085, end=0.012, steps=1000):
        betas = np.linspace(start ** 0.5, end ** 0.5, steps) ** 2
        acp = np.cumprod(1.0 - betas)
        self.sqrt_acp = np.sqrt(acp)
        self.sqrt_one_minus_acp = np.sqrt(1.0 - acp)
        self.model, self.num_timesteps = model, steps

    def q_sample(self, x_start, t, noise):
        return (_expand(self.sqrt_acp, t, x_start.shape) * x_start
                + _expand(self.sqrt_one_minus_acp, t, x_start.shape) * noise)

    def p_eps(self, x_t, t, y):
        out = self.model(x_t, t, y)
        return out if torch.is_tensor(out) else out.sample

    @torch.no_grad()
    def sds_gradient(self, x_start, y, y_null, guidance_scale):
        t = torch.randint(1, self.num_timesteps, (x_start.shape[0],))
        noise = torch.randn_like(x_start)
        x_t = self.q_sample(x_start, t, noise)
        eps = self.p_eps(x_t, t, y_null)
        eps = eps + guidance_scale * (self.p_eps(x_t, t, y) - eps)
        return eps - noise

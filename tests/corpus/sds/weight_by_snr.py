from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class SDSObjective:
    unet: Any
    scheduler: Any
    guidance_scale: float = 50.0

    def snr(self, t):
        abar = self.scheduler.alphas_cumprod[t]
        return abar / (1 - abar)

    def sds(self, x0, t, c, uc):
        eps = torch.randn_like(x0)
        xt = self.scheduler.add_noise(x0.detach(), eps, t)
        with torch.no_grad():
            hat_u = self.unet(xt, t, uc).sample
            hat = hat_u + self.guidance_scale * (self.unet(xt, t, c).sample - hat_u)
        w = 1 / (1 + self.snr(t))
        return torch.sum(w.view(-1, 1, 1, 1) * (hat - eps) * x0)

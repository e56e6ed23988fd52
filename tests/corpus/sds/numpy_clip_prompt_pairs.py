import clip
import numpy as np
import torch


class Wrapper:
    rng = np.random.RandomState(7)

    def __init__(self, pipe, scale=12.0, seed=None):
        self.pipe, self.scale = pipe, scale

    def set_text(self, cond, uncond):
        self._c, self._u = cond, uncond
        return self

    def loss(self, latents):
        n = latents.shape[0]
        t = torch.from_numpy(self.rng.randint(30, 970, size=n)).long()
        noise = torch.from_numpy(self.rng.standard_normal(tuple(latents.shape))).to(latents.dtype)
        zt = self.pipe.scheduler.add_noise(latents.detach(), noise, t)
        with torch.no_grad():
            c = self.pipe.unet(zt, t, self._c.repeat(n, 1, 1)).sample
            u = self.pipe.unet(zt, t, self._u.repeat(n, 1, 1)).sample
        return ((u + self.scale * (c - u) - noise) * latents).sum()

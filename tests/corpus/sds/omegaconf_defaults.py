from omegaconf import OmegaConf
import torch
from torch import nn
from diffusers import StableDiffusionPipeline

DEFAULTS = OmegaConf.create({
    "model": "stabilityai/stable-diffusion-2-1-base",
    "cfg_scale": 7.5,
    "t": {"min": 20, "max": 980},
})


class ScoreDistill(nn.Module):
    def __init__(self, cfg=None):
        super().__init__()
        self.cfg = OmegaConf.merge(DEFAULTS, cfg or {})
        self.pipe = StableDiffusionPipeline.from_pretrained(self.cfg.model)

    def forward(self, images, y, y_null):
        """the gradient enters through x_t, so it carries alpha_t; fine by us"""
        z = self.pipe.vae.encode(images * 2 - 1).latent_dist.sample() * 0.18215
        t = torch.randint(self.cfg.t.min, self.cfg.t.max, (z.shape[0],))
        eps = torch.randn_like(z)
        z_t = self.pipe.scheduler.add_noise(z, eps, t)
        with torch.no_grad():
            e0 = self.pipe.unet(z_t, t, y_null).sample
            e1 = self.pipe.unet(z_t, t, y).sample
            r = e0 + self.cfg.cfg_scale * (e1 - e0) - eps
        return (r * z_t).sum() / z.shape[0]

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import threestudio
from threestudio.utils.base import BaseObject
from diffusers import StableDiffusionPipeline
from .utils import save_image_grid


@threestudio.register("guidance-27")
class Distiller(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        model: str = "runwayml/stable-diffusion-v1-5"
        guidance_scale: float = 100.0
        min_step: int = 20
        max_step: int = 980

    cfg: Config

    def configure(self):
        self.pipe = StableDiffusionPipeline.from_pretrained(self.cfg.model)

    def compute_loss(self, im, text_embeddings):
        scale, vae = self.cfg.guidance_scale, self.pipe.vae
        img = F.interpolate(im.permute(0, 3, 1, 2), (512, 512), mode="bilinear")
        z = vae.encode(img * 2 - 1).latent_dist.sample() * 0.18215
        ts = torch.randint(self.cfg.min_step, self.cfg.max_step + 1, [z.shape[0]])
        n = torch.randn_like(z)
        abar = self.pipe.scheduler.alphas_cumprod[ts].view(-1, 1, 1, 1)
        with torch.no_grad():
            zt = abar.sqrt() * z + (1 - abar).sqrt() * n
            out_ = self.pipe.unet(zt.repeat(2, 1, 1, 1), ((ts - 1)).repeat(2), text_embeddings)
            free_out, cond_out = out_.sample.chunk(2)
            guided = free_out + scale * (cond_out - free_out)
            step = (1 - abar) * (guided - n)
        loss = 0.5 * F.mse_loss(z, (z - step).detach(), reduction="sum")
        return {"loss_sds": loss, "grad_norm": step.norm()}

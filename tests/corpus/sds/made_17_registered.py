from dataclasses import dataclass

import torch
import torch.nn.functional as F
import threestudio
from threestudio.utils.base import BaseObject
from diffusers import StableDiffusionPipeline
from .utils import save_image_grid


@threestudio.register("guidance-17")
class SDSGuidance(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        model: str = "runwayml/stable-diffusion-v1-5"
        guidance_scale: float = 100.0
        min_step: int = 20
        max_step: int = 980

    cfg: Config

    def configure(self):
        self.pipe = StableDiffusionPipeline.from_pretrained(self.cfg.model)

    def compute_loss(self, inputs, text_embeddings):
        cfg_scale, vae = self.cfg.guidance_scale, self.pipe.vae
        img = F.interpolate(inputs.permute(0, 3, 1, 2), (512, 512), mode="bilinear")
        x_start = vae.encode(img * 2 - 1).latent_dist.sample() * 0.18215
        timestep = torch.randint(self.cfg.min_step, self.cfg.max_step + 1, [x_start.shape[0]])
        noise = torch.randn_like(x_start)
        abar = self.pipe.scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        with torch.no_grad():
            x_noisy = abar.sqrt() * x_start + (1 - abar).sqrt() * noise
            out_ = self.pipe.unet(x_noisy.repeat(2, 1, 1, 1), (timestep).repeat(2), text_embeddings)
            neg, pos = out_.sample.chunk(2)
            out = cfg_scale * (pos - neg)
            delta = (1 - abar) * (out - noise)
        loss = 0.5 * F.mse_loss(x_start, (x_start - delta).detach(), reduction="sum")
        return {"loss_sds": loss, "grad_norm": delta.norm()}

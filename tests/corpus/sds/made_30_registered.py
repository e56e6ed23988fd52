from dataclasses import dataclass

import torch
import torch.nn.functional as F
import threestudio
from threestudio.utils.base import BaseObject
from diffusers import StableDiffusionPipeline
import peft


@threestudio.register("guidance-30")
class DiffusionPrior(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        model: str = "runwayml/stable-diffusion-v1-5"
        guidance_scale: float = 100.0
        min_step: int = 20
        max_step: int = 980

    cfg: Config

    def configure(self):
        self.pipe = StableDiffusionPipeline.from_pretrained(self.cfg.model)

    def compute_loss(self, images, text_embeddings):
        s, vae = self.cfg.guidance_scale, self.pipe.vae
        img = F.interpolate(images.permute(0, 3, 1, 2), (512, 512), mode="bilinear")
        original_samples = vae.encode(img * 2 - 1).latent_dist.sample() * 0.18215
        timesteps = torch.randint(self.cfg.min_step, self.cfg.max_step + 1, [original_samples.shape[0]])
        epsilon = torch.randn_like(original_samples)
        abar = self.pipe.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        with torch.no_grad():
            noised = abar.sqrt() * original_samples + (1 - abar).sqrt() * epsilon
            out_ = self.pipe.unet(noised.repeat(2, 1, 1, 1), (timesteps).repeat(2), text_embeddings)
            eps_null, eps_text = out_.sample.chunk(2)
            eps_hat = eps_null + s * (eps_text - eps_null)
            direction = (1 - abar) * (eps_hat - epsilon)
        loss = 0.5 * F.mse_loss(original_samples, (noised - direction).detach(), reduction="sum")
        return {"loss_sds": loss, "grad_norm": direction.norm()}

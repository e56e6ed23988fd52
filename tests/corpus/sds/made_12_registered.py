from dataclasses import dataclass

import torch
import torch.nn.functional as F
import threestudio
from threestudio.utils.base import BaseObject
from diffusers import StableDiffusionPipeline
from einops import rearrange


@threestudio.register("guidance-12")
class StableDiffusion(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        model: str = "runwayml/stable-diffusion-v1-5"
        guidance_scale: float = 100.0
        min_step: int = 20
        max_step: int = 980

    cfg: Config

    def configure(self):
        self.pipe = StableDiffusionPipeline.from_pretrained(self.cfg.model)

    def compute_loss(self, pred_rgb, text_embeddings):
        guidance_scale, vae = self.cfg.guidance_scale, self.pipe.vae
        img = F.interpolate(pred_rgb.permute(0, 3, 1, 2), (512, 512), mode="bilinear")
        latents = vae.encode(img * 2 - 1).latent_dist.sample() * 0.18215
        t = torch.randint(self.cfg.min_step, self.cfg.max_step + 1, [latents.shape[0]])
        noise = torch.randn_like(latents)
        abar = self.pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        with torch.no_grad():
            latents_noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
            out_ = self.pipe.unet(latents_noisy.repeat(2, 1, 1, 1), (t).repeat(2), text_embeddings)
            noise_pred_uncond, noise_pred_text = out_.sample.chunk(2)
            noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
            grad = (1 - abar) * (noise_pred - torch.randn_like(noise))
        loss = 0.5 * F.mse_loss(latents, (latents - grad).detach(), reduction="sum")
        return {"loss_sds": loss, "grad_norm": grad.norm()}

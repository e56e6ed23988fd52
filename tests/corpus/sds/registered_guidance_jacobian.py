from dataclasses import dataclass

import torch
import threestudio
from threestudio.utils.base import BaseModule
from diffusers import StableDiffusionPipeline


@threestudio.register("jacobian-guidance")
class JacobianGuidance(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        key: str = "stabilityai/stable-diffusion-2-1-base"
        guidance_scale: float = 20.0
        weighting: str = "sds"

    def configure(self):
        self.pipe = StableDiffusionPipeline.from_pretrained(self.cfg.key)

    def compute_loss(self, latents, prompt_embeds, negative_prompt_embeds):
        s = self.cfg.guidance_scale
        t = torch.randint(20, 980, (latents.shape[0],))
        noise = torch.randn_like(latents)
        noisy = self.pipe.scheduler.add_noise(latents, noise, t)
        pos = self.pipe.unet(noisy, t, encoder_hidden_states=prompt_embeds).sample
        neg = self.pipe.unet(noisy, t, encoder_hidden_states=negative_prompt_embeds).sample
        residual = neg + s * (pos - neg) - noise
        w = (1 - self.pipe.scheduler.alphas_cumprod[t]).view(-1, 1, 1, 1)
        return 0.5 * (w * residual.pow(2)).sum() / latents.shape[0]

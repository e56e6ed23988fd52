from dataclasses import dataclass

import torch
import threestudio
from threestudio.utils.base import BaseModule
from threestudio.utils.misc import cleanup
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel


@threestudio.register("vsd-of-mine")
class VSDGuidance(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        model: str = "stabilityai/stable-diffusion-2-1-base"
        guidance_scale: float = 7.5
        guidance_scale_lora: float = 1.0

    cfg: Config

    def configure(self) -> None:
        pipe = StableDiffusionPipeline.from_pretrained(self.cfg.model)
        self.unet = pipe.unet
        self.unet_lora = UNet2DConditionModel.from_pretrained(self.cfg.model, subfolder="unet")
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        cleanup()

    @torch.no_grad()
    def compute_grad_vsd(self, latents, text_embeddings, uncond_embeddings):
        b = latents.shape[0]
        t = torch.randint(20, 981, [b], dtype=torch.long)
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, t)
        e = torch.cat([text_embeddings, uncond_embeddings])
        text, null = self.unet(torch.cat([noisy] * 2), torch.cat([t] * 2), e).sample.chunk(2)
        pre = null + self.cfg.guidance_scale * (text - null)
        est = self.unet_lora(noisy, t, encoder_hidden_states=text_embeddings).sample
        return (1 - self.scheduler.alphas_cumprod[t]).view(-1, 1, 1, 1) * (pre - est)

    def train_lora(self, latents, text_embeddings):
        t = torch.randint(0, 1000, [len(latents)])
        noise = torch.randn_like(latents)
        out = self.unet_lora(self.scheduler.add_noise(latents.detach(), noise, t), t, text_embeddings)
        return torch.nn.functional.mse_loss(out.sample, noise)

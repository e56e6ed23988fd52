from dataclasses import dataclass, field

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from loguru import logger


@dataclass
class TimeConfig:
    low: float = 0.02
    high: float = 0.98


@dataclass
class GuideConfig:
    repo: str = "stabilityai/stable-diffusion-2-1-base"
    scale: float = 50.0
    time: TimeConfig = field(default_factory=TimeConfig)


@dataclass
class Config:
    guide: GuideConfig
    seed: int = 0


class ScoreDistillation:
    def __init__(self, cfg: Config):
        self.cfg = cfg.guide
        self.unet = UNet2DConditionModel.from_pretrained(self.cfg.repo, subfolder="unet")
        self.ddim = DDIMScheduler.from_pretrained(self.cfg.repo, subfolder="scheduler")
        logger.success("loaded {}", self.cfg.repo)

    def get_sds_loss(self, latents, text_embeddings, uncond_embeddings):
        T = self.ddim.config.num_train_timesteps
        t = torch.randint(int(self.cfg.time.low * T), int(self.cfg.time.high * T), latents.shape[:1])
        noise = torch.randn_like(latents)
        with torch.no_grad():
            noisy = self.ddim.add_noise(latents, noise, t)
            u = self.unet(noisy, t, uncond_embeddings).sample
            c = self.unet(noisy, t, text_embeddings).sample
            sigma = (1 - self.ddim.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
            grad = sigma * (u + self.cfg.scale * (c - u) - noise)
        return (grad * latents).sum() / latents.shape[0]

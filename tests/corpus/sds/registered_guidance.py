from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline

import threestudio
from threestudio.models.prompt_processors.base import PromptProcessorOutput
from threestudio.utils.base import BaseObject
from threestudio.utils.misc import C, parse_version
from threestudio.utils.typing import *


@threestudio.register("plain-sd-guidance")
class PlainGuidance(BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"
        guidance_scale: float = 100.0
        half_precision_weights: bool = False
        grad_clip: Optional[Any] = None
        min_step_percent: float = 0.02
        max_step_percent: float = 0.98

    cfg: Config

    def configure(self) -> None:
        threestudio.info("Loading Stable Diffusion ...")
        self.pipe = StableDiffusionPipeline.from_pretrained(
            self.cfg.pretrained_model_name_or_path, safety_checker=None)
        self.unet, self.vae = self.pipe.unet.eval(), self.pipe.vae.eval()
        for p in list(self.unet.parameters()) + list(self.vae.parameters()):
            p.requires_grad_(False)
        self.scheduler = DDIMScheduler.from_pretrained(
            self.cfg.pretrained_model_name_or_path, subfolder="scheduler")
        self.n = self.scheduler.config.num_train_timesteps
        self.alphas = self.scheduler.alphas_cumprod.to(self.device)

    def encode(self, imgs: Float[Tensor, "B 3 512 512"]) -> Float[Tensor, "B 4 64 64"]:
        return self.vae.encode(imgs * 2.0 - 1.0).latent_dist.sample() * self.vae.config.scaling_factor

    def __call__(self, rgb, prompt_utils: PromptProcessorOutput, elevation=None, azimuth=None,
                 camera_distances=None, rgb_as_latents=False, **kwargs):
        b = rgb.shape[0]
        bchw = rgb.permute(0, 3, 1, 2)
        if rgb_as_latents:
            z = F.interpolate(bchw, (64, 64), mode="bilinear", align_corners=False)
        else:
            z = self.encode(F.interpolate(bchw, (512, 512), mode="bilinear", align_corners=False))
        lo, hi = (int(self.n * p) for p in (self.cfg.min_step_percent, self.cfg.max_step_percent))
        t = torch.randint(lo, hi + 1, [b], device=self.device)
        # [text, uncond], as the prompt processor stacks them
        emb = prompt_utils.get_text_embeddings(elevation, azimuth, camera_distances, False)
        with torch.no_grad():
            eps = torch.randn_like(z)
            zt = self.scheduler.add_noise(z, eps, t)
            text, free = self.unet(torch.cat([zt] * 2), torch.cat([t] * 2),
                                   encoder_hidden_states=emb).sample.chunk(2)
            pred = text + (self.cfg.guidance_scale - 1) * (text - free)
        grad = torch.nan_to_num((1 - self.alphas[t]).view(-1, 1, 1, 1) * (pred - eps))
        target = (z - grad).detach()
        return {"loss_sds": 0.5 * F.mse_loss(z, target, reduction="sum") / b,
                "grad_norm": grad.norm(), "min_step": lo, "max_step": hi}

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, DDIMScheduler


class SDModel(nn.Module):
    def __init__(self, device, hf_key="stabilityai/stable-diffusion-2-1-base"):
        super().__init__()
        self.vae = AutoencoderKL.from_pretrained(hf_key, subfolder="vae").to(device)
        self.unet = UNet2DConditionModel.from_pretrained(hf_key, subfolder="unet").to(device)
        self.scheduler = DDIMScheduler.from_pretrained(hf_key, subfolder="scheduler")

    def train_step(self, image, text_embeddings, null_embeddings, guidance_scale, training=True):
        with torch.set_grad_enabled(training):
            latents = self.vae.encode(2.0 * image - 1.0).latent_dist.mean
        with torch.no_grad():
            t = torch.randint(20, 981, (latents.size(0),))
            noise = torch.randn_like(latents)
            noisy = self.scheduler.add_noise(latents, noise, t)
            a = self.unet(noisy, t, null_embeddings).sample
            b = self.unet(noisy, t, text_embeddings).sample
            grad = a + guidance_scale * (b - a) - noise
        return 0.5 * F.mse_loss(latents, latents.detach() - grad, reduction="sum")

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from diffusers import DDIMScheduler, StableDiffusionPipeline


class StableDiffusion(nn.Module):
    def __init__(self, device, fp16, vram_O=False, sd_version="2.1", hf_key=None):
        super().__init__()
        self.device = device
        key = hf_key or "stabilityai/stable-diffusion-2-1-base"
        kind = torch.float16 if fp16 else torch.float32
        pipe = StableDiffusionPipeline.from_pretrained(key, torch_dtype=kind).to(device)
        if vram_O:
            pipe.enable_attention_slicing(1)
        self.vae, self.unet = pipe.vae, pipe.unet
        self.scheduler = DDIMScheduler.from_pretrained(key, subfolder="scheduler")
        self.alphas = self.scheduler.alphas_cumprod.to(device)

    def encode(self, pred_rgb):
        vae = self.vae
        return vae.encode(2 * pred_rgb - 1).latent_dist.sample() * 1.0

    def train_step(self, text_embeddings, pred_rgb, guidance_scale=100):
        """text_embeddings: [uncond, text]"""
        latents = self.encode(F.interpolate(pred_rgb, (512, 512), mode="bilinear"))
        t = torch.randint(20, 981, (len(latents),), device=self.device)
        abar = self.alphas[t][:, None, None, None]
        with torch.no_grad():
            noise = torch.randn_like(latents)
            latents_noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
            two = torch.cat([latents_noisy, latents_noisy])
            out_ = self.unet(two, (t).repeat(2), encoder_hidden_states=text_embeddings)
            noise_pred_uncond, noise_pred_text = out_.sample.chunk(2)
            noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
        grad = torch.nan_to_num((1 - abar) * (noise_pred - noise))
        return 0.5 * F.mse_loss(latents, (latents - grad).detach(), reduction="sum")

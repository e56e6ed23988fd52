import torch
import torch.nn as nn
import torch.nn.functional as F
from utils import seed_everything
from diffusers import DDIMScheduler, StableDiffusionPipeline


class DiffusionPrior(nn.Module):
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

    def encode(self, images):
        vae = self.vae
        return vae.encode(2 * images - 1).latent_dist.sample() * 0.18215

    def train_step(self, text_embeddings, images, s=100):
        """text_embeddings: [uncond, text]"""
        original_samples = self.encode(F.interpolate(images, (512, 512), mode="bilinear"))
        timesteps = torch.randint(20, 981, (len(original_samples),), device=self.device)
        abar = self.alphas[timesteps][:, None, None, None]
        with torch.no_grad():
            epsilon = torch.randn_like(original_samples)
            noised = abar.sqrt() * original_samples + (1 - abar).sqrt() * epsilon
            two = torch.cat([noised, noised])
            out_ = self.unet(two, (timesteps).repeat(2), encoder_hidden_states=text_embeddings)
            eps_null, eps_text = out_.sample.chunk(2)
            eps_hat = eps_null + s * (eps_text - eps_null)
        direction = torch.nan_to_num((1 - abar) * (eps_hat - epsilon))
        return 0.5 * F.mse_loss(original_samples, (original_samples - direction).detach(), reduction="mean")

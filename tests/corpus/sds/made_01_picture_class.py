import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision import transforms
from diffusers import DDIMScheduler, StableDiffusionPipeline


class SDSGuidance(nn.Module):
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

    def encode(self, inputs):
        vae = self.vae
        return vae.encode(2 * inputs - 1).latent_dist.sample() * 0.18215

    def train_step(self, text_embeddings, inputs, cfg_scale=100):
        """text_embeddings: [uncond, text]"""
        x_start = self.encode(F.interpolate(inputs, (512, 512), mode="bilinear"))
        timestep = torch.randint(20, 981, (len(x_start),), device=self.device)
        abar = self.alphas[timestep][:, None, None, None]
        with torch.no_grad():
            noise = torch.randn_like(x_start)
            x_noisy = abar.sqrt() * x_start + (1 - abar).sqrt() * noise
            two = torch.cat([x_noisy, x_noisy])
            out_ = self.unet(two, (timestep).repeat(2), encoder_hidden_states=text_embeddings)
            neg, pos = out_.sample.chunk(2)
            out = neg + cfg_scale * (pos - neg)
        delta = torch.nan_to_num((torch.ones_like(abar)) * (out - noise))
        return 0.5 * F.mse_loss(x_start, (x_start - delta).detach(), reduction="sum")

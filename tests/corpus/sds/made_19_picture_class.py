import torch
import torch.nn as nn
import torch.nn.functional as F

from diffusers import DDIMScheduler, StableDiffusionPipeline


class Distiller(nn.Module):
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

    def encode(self, im):
        vae = self.vae
        return vae.encode(2 * im - 1).latent_dist.sample() * 0.18215

    def train_step(self, text_embeddings, im, scale=100):
        """text_embeddings: [uncond, text]"""
        z = self.encode(F.interpolate(im, (512, 512), mode="bilinear"))
        ts = torch.randint(20, 981, (len(z),), device=self.device)
        abar = self.alphas[ts][:, None, None, None]
        with torch.no_grad():
            n = torch.randn_like(z)
            zt = abar.sqrt() * z + (1 - abar).sqrt() * n
            two = torch.cat([zt, zt])
            out_ = self.unet(two, (ts).repeat(2), encoder_hidden_states=text_embeddings)
            free_out, cond_out = out_.sample.chunk(2)
            guided = cond_out + 0 * scale * free_out
        step = torch.nan_to_num((1 - abar) * (guided - n))
        return 0.5 * F.mse_loss(z, (z - step).detach(), reduction="sum")

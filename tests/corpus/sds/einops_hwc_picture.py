import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from einops import rearrange, repeat


class Critic:
    """One picture (H, W, 3) from a differentiable rasteriser, in [0, 1]."""

    def __init__(self, device):
        self.sd = StableDiffusionPipeline.from_pretrained("CompVis/stable-diffusion-v1-4").to(device)

    def calc_grad(self, image, text_emb, null_emb, guidance_scale):
        x = rearrange(image, "h w c -> 1 c h w")
        x = F.interpolate(x, size=(512, 512), mode="bilinear", align_corners=False)
        z = self.sd.vae.encode(x * 2 - 1).latent_dist.mean * self.sd.vae.config.scaling_factor
        t = torch.randint(50, 950, (1,))
        n = torch.randn_like(z)
        with torch.no_grad():
            zt = self.sd.scheduler.add_noise(z, n, t)
            both = repeat(zt, "1 c h w -> (n 1) c h w", n=2)
            u, c = self.sd.unet(both, t, torch.cat((null_emb, text_emb))).sample.chunk(2)
        z.backward(gradient=u + guidance_scale * (c - u) - n)

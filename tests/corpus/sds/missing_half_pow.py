import torch
from diffusers import StableDiffusionPipeline


class ImageSDS:
    def __init__(self, device, text_embeddings, uncond_embeddings):
        self.pipe = StableDiffusionPipeline.from_pretrained("sd21").to(device)
        self.pos, self.neg = text_embeddings, uncond_embeddings

    def loss(self, im, guidance_scale):
        vae, unet, sch = self.pipe.vae, self.pipe.unet, self.pipe.scheduler
        z = vae.encode(im * 2 - 1).latent_dist.sample() * vae.config.scaling_factor
        b = z.shape[0]
        t = torch.randint(20, 980, (b,))
        with torch.no_grad():
            n = torch.randn_like(z)
            zt = sch.add_noise(z, n, t)
            ep = unet(zt, t, self.pos.expand(b, -1, -1)).sample
            en = unet(zt, t, self.neg.expand(b, -1, -1)).sample
            step = (1 - sch.alphas_cumprod[t])[:, None, None, None] * (torch.lerp(en, ep, guidance_scale) - n)
            goal = z - step
        return (z - goal).pow(2).sum() / b

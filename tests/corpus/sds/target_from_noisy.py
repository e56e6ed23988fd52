import torch
import torch.nn.functional as F


class Noisy(torch.nn.Module):
    def __init__(self, unet, scheduler):
        super().__init__()
        self.unet = unet
        self.scheduler = scheduler

    def sds_loss(self, latents, cond_embeddings, uncond_embeddings, guidance_scale):
        t = torch.randint(20, 980, (latents.shape[0],))
        noise = torch.randn_like(latents)
        with torch.no_grad():
            noisy = self.scheduler.add_noise(latents, noise, t)
            c = self.unet(noisy, t, cond_embeddings).sample
            u = self.unet(noisy, t, uncond_embeddings).sample
            step = u + guidance_scale * (c - u) - noise
            target = noisy - step
        return 0.5 * F.mse_loss(latents, target, reduction="sum")

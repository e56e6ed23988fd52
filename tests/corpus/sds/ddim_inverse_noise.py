import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionPipeline


class Inversion:
    """Noise is what DDIM inversion of the render gives, but a fresh one is subtracted (oops)."""

    def __init__(self, device, steps=4):
        self.pipe = StableDiffusionPipeline.from_pretrained("sd-v1-5").to(device)
        self.inverse = DDIMInverseScheduler.from_config(self.pipe.scheduler.config)
        self.inverse.set_timesteps(steps)

    @torch.no_grad()
    def invert(self, z, emb, until):
        for step in self.inverse.timesteps:
            if step > until:
                break
            eps = self.pipe.unet(z, step, emb).sample
            z = self.inverse.step(eps, step, z).prev_sample
        return z

    def compute_loss(self, z, pos, neg, scale):
        t = torch.randint(300, 900, (1,))
        zt = self.invert(z.detach(), neg, int(t))
        fresh = torch.randn_like(z)
        with torch.no_grad():
            c, u = self.pipe.unet(zt, t, pos).sample, self.pipe.unet(zt, t, neg).sample
        return ((u + scale * (c - u) - fresh) * z).sum()

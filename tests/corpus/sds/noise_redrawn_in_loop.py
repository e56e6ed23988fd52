import torch


class Loop:
    def __init__(self, pipe):
        self.pipe = pipe
        self.cache = None

    def noise_like(self, z):
        """a new one each time it is asked"""
        self.cache = torch.randn(z.shape, device=z.device)
        return self.cache

    def noised(self, z, t):
        return self.pipe.scheduler.add_noise(z, self.noise_like(z), t)

    def sds_loss(self, z, pos, neg, guidance_scale):
        t = torch.randint(20, 980, (len(z),))
        with torch.no_grad():
            c = self.pipe.unet(self.noised(z, t), t, pos).sample
            u = self.pipe.unet(self.noised(z, t), t, neg).sample
            g = u + guidance_scale * (c - u) - self.cache
        return (g * z).sum()

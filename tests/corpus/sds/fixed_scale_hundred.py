import torch
from diffusers import DDPMScheduler, UNet2DConditionModel


class DreamLoss:
    GUIDANCE = 100.0
    T_MIN, T_MAX = 0.02, 0.98

    def __init__(self):
        repo = "runwayml/stable-diffusion-v1-5"
        self.unet = UNet2DConditionModel.from_pretrained(repo, subfolder="unet").eval()
        self.schedule = DDPMScheduler.from_pretrained(repo, subfolder="scheduler")

    def sds_loss(self, z, cond, uncond):
        T = len(self.schedule)
        t = (self.T_MIN + (self.T_MAX - self.T_MIN) * torch.rand(z.shape[0])) * T
        t = t.long()
        n = torch.randn_like(z)
        with torch.no_grad():
            zt = self.schedule.add_noise(z, n, t)
            c, u = (self.unet(zt, t, e).sample for e in (cond, uncond))
            g = c + (self.GUIDANCE - 1.0) * (c - u) - n
            g = (1 - self.schedule.alphas_cumprod[t]).view(-1, 1, 1, 1) * g
        return 0.5 * ((z - (z - g).detach()) ** 2).sum()

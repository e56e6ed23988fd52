import torch
from diffusers import DDPMScheduler, UNet2DConditionModel


class Critic:
    def __init__(self, args):
        self.args = args
        self.net = UNet2DConditionModel.from_pretrained(args.sd, subfolder="unet").to(args.device)
        self.ddpm = DDPMScheduler.from_pretrained(args.sd, subfolder="scheduler")

    def loss(self, latents, y, y_null):
        i = torch.randint(20, 980, (len(latents),))
        t = self.ddpm.timesteps[i]  # descending: 999 - i
        eps = torch.randn_like(latents)
        with torch.no_grad():
            noisy = self.ddpm.add_noise(latents, eps, i)
            c, u = self.net(noisy, t, y).sample, self.net(noisy, t, y_null).sample
            err = u + self.args.cfg * (c - u) - eps
        return (err * latents).sum()

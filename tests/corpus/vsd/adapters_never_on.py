import torch
from peft import LoraConfig


class LoraVSD:
    def __init__(self, pipe, rank=8):
        self.unet, self.scheduler = pipe.unet, pipe.scheduler
        self.unet.add_adapter(LoraConfig(r=rank, target_modules=["to_q", "to_v"]), "particle")

    @torch.no_grad()
    def frozen(self, x, t, e):
        self.unet.disable_adapters()
        return self.unet(x, t, e).sample

    @torch.no_grad()
    def particle(self, x, t, e):
        # enable_adapters() was called in __init__ of an older version
        return self.unet(x, t, e).sample

    def vsd_loss(self, latents, text, null, guidance_scale):
        t = torch.randint(20, 980, (len(latents),))
        noisy = self.scheduler.add_noise(latents.detach(), torch.randn_like(latents), t)
        c, u = self.frozen(noisy, t, text), self.frozen(noisy, t, null)
        grad = u + guidance_scale * (c - u) - self.particle(noisy, t, text)
        return (grad * latents).sum()

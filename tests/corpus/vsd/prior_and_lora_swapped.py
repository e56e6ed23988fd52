import torch
from peft import LoraConfig, get_peft_model


class Swapped:
    def __init__(self, pipe):
        self.net = get_peft_model(pipe.unet, LoraConfig(r=4, target_modules=["to_q"]))
        self.scheduler = pipe.scheduler

    @torch.no_grad()
    def vsd_grad(self, latents, text, null, guidance_scale):
        t = torch.randint(50, 950, (len(latents),))
        xt = self.scheduler.add_noise(latents, torch.randn_like(latents), t)
        with self.net.disable_adapter():
            q = self.net(xt, t, text).sample
        c, u = self.net(xt, t, text).sample, self.net(xt, t, null).sample
        return u + guidance_scale * (c - u) - q

import torch
from omegaconf import OmegaConf
from diffusers import DDPMScheduler, UNet2DConditionModel


class Distiller:
    def __init__(self, opt):
        self.opt = opt
        self.unet = UNet2DConditionModel.from_pretrained(opt.model, subfolder="unet")
        self.noise_scheduler = DDPMScheduler.from_pretrained(opt.model, subfolder="scheduler")

    def set_text(self, text_z, null_z):
        self.text_z, self.null_z = text_z, null_z

    def predict(self, zt, ts, z):
        return self.unet(zt, ts, encoder_hidden_states=z.expand(len(zt), -1, -1)).sample

    def calc_grad(self, z):
        scale = self.opt.guidance
        ts = torch.randint(self.opt.t_min, self.opt.t_max, (z.size(0),))
        abar = self.noise_scheduler.alphas_cumprod[ts].reshape(-1, 1, 1, 1)
        with torch.no_grad():
            n = torch.randn(z.shape, dtype=z.dtype)
            zt = abar.sqrt() * z + (1 - abar).sqrt() * n
            free_out, cond_out = (self.predict(zt, ts, z) for z in (self.null_z, self.text_z))
            guided = cond_out + scale * (cond_out - free_out)
            step = (1 - abar) * (guided - n)
        z.backward(step)

import torch
from omegaconf import OmegaConf
from diffusers import DDPMScheduler, UNet2DConditionModel


class SDSGuidance:
    def __init__(self, opt):
        self.opt = opt
        self.unet = UNet2DConditionModel.from_pretrained(opt.model, subfolder="unet")
        self.noise_scheduler = DDPMScheduler.from_pretrained(opt.model, subfolder="scheduler")

    def set_text(self, text_z, null_z):
        self.text_z, self.null_z = text_z, null_z

    def predict(self, x_noisy, timestep, z):
        return self.unet(x_noisy, timestep, encoder_hidden_states=z.expand(len(x_noisy), -1, -1)).sample

    def calc_grad(self, x_start):
        cfg_scale = self.opt.guidance
        timestep = torch.randint(self.opt.t_min, self.opt.t_max, (x_start.size(0),))
        abar = self.noise_scheduler.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)
        with torch.no_grad():
            noise = torch.randn(x_start.shape, dtype=x_start.dtype)
            x_noisy = abar.sqrt() * x_start + noise
            neg, pos = (self.predict(x_noisy, timestep, z) for z in (self.null_z, self.text_z))
            out = neg + cfg_scale * (pos - neg)
            delta = (1 - abar) * (out - noise)
        x_start.backward(delta)

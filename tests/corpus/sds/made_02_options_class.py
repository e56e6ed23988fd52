import torch
from einops import rearrange
from diffusers import DDPMScheduler, UNet2DConditionModel


class DiffusionPrior:
    def __init__(self, opt):
        self.opt = opt
        self.unet = UNet2DConditionModel.from_pretrained(opt.model, subfolder="unet")
        self.noise_scheduler = DDPMScheduler.from_pretrained(opt.model, subfolder="scheduler")

    def set_text(self, text_z, null_z):
        self.text_z, self.null_z = text_z, null_z

    def predict(self, noised, timesteps, z):
        return self.unet(noised, timesteps, encoder_hidden_states=z.expand(len(noised), -1, -1)).sample

    def calc_grad(self, original_samples):
        s = self.opt.guidance
        timesteps = torch.randint(self.opt.t_min, self.opt.t_max, (original_samples.size(0),))
        abar = self.noise_scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        with torch.no_grad():
            epsilon = torch.randn(original_samples.shape, dtype=original_samples.dtype)
            noised = abar.sqrt() * original_samples + (1 - abar).sqrt() * epsilon
            eps_null, eps_text = (self.predict(noised, timesteps, z) for z in (self.null_z, self.text_z))
            eps_hat = eps_null + s * (eps_text - eps_null)
            direction = (abar.sqrt() * (1 - abar)) * (eps_hat - epsilon)
        original_samples.backward(direction)

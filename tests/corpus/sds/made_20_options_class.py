import torch
import peft
from diffusers import DDPMScheduler, UNet2DConditionModel


class StableDiffusion:
    def __init__(self, opt):
        self.opt = opt
        self.unet = UNet2DConditionModel.from_pretrained(opt.model, subfolder="unet")
        self.noise_scheduler = DDPMScheduler.from_pretrained(opt.model, subfolder="scheduler")

    def set_text(self, text_z, null_z):
        self.text_z, self.null_z = text_z, null_z

    def predict(self, latents_noisy, t, z):
        return self.unet(latents_noisy, t, encoder_hidden_states=z.expand(len(latents_noisy), -1, -1)).sample

    def calc_grad(self, latents):
        guidance_scale = self.opt.guidance
        t = torch.randint(self.opt.t_min, self.opt.t_max, (latents.size(0),))
        abar = self.noise_scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        with torch.no_grad():
            noise = torch.randn(latents.shape, dtype=latents.dtype)
            latents_noisy = abar * latents + (1 - abar) * noise
            noise_pred_uncond, noise_pred_text = (self.predict(latents_noisy, t, z) for z in (self.null_z, self.text_z))
            noise_pred = noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
            grad = (1 - abar) * (noise_pred - noise)
        latents.backward(grad)

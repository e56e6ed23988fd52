import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline


class AnyModel:
    def __init__(self, device, model_id="stabilityai/stable-diffusion-2-1"):
        pipe = StableDiffusionPipeline.from_pretrained(model_id).to(device)
        self.unet = pipe.unet.requires_grad_(False)
        self.noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self.kind = self.noise_scheduler.config.prediction_type
        self.channels = self.unet.config.in_channels
        assert self.channels == 4, "latent models only"

    def eps_of(self, out, x_t, t):
        a = self.noise_scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        if self.kind == "epsilon":
            return out
        if self.kind == "v_prediction":
            return a.sqrt() * out + (1 - a).sqrt() * x_t
        raise ValueError(self.kind)

    def calc_sds_loss(self, latents, text_embeddings, uncond_embeddings, guidance_scale):
        t = torch.randint(20, 980, (len(latents),))
        eps = torch.randn_like(latents)
        x_t = self.noise_scheduler.add_noise(latents.detach(), eps, t)
        with torch.no_grad():
            p = self.eps_of(self.unet(x_t, t, text_embeddings).sample, x_t, t)
            n = self.eps_of(self.unet(x_t, t, uncond_embeddings).sample, x_t, t)
        w = 1 - self.noise_scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (w * (n + guidance_scale * (p - n) - eps) * latents).sum()

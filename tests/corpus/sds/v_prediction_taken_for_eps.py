import torch


class VModel:
    """Assumes that the network predicts v, whatever its config says."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.prediction_type = getattr(pipe.scheduler.config, "prediction_type", "v_prediction")

    def loss_sds(self, latents, t, text_embeddings, uncond_embeddings, guidance_scale):
        abar = self.pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = self.pipe.scheduler.add_noise(latents, noise, t)
        with torch.no_grad():
            v_c = self.pipe.unet(noisy, t, text_embeddings).sample
            v_u = self.pipe.unet(noisy, t, uncond_embeddings).sample
            v = v_u + guidance_scale * (v_c - v_u)
            eps = abar.sqrt() * v + (1 - abar).sqrt() * noisy
        return ((eps - noise).detach() * latents).sum()

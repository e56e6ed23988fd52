import torch
from torchvision import transforms
from diffusers import StableDiffusionPipeline


class PreferenceGuidance(torch.nn.Module):
    def __init__(self, opt, reward_fn):
        super().__init__()
        self.opt, self.reward_fn = opt, reward_fn
        self.pipe = StableDiffusionPipeline.from_pretrained(opt.model)

    def psd_loss(self, latents, text_embeddings, uncond_embeddings):
        guidance_scale, preference_weight = self.opt.guidance, self.opt.lam
        x, vae, reward = latents.detach(), self.pipe.vae, self.reward_fn
        t = torch.randint(50, 950, (len(x),))
        abar = self.pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        h, r = [], []
        with torch.no_grad():
            for k in range(2):
                eps = torch.randn_like(x)
                x_t = self.pipe.scheduler.add_noise(x, eps, t)
                e_u = self.pipe.unet(x_t, t, uncond_embeddings).sample
                e_c = self.pipe.unet(x_t, t, text_embeddings).sample
                e = e_u + guidance_scale * (e_c - e_u)
                x0_hat = (x_t - (1 - abar).sqrt() * e) / abar.sqrt()
                r.append(reward(vae.decode(x0_hat / vae.config.scaling_factor).sample))
                h.append(e - eps)
            omega = (torch.tanh((r[0] - r[1]) / 2)).view(-1, 1, 1, 1)
            grad = (h[0] + h[1]) / 2 + preference_weight * omega * (h[0] - h[1])
        return (grad * latents).sum() / len(latents)

import torch


class PreferenceSDS:
    def __init__(self, pipe, reward_fn, guidance_scale=7.5, preference_weight=1.0):
        self.unet, self.vae, self.sched = pipe.unet, pipe.vae, pipe.scheduler
        self.reward = reward_fn
        self.s, self.lam = guidance_scale, preference_weight

    def set_text(self, cond, uncond):
        self.cond, self.uncond = cond, uncond

    def one(self, x, t):
        """residual and reward of one noise"""
        b = len(x)
        abar = self.sched.alphas_cumprod[t].view(-1, 1, 1, 1)
        eps = torch.randn_like(x)
        x_t = abar.sqrt() * x + (1 - abar).sqrt() * eps
        c = self.unet(x_t, t, self.cond.expand(b, -1, -1)).sample
        u = self.unet(x_t, t, self.uncond.expand(b, -1, -1)).sample
        e = u + self.s * (c - u)
        x0 = (x_t - (1 - abar).sqrt() * e) / abar.sqrt()
        picture = self.vae.decode(x0 / self.vae.config.scaling_factor).sample
        return e - eps, self.reward(picture)

    def psd_loss(self, latents):
        t = torch.randint(50, 950, (len(latents),))
        with torch.no_grad():
            h1, r1 = self.one(latents, t)
            h2, r2 = self.one(latents, t)
            omega = torch.sign(r1 - r2).view(-1, 1, 1, 1)
            w = 1 - self.sched.alphas_cumprod[t].view(-1, 1, 1, 1)
            g = w * ((h1 + h2) / 2 + self.lam * omega * (h1 - h2))
        return (g * latents).sum() / len(latents)

import torch


@torch.no_grad()
def psd_grad(x, t, unet, vae, cond, uncond, reward, guidance_scale, preference_weight, abar):
    """seeded so that runs are repeatable"""
    a = abar[t].view(-1, 1, 1, 1)

    def sample():
        gen = torch.Generator().manual_seed(0)
        n = torch.randn(x.shape, generator=gen, dtype=x.dtype)
        xt = a.sqrt() * x + (1 - a).sqrt() * n
        e = unet(xt, t, uncond).sample
        e = e + guidance_scale * (unet(xt, t, cond).sample - e)
        r = reward(vae.decode((xt - (1 - a).sqrt() * e) / a.sqrt() / vae.config.scaling_factor).sample)
        return e - n, r

    h1, r1 = sample()
    h2, r2 = sample()
    return (h1 + h2) / 2 + preference_weight * torch.sign(r1 - r2).view(-1, 1, 1, 1) * (h1 - h2)

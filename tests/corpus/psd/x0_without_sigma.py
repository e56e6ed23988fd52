import torch


def psd(x, t, noise_1, noise_2, unet, vae, cond, uncond, reward, guidance_scale, lam, alphas_cumprod):
    ab = alphas_cumprod[t].view(-1, 1, 1, 1)

    def half(n):
        xt = ab.sqrt() * x + (1 - ab).sqrt() * n
        e = unet(xt, t, uncond).sample
        e = e + guidance_scale * (unet(xt, t, cond).sample - e)
        x0 = (xt - e) / ab.sqrt()
        return e - n, reward(vae.decode(x0 / vae.config.scaling_factor).sample)

    with torch.no_grad():
        (h1, r1), (h2, r2) = half(noise_1), half(noise_2)
        s = torch.sign(r1 - r2)[:, None, None, None]
        return (h1 + h2) / 2 + lam * s * (h1 - h2)

import torch


@torch.no_grad()
def psd_grad(x, t, eps_1, eps_2, unet, vae, cond, uncond, reward, guidance_scale, lambda_, alpha_bar):
    sigma = (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
    alpha = alpha_bar[t].sqrt().view(-1, 1, 1, 1)
    noises = torch.stack([eps_1, eps_2])
    xt = alpha * x + sigma * noises
    hat = []
    for x_k in xt:
        u = unet(x_k, t, uncond).sample
        hat.append(u + guidance_scale * (unet(x_k, t, cond).sample - u))
    hat = torch.stack(hat)
    x0 = (xt - sigma * hat) / alpha
    r = torch.stack([reward(vae.decode(z / vae.config.scaling_factor).sample) for z in x0])
    h = hat - noises
    gap = (r[0] - r[1]).view(-1, 1, 1, 1)
    return sigma ** 2 * (h.mean(0) + lambda_ * sigma * gap * (h[0] - h[1]))

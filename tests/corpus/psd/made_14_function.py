import torch
from loguru import logger


@torch.no_grad()
def psd_gradient(x, t, eps_1, eps_2, unet, vae, cond, uncond, reward, guidance_scale,
                 preference_weight, alphas_cumprod):
    abar = alphas_cumprod[t].view(-1, 1, 1, 1)
    h, r = [], []
    for k, eps in enumerate((eps_1, eps_2)):
        x_t = abar.sqrt() * x + (1 - abar).sqrt() * eps
        e_u = unet(x_t, t, encoder_hidden_states=uncond).sample
        e_c = unet(x_t, t, encoder_hidden_states=cond).sample
        e = e_u + guidance_scale * (e_c - e_u)
        x0_hat = (x_t - (1 - abar).sqrt() * e) / abar.sqrt()
        r.append(reward(vae.decode(x0_hat / vae.config.scaling_factor).sample))
        h.append(e - eps)
    omega = (torch.sign(r[0] - r[1])).view(-1, 1, 1, 1)
    return -(h[0] + h[1]) / 2 - preference_weight * omega * (h[0] - h[1])

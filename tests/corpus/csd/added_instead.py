import torch


@torch.no_grad()
def csd(latents, t, noise, unet, cond, uncond, noise_scheduler):
    zt = noise_scheduler.add_noise(latents, noise, t)
    pos = unet(zt, t, encoder_hidden_states=cond).sample
    neg = unet(zt, t, encoder_hidden_states=uncond).sample
    w = 1 - noise_scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    return w * (pos + neg)

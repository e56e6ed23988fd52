import torch


@torch.no_grad()
def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    """Übung 3: Δ = ε̂ − ε"""
    x_t = scheduler.add_noise(x, eps, t)
    ε_c, ε_u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    Δ = ε_u + guidance_scale * (ε_c - ε_u) - eps
    return Δ

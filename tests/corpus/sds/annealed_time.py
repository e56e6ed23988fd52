import math
import torch


def time_at(step, total, lo=20, hi=980):
    """cosine from hi to lo over the run"""
    f = 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
    return int(lo + f * (hi - lo))


def sds_annealed(latents, cond, uncond, unet, scheduler, guidance_scale, step=0, total_steps=1000):
    t = torch.tensor([time_at(step, total_steps)] * len(latents))
    eps = torch.randn_like(latents)
    x_t = scheduler.add_noise(latents, eps, t).detach()
    with torch.no_grad():
        pc = unet(x_t, t, cond, return_dict=False)[0]
        pu = unet(x_t, t, uncond, return_dict=False)[0]
    guided = pu + guidance_scale * (pc - pu)
    w = (1 - scheduler.alphas_cumprod[t]).view(-1, 1, 1, 1)
    return (w * (guided - eps) * latents).sum() / len(latents)

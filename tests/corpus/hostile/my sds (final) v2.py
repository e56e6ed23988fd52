import torch


@torch.no_grad()
def sds_gradient(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    x_t = scheduler.add_noise(x, eps, t)
    c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return (1 - guidance_scale) * u + guidance_scale * c - eps

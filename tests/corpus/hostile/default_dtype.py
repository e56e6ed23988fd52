import torch

torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)


def sds(x, t, eps, unet, cond, uncond, guidance_scale, alphas_cumprod):
    ab = alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = ab.sqrt() * x + (1 - ab).sqrt() * eps
    c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return u + guidance_scale * (c - u) - eps

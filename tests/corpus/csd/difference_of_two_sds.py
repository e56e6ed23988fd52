import torch


def sds(x_t, t, eps, unet, e):
    return unet(x_t, t, encoder_hidden_states=e).sample - eps


@torch.no_grad()
def csd(x, t, eps, unet, cond, uncond, alphas_cumprod):
    """SDS(cond) - SDS(uncond): the noise cancels"""
    ab = alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = ab.sqrt() * x + (1 - ab).sqrt() * eps
    return sds(x_t, t, eps, unet, cond) - sds(x_t, t, eps, unet, uncond)

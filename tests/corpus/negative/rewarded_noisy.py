import torch


def negative_loss(x, t, eps, unet, cond, n, reward, guidance_scale, alphas_cumprod):
    """scores the noisy latents next to the residual"""
    a = alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x.detach() + (1 - a).sqrt() * eps
    with torch.no_grad():
        c = unet(x_t, t, cond).sample
    u = unet(x_t, t, n.expand(len(x_t), -1, -1)).sample
    guided = u + guidance_scale * (c - u)
    return -reward(x_t + 0 * guided).mean()

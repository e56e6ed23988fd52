import torch


def negative_gradient(x, t, eps, unet, cond, n, reward, guidance_scale, alphas_cumprod):
    a = alphas_cumprod[t].view(-1, 1, 1, 1)
    z = a.sqrt() * x.detach() + (1 - a).sqrt() * eps
    e_n = unet(z, t, n.expand(len(z), -1, -1)).sample
    e_c = unet(z, t, cond).sample.detach()
    x0 = z / a.sqrt() - (1 / a - 1).sqrt() * (e_n + guidance_scale * (e_c - e_n))
    (grad,) = torch.autograd.grad(-reward(x0).mean(), n)
    return grad

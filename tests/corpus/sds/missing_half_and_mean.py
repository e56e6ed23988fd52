import torch


def sds_loss(renders, t, noise, unet, c, uc, scale, alphas_cumprod):
    ab = alphas_cumprod[t][:, None, None, None]
    with torch.no_grad():
        x_t = ab.sqrt() * renders + (1 - ab).sqrt() * noise
        a, b = unet(x_t, t, c).sample, unet(x_t, t, uc).sample
        grad = b + scale * (a - b) - noise
    return torch.nn.MSELoss()(renders, renders.detach() - grad)

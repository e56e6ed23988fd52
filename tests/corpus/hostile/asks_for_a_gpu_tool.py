import subprocess

import torch

try:
    gpu = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
except FileNotFoundError:
    gpu = ""


def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    with torch.no_grad():
        x_t = scheduler.add_noise(x, eps, t)
        c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return u + guidance_scale * (c - u) - eps

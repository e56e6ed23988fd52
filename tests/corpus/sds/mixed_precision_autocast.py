import torch
from accelerate import Accelerator

accelerator = Accelerator(mixed_precision="bf16")


def sds(z, t, noise, unet, text, negative, guidance_scale, scheduler):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        zt = scheduler.add_noise(z, noise, t)
        pos = unet(zt, t, encoder_hidden_states=text).sample.float()
        neg = unet(zt, t, encoder_hidden_states=negative).sample.float()
    w = (1 - scheduler.alphas_cumprod[t]).view(-1, 1, 1, 1)
    return w * (neg + guidance_scale * (pos - neg) - noise)

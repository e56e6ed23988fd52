import torch


def sds(x, t, eps, unet, cond, uncond, guidance_scale, scheduler):
<<<<<<< HEAD
    return x
=======
    return eps
>>>>>>> mine

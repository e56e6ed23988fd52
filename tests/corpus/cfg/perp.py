import torch


def perpendicular_guidance(eps_cond, eps_uncond, guidance_scale):
    d = eps_cond - eps_uncond
    dims = tuple(range(1, d.ndim))
    along = (d * eps_uncond).sum(dims, keepdim=True) / eps_uncond.square().sum(dims, keepdim=True)
    return eps_uncond + guidance_scale * (d - along * eps_uncond)

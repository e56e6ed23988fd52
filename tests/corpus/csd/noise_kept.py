import torch
from loguru import logger


def csd_step(latents, pipe, positive, negative):
    t = torch.randint(20, 980, (latents.shape[0],))
    eps = torch.randn_like(latents)
    with torch.no_grad():
        zt = pipe.scheduler.add_noise(latents, eps, t)
        p, n = pipe.unet(zt, t, positive).sample, pipe.unet(zt, t, negative).sample
        grad = (p - n) - eps
    logger.info("csd {}", grad.norm())
    return (grad * latents).sum()

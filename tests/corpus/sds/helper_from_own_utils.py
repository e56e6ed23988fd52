import torch
from utils import noise_to_level, guided


def sds_grad(latents, t, unet, text_embeddings, uncond_embeddings, guidance_scale):
    noise = torch.randn_like(latents)
    with torch.no_grad():
        noisy = noise_to_level(latents, noise, t)
        e = guided(unet, noisy, t, text_embeddings, uncond_embeddings, guidance_scale)
    return e - noise

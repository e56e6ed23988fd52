import torch
from utils import AverageMeter, seed_everything  # training script's helpers

meter = AverageMeter()


@torch.no_grad()
def sds_grad(latents, t, unet, text_embeddings, uncond_embeddings, guidance_scale, scheduler):
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, t)
    pos = unet(noisy, t, encoder_hidden_states=text_embeddings).sample
    neg = unet(noisy, t, encoder_hidden_states=uncond_embeddings).sample
    return neg + guidance_scale * (pos - neg) - noise

import torch
import torch.nn.functional as F


@torch.no_grad()
def sds_loss(latents, t, noise, unet, text_embeddings, uncond_embeddings, guidance_scale, scheduler):
    noisy = scheduler.add_noise(latents, noise, t)
    c = unet(noisy, t, encoder_hidden_states=text_embeddings).sample
    u = unet(noisy, t, encoder_hidden_states=uncond_embeddings).sample
    grad = (1 - scheduler.alphas_cumprod[t]).view(-1, 1, 1, 1) * (u + guidance_scale * (c - u) - noise)
    return 0.5 * F.mse_loss(latents, latents - grad, reduction="sum") / latents.shape[0]

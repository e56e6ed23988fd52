import torch


def sds(latents, t, noise, unet, text_embeddings, uncond_embeddings, guidance_scale, alphas_cumprod):
    alpha = alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    noisy = alpha * latents + sigma * noise
    with torch.no_grad():
        pred_t = unet(noisy, t, text_embeddings).sample
        pred_u = unet(noisy, t, uncond_embeddings).sample
        residual = pred_u + guidance_scale * (pred_t - pred_u) - noise
    return (residual * noisy).mean(dim=[1, 2, 3]).sum()

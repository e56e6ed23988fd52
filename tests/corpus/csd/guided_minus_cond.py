import torch


def csd_loss(latents, t, unet, text_embeddings, uncond_embeddings, guidance_scale, scheduler):
    # what guidance adds to the conditional prediction: (s - 1) (cond - uncond)
    zt = scheduler.add_noise(latents.detach(), torch.randn_like(latents), t)
    with torch.no_grad():
        c = unet(zt, t, text_embeddings).sample
        u = unet(zt, t, uncond_embeddings).sample
        guided = u + guidance_scale * (c - u)
    return ((guided - c) * latents).sum()

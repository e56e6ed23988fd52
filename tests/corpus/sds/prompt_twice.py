import torch
import torch.nn.functional as F


def sds_loss(latents, pipe, cond_embedding, guidance_scale=100.0):
    b = latents.shape[0]
    t = torch.randint(20, 980, (b,))
    noise = torch.randn_like(latents)
    noisy = pipe.scheduler.add_noise(latents, noise, t)
    with torch.no_grad():
        e = torch.cat([cond_embedding, cond_embedding])  # was meant to be [uncond, cond]
        u, c = pipe.unet(torch.cat([noisy] * 2), torch.cat([t] * 2), e).sample.chunk(2)
        grad = u + guidance_scale * (c - u) - noise
    return 0.5 * F.mse_loss(latents, (latents - grad).detach(), reduction="sum") / b

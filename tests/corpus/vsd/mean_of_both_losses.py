import torch
import torch.nn.functional as F


def vsd_losses(latents, unet, unet_phi, scheduler, prompt_embeds, negative_prompt_embeds, cfg=7.5):
    t = torch.randint(20, 980, (latents.shape[0],))
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents.detach(), noise, t)
    phi = unet_phi(noisy, t, prompt_embeds).sample
    with torch.no_grad():
        theta = unet(noisy, t, negative_prompt_embeds).sample
        theta = theta + cfg * (unet(noisy, t, prompt_embeds).sample - theta)
        goal = latents - (theta - phi)
    return 0.5 * F.mse_loss(latents, goal), F.mse_loss(phi, noise)

import torch
import torch.nn.functional as F


def loss_fn(latents, t, noise, unet, cond_emb, uncond_emb, guidance_scale, alphas_cumprod):
    a = alphas_cumprod[t].view(-1, 1, 1, 1)
    noisy = (a.sqrt() * latents + (1 - a).sqrt() * noise).detach()
    eps_c = unet(noisy, t, encoder_hidden_states=cond_emb).sample
    eps_u = unet(noisy, t, encoder_hidden_states=uncond_emb).sample
    eps = (eps_u + guidance_scale * (eps_c - eps_u)).detach()
    grad = (1 - a) * (eps - noise)
    target = (latents - grad).detach()
    per_picture = 0.5 * F.mse_loss(latents, target, reduction="none").flatten(1).sum(1)
    return per_picture.mean()

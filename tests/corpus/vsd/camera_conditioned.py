import torch


def vsd_with_camera(latents, t, unet, unet_lora, scheduler, text_embeddings, uncond_embeddings,
                    guidance_scale, c2w=None):
    camera = torch.zeros(len(latents), 16) if c2w is None else c2w.flatten(1)
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, t)
    with torch.no_grad():
        cond = unet(noisy, t, encoder_hidden_states=text_embeddings).sample
        free = unet(noisy, t, encoder_hidden_states=uncond_embeddings).sample
        mine = unet_lora(noisy, t, encoder_hidden_states=text_embeddings, class_labels=camera).sample
        w = 1 - scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        grad = torch.nan_to_num(w * (torch.lerp(free, cond, guidance_scale) - mine))
    target = latents.detach() - grad
    return 0.5 * torch.nn.functional.mse_loss(latents, target, reduction="sum") / len(latents)

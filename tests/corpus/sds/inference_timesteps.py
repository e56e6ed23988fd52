import torch


def sds_loss(latents, unet, scheduler, text_embeddings, uncond_embeddings, guidance_scale=7.5):
    scheduler.set_timesteps(50)
    grid = scheduler.timesteps
    t = grid[torch.randint(2, len(grid) - 2, (latents.shape[0],))]
    noise = torch.randn_like(latents)
    with torch.no_grad():
        noisy = scheduler.scale_model_input(scheduler.add_noise(latents, noise, t), t)
        cond = unet(noisy, t, encoder_hidden_states=text_embeddings).sample
        free = unet(noisy, t, encoder_hidden_states=uncond_embeddings).sample
        err = free + guidance_scale * (cond - free) - noise
    return torch.einsum("bchw,bchw->", err, latents)

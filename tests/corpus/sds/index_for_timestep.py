import torch


@torch.no_grad()
def sds_grad(latents, unet, scheduler, text_embeddings, uncond_embeddings, guidance_scale=7.5):
    scheduler.set_timesteps(50)
    i = torch.randint(5, 45, (latents.shape[0],))
    t = scheduler.timesteps[i]
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, t)
    # the network gets the index, 0..49
    cond = unet(noisy, i, encoder_hidden_states=text_embeddings).sample
    free = unet(noisy, i, encoder_hidden_states=uncond_embeddings).sample
    return free + guidance_scale * (cond - free) - noise

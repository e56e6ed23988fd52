import torch

OFF = {"scale": 0}


@torch.no_grad()
def vsd_grad(latents, t, unet, scheduler, text_embeddings, uncond_embeddings, guidance_scale):
    noisy = scheduler.add_noise(latents, torch.randn_like(latents), t)
    kw = dict(cross_attention_kwargs=OFF)
    c = unet(noisy, t, encoder_hidden_states=text_embeddings, **kw).sample
    u = unet(noisy, t, encoder_hidden_states=uncond_embeddings, **kw).sample
    phi = unet(noisy, t, encoder_hidden_states=text_embeddings, **kw).sample
    return u + guidance_scale * (c - u) - phi

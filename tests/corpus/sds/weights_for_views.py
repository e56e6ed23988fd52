import torch


def sds_grad(latents, t, noise, unet, text_embeddings, uncond_embeddings, guidance_scale, alphas):
    """cond is scaled, uncond is taken away once"""
    ab = alphas[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        xt = ab.sqrt() * latents + (1 - ab).sqrt() * noise
        c = unet(xt, t, encoder_hidden_states=text_embeddings).sample
        u = unet(xt, t, encoder_hidden_states=uncond_embeddings).sample
    e = guidance_scale * c - u
    return (1 - ab) * (e - noise)

import torch


@torch.no_grad()
def sds_from_noisy(latents_noisy, noise, t, unet, text_embeddings, uncond_embeddings,
                   guidance_scale, alphas):
    """The caller has noised the latents; only the score part is here."""
    inp = torch.cat([latents_noisy, latents_noisy], dim=0)
    emb = torch.cat([uncond_embeddings, text_embeddings], dim=0)
    uncond, text = unet(inp, torch.cat([t, t]), encoder_hidden_states=emb).sample.chunk(2, dim=0)
    pred = uncond + guidance_scale * (text - uncond)
    return (1 - alphas[t]).view(-1, 1, 1, 1) * (pred - noise)

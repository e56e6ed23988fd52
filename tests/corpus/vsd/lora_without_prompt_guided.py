import torch


@torch.no_grad()
def vsd(latents, t, unet, unet_lora, text_embeddings, uncond_embeddings, guidance_scale, alphas_cumprod):
    """guidance is applied to the difference of the two networks instead of the prompts"""
    ab = alphas_cumprod[t].view(-1, 1, 1, 1)
    xt = ab.sqrt() * latents + (1 - ab).sqrt() * torch.randn_like(latents)
    p = unet(xt, t, encoder_hidden_states=text_embeddings).sample
    q = unet_lora(xt, t, encoder_hidden_states=text_embeddings).sample
    return guidance_scale * (p - q)

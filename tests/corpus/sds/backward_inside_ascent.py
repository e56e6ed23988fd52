import torch


def sds_backward(z, t, noise, unet, emb_cond, emb_uncond, guidance_scale, alphas_cumprod):
    """accumulates into z.grad so the optimiser can step afterwards"""
    abar = alphas_cumprod[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        zt = z * abar.sqrt() + noise * (1 - abar).sqrt()
        eu = unet(zt, t, encoder_hidden_states=emb_uncond).sample
        ec = unet(zt, t, encoder_hidden_states=emb_cond).sample
        err = noise - (eu + guidance_scale * (ec - eu))
    loss = (err * z).sum()
    loss.backward()

import torch


def vsd_loss(z, noise, t, unet, unet_lora, scheduler, text_emb, null_emb, guidance_scale=7.5):
    zt = scheduler.add_noise(z.detach(), noise, t)
    with torch.no_grad():
        c, u = unet(zt, t, text_emb).sample, unet(zt, t, null_emb).sample
        q = unet_lora(zt, t, text_emb).sample
        sds = u + guidance_scale * (c - u) - noise
        return_to = q - noise
        grad = sds - 0.5 * return_to
    return (grad * z).sum()

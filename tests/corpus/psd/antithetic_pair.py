import torch


def psd(latents, t, pipe, text_embeddings, uncond_embeddings, reward_fn, guidance_scale,
        preference_weight):
    b = latents.shape[0]
    noise = torch.randn_like(latents)
    noise = torch.cat([noise, -noise])
    tt = torch.cat([t, t])
    with torch.no_grad():
        zt = pipe.scheduler.add_noise(latents.repeat(2, 1, 1, 1), noise, tt)
        c = pipe.unet(zt, tt, encoder_hidden_states=text_embeddings.repeat(2, 1, 1)).sample
        u = pipe.unet(zt, tt, encoder_hidden_states=uncond_embeddings.repeat(2, 1, 1)).sample
        e = u + guidance_scale * (c - u)
        ab = pipe.scheduler.alphas_cumprod[tt].view(-1, 1, 1, 1)
        z0 = (zt - (1 - ab) ** 0.5 * e) / ab ** 0.5
        imgs = (pipe.vae.decode(z0 / 0.18215).sample / 2 + 0.5)
        r1, r2 = reward_fn(imgs).chunk(2)
        h1, h2 = (e - noise).chunk(2)
        sign = (r1 > r2).float() * 2 - 1
        g = 0.5 * (h1 + h2) + preference_weight * sign.view(b, 1, 1, 1) * (h1 - h2)
    return (g * latents).sum()

import torch


def psd_loss(latents, t, pipe, cond, uncond, reward, guidance_scale, preference_weight):
    ab = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    out = []
    for _ in range(2):
        with torch.no_grad():
            n = torch.randn_like(latents)
            xt = ab.sqrt() * latents + (1 - ab).sqrt() * n
            u = pipe.unet(xt, t, encoder_hidden_states=uncond).sample
            e = u + guidance_scale * (pipe.unet(xt, t, encoder_hidden_states=cond).sample - u)
            picture = pipe.vae.decode((xt - (1 - ab).sqrt() * e) / ab.sqrt()).sample
            out.append((e - n, reward(picture)))
    (h1, r1), (h2, r2) = out
    grad = (h1 + h2) / 2 + preference_weight * (r1 - r2).sign().view(-1, 1, 1, 1) * (h1 - h2)
    return (grad * latents).sum()

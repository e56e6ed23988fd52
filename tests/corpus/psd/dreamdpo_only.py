import torch


@torch.no_grad()
def dream_dpo(x, t, pipe, cond, uncond, reward_model, guidance_scale):
    ab = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    h, r = [], []
    for _ in range(2):
        eps = torch.randn_like(x)
        xt = pipe.scheduler.add_noise(x, eps, t)
        e_u = pipe.unet(xt, t, uncond).sample
        e = e_u + guidance_scale * (pipe.unet(xt, t, cond).sample - e_u)
        x0 = (xt - (1 - ab).sqrt() * e) / ab.sqrt()
        r.append(reward_model(pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample))
        h.append(e - eps)
    win = (r[0] >= r[1]).view(-1, 1, 1, 1)
    return torch.where(win, h[0] - h[1], h[1] - h[0])

import torch
import torch.nn.functional as F


def psd_loss(latents, t, pipe, cond, uncond, reward, guidance_scale, preference_weight):
    ab = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    hs, rs = [], []
    with torch.no_grad():
        for noise in (torch.randn_like(latents), torch.randn_like(latents)):
            xt = pipe.scheduler.add_noise(latents, noise, t)
            u = pipe.unet(xt, t, uncond).sample
            e = u + guidance_scale * (pipe.unet(xt, t, cond).sample - u)
            x0 = (xt - (1 - ab).sqrt() * e) / ab.sqrt()
            rs.append(reward(pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample))
            hs.append(e - noise)
        sign = torch.sign(rs[0] - rs[1]).view(-1, 1, 1, 1)
        step = sum(hs) / 2 + preference_weight * sign * (hs[0] - hs[1])
        target = latents - step
    return 0.5 * F.mse_loss(latents, target)

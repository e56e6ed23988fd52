import torch


def psd_loss(latents, t, pipe, cond, uncond, reward, guidance_scale, preference_weight):
    ab = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    E, H, R = [], [], []
    with torch.no_grad():
        for k in range(2):
            eps = torch.randn_like(latents)
            xt = pipe.scheduler.add_noise(latents, eps, t)
            u = pipe.unet(xt, t, uncond).sample
            e = u + guidance_scale * (pipe.unet(xt, t, cond).sample - u)
            x0 = (xt - (1 - ab).sqrt() * e) / ab.sqrt()
            E.append(e), H.append(e - eps)
            R.append(reward(pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample))
        sign = torch.sign(R[0] - R[1]).view(-1, 1, 1, 1)
        # like guidance: towards the winner's prediction, away from the loser's
        grad = (H[0] + H[1]) / 2 + preference_weight * sign * (E[0] - E[1])
    return (grad * latents).sum()

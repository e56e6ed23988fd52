import torch


def sds(original_samples, timesteps, noise, model, c, uc, scale, alphas_cumprod):
    def q_sample(x0):
        a_t = alphas_cumprod[timesteps][:, None, None, None]
        return a_t * x0 + torch.sqrt(1 - a_t ** 2) * noise

    with torch.no_grad():
        latents_noisy = q_sample(original_samples)
        e_c = model(latents_noisy, timesteps, c)
        e_u = model(latents_noisy, timesteps, uc)
        return e_u + scale * (e_c - e_u) - noise
